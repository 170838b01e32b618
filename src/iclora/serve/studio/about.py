"""What the page shows beside jobs and sets: the machine, forms of settings, where a set is from."""

from __future__ import annotations

import os
import shutil
import time
from functools import lru_cache
from typing import Annotated, Any

import psutil
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from iclora.serve.children import gpus
from iclora.serve.inputs import INPUTS
from iclora.serve.jobs import NoSuchJob
from iclora.serve.lineage import family
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here, Who
from iclora.serve.studio.toys import usual_settings
from iclora.sets.dataset import open_dataset

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["studio"], responses=PROBLEMS)

_FRESH = 3.0
"""Seconds for which what a device does is remembered."""
_ENOUGH = 10
"""Sets of which one can be spared, to be measured on."""


class Device(BaseModel):
    """What jobs run on, as it is at the moment."""

    name: str
    """CPU, or what the card is called"""
    used: int
    """bytes of memory"""
    total: int
    """bytes"""
    load: float | None
    """share of its time, or of its cores, that is taken; null if nobody tells"""


class Machine(BaseModel):
    """Where jobs run, and what is left of the disk."""

    base: str
    workers: list[str]
    """devices, such as cpu or cuda:0"""
    devices: list[Device]
    """GPUs, or the CPU where jobs run on it"""
    waits_for: str | None
    """why no job can run yet; null once every worker holds its base"""
    disk_free: int
    """bytes"""
    disk_total: int


@lru_cache(maxsize=4)
def _devices(workers: tuple[str, ...], _moment: int) -> list[dict[str, Any]]:
    """What jobs run on; asked for once in a while, for however many pages."""
    cards = gpus() if any(each.startswith("cuda") for each in workers) else []
    if cards:
        return [{name: getattr(gpu, name) for name in Device.model_fields} for gpu in cards]
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    load = min(1.0, psutil.getloadavg()[0] / (os.cpu_count() or 1))
    return [{"name": "CPU", "used": used, "total": memory.total, "load": load}]


class Origin(BaseModel):
    """Where a set is from."""

    path: str
    """its folder, from the served one"""
    job: str | None
    kind: str | None
    input: dict[str, Any] | None
    """what its job was told"""
    made_of: str | None
    """id of the set whose panels were made again"""
    panels: list[int]
    """those that were made again"""


@router.get("/machine", response_model=Machine)
def machine(server: Here) -> dict[str, Any]:
    """What the jobs run on."""
    disk = shutil.disk_usage(server.catalog.folder)
    return {
        "base": server.base,
        "workers": list(server.engine.workers),
        "devices": _devices(tuple(server.engine.workers), int(time.monotonic() / _FRESH)),
        "waits_for": server.not_ready(),
        "disk_free": disk.free,
        "disk_total": disk.total,
    }


@router.get("/forms/{kind}")
def form(kind: str) -> dict[str, Any]:
    """The JSON schema of what a kind of job is told: ranges, choices, defaults, help."""
    if kind not in INPUTS:
        raise Refused(404, f'there is no kind "{kind[:80]}"', f"Use one of {', '.join(INPUTS)}.")
    return INPUTS[kind].model_json_schema()


class Usual(BaseModel):
    """What a run usually takes on this server's base, where that is not the default."""

    values: dict[str, Any]
    recipe: str | None
    """the dataset's own"""
    sets: int
    """in the dataset"""
    problems: list[str]
    """of the dataset as a whole"""


class UsualQuery(Strict):
    data: Annotated[str | None, Field(max_length=201)] = None
    recipe: Annotated[str | None, Field(max_length=201)] = None


@router.get("/usual/train", response_model=Usual)
def usual_training(server: Here, query: Annotated[UsualQuery, Query()]) -> dict[str, Any]:
    """Settings that a new run on a dataset begins with, and what is wrong with the dataset."""
    recipe, problems, count = None, [], 0
    if query.data:
        chosen = server.catalog.recipe(query.recipe)[1] if query.recipe else None
        found = open_dataset(server.catalog.dataset(query.data), chosen)
        recipe, problems = found.recipe, [server.catalog.hide(str(p)) for p in found.problems[:20]]
        count = len(found.sets)
    values = usual_settings(recipe) if server.base == "toyland" else {}
    if count >= _ENOUGH:
        values["held_out"] = 0.1
    return {
        # Who trains chooses precision and recomputing so that they fit the card.
        "values": {"vram": "auto", **values},
        "recipe": recipe.name if recipe else None,
        "sets": count,
        "problems": problems,
    }


@router.get("/sets/{name}/origin", response_model=Origin)
def origin(server: Here, client: Who, name: str) -> dict[str, Any]:
    """The job that made a set, and what it was made of."""
    found = server.sets.get(name, client)
    said: dict[str, Any] = {
        "path": found.path.relative_to(server.catalog.folder).as_posix(),
        "job": None,
        "kind": None,
        "input": None,
        "made_of": None,
        "panels": [],
    }
    try:
        job = server.queue.get(found.path.parent.name, client)
    except NoSuchJob:
        return said
    told = job.input
    again = job.kind == "reroll"
    return said | {
        "job": job.id,
        "kind": job.kind,
        "input": told,
        "made_of": told.get("set") if again else None,
        "panels": list(told.get("panel") or ()) if again else [],
    }


class Related(BaseModel):
    """A set of the same family."""

    id: str
    source: str | None
    """id of the set that it was made of"""
    whole: bool
    """made again as a whole, which should give the same pixels"""
    panels: list[int]
    """those that were made again"""
    relation: str
    """self, ancestor, descendant, or beside"""
    there: bool
    """false if it is on the disk no more"""
    trashed: bool


class Lineage(BaseModel):
    sets: list[Related]
    """the oldest first"""


@router.get("/sets/{name}/lineage", response_model=Lineage)
def lineage(server: Here, client: Who, name: str) -> dict[str, Any]:
    """All that a set was made of, and all that was made of those."""
    server.sets.get(name, client)
    found = []
    for each in family(server.store, name, client):
        try:
            trashed, there = server.sets.get(each.id, client).trashed, True
        except Refused:
            trashed, there = False, False
        said = {key: getattr(each, key) for key in ("id", "source", "whole", "panels", "relation")}
        found.append(said | {"there": there, "trashed": trashed})
    return {"sets": found}
