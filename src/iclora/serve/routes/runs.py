"""Runs and adapters: what they are, a run's log, stopping it and going on; the plan of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from iclora.errors import SettingsError
from iclora.serve.inputs import RunChanges
from iclora.serve.jobs import Busy, Job, NewJob
from iclora.serve.planning import PlanQuery, plan
from iclora.serve.problems import Refused
from iclora.serve.records import Files, place_of
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.routes.jobs import ShownJob, show
from iclora.serve.runs import is_written, log_after, measures_of, notes_of, state_of
from iclora.serve.server import Here, Server, Who
from iclora.serve.store import new_id
from iclora.train.asked import Asked, ask

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["runs"], responses=PROBLEMS)


class ShownRun(BaseModel):
    """A training run, as its folder says."""

    id: str
    state: Literal["running", "stopped", "finished"]
    step: int
    steps: int
    loss: float | None
    job: str | None
    """the job that trains it now, or waits to"""
    settings: dict[str, Any]
    """those that are not the defaults"""
    data: str
    """its dataset, by name"""
    recipe: str | None
    """by name; null if the dataset's own was taken"""
    previews: list[str]
    """step-000250.png has base and adapter side by side, step-000250-1.png and base-1.png are the
    first of the pictures in it"""
    saved: list[str]
    """checkpoints that are kept"""
    asked: list[Asked]
    """what it is asked for and has not done yet"""


class Runs(BaseModel):
    runs: list[ShownRun]


class Log(BaseModel):
    rows: list[dict[str, Any]]
    """step, loss and sets of each step, in order"""


class Measure(BaseModel):
    """Losses of a step, always with the same noise."""

    step: int
    held_out: float
    trained: float


class Measures(BaseModel):
    rows: list[Measure]


class Notes(BaseModel):
    notes: list[str]
    """what the run said since it was last begun by a server"""


class LogQuery(Strict):
    after: Annotated[int, Field(ge=0, le=10**9)] = 0
    """a step"""


class ShownAdapter(BaseModel):
    """An adapter that jobs may name."""

    id: str
    base: str | None
    """what it was trained on; null for another tool's"""
    recipe: str | None
    width: int | None
    height: int | None
    panels: int | None
    about: dict[str, Any]


class Adapters(BaseModel):
    adapters: list[ShownAdapter]


class Plan(BaseModel):
    """What a run takes, counted."""

    text: str
    run_file: str
    """TOML, for `iclora train`"""
    memory: int
    """bytes that the card has"""
    usable: int
    """bytes of it that can be filled"""
    peak: int
    """bytes that the run takes at most"""
    seconds: tuple[float, float] | None
    """least and most that a step takes; null for a card that is not here"""
    here: bool
    """true if this machine was asked, false if a card stands for another"""
    precision: str
    recomputed: int
    """blocks that keep only their input"""
    blocks: int


@router.get("/runs", response_model=Runs)
def list_runs(server: Here) -> dict[str, Any]:
    """Training runs of the folder: those of jobs and of the command line."""
    return {"runs": [_shown(server, n, path) for n, path in server.catalog.runs().items()]}


@router.get("/runs/{name}", response_model=ShownRun)
def get_run(server: Here, name: str) -> dict[str, Any]:
    """One run."""
    return _shown(server, name, _path(server, name))


@router.get("/runs/{name}/log", response_model=Log)
def get_log(server: Here, name: str, query: Annotated[LogQuery, Query()]) -> dict[str, Any]:
    """The losses of a run behind a step, at most 5,000."""
    return {"rows": log_after(_path(server, name), query.after)}


@router.get("/runs/{name}/measures", response_model=Measures)
def get_measures(server: Here, name: str) -> dict[str, Any]:
    """The losses on held-out sets, and on as many that are trained on, at every checkpoint."""
    return {"rows": measures_of(_path(server, name))}


@router.get("/runs/{name}/notes", response_model=Notes)
def get_notes(server: Here, name: str) -> dict[str, Any]:
    """What the run said, as far as a server started it."""
    run = _path(server, name)
    place = place_of(server.catalog.home / "logs", str(run))
    found = notes_of(Files(place).notes)
    return {"notes": [server.catalog.hide(text) for text in found]}


@router.get("/runs/{name}/previews/{file}", response_class=FileResponse)
def get_preview(server: Here, name: str, file: str) -> FileResponse:
    """A grid of previews, or one of its pictures."""
    run = _path(server, name)
    known = {path.name: path for path in (run / "previews").glob("*.png")}
    if file not in known or not server.catalog.inside(known[file]):
        raise Refused(404, f'there is no preview "{file[:80]}"', "See `previews` of the run.")
    headers = {"Cache-Control": "private, no-cache"}  # A step may be drawn again.
    return FileResponse(known[file], media_type="image/png", headers=headers)


class Stop(Strict):
    now: bool = False
    """do not wait for a checkpoint: what was trained since the last one is lost"""


_SAVED = Stop()
_AS_IT_WAS = RunChanges()


@router.post("/runs/{name}/stop", response_model=ShownJob)
def stop_run(
    server: Here, client: Who, name: str, told: Annotated[Stop, Body()] = _SAVED
) -> dict[str, Any]:
    """Stop a run: it saves and ends between two steps, and can be gone on with."""
    run = _path(server, name)
    job = _job_of(server, run, client)
    if job is None:
        if is_written(run):
            raise Busy(
                f"{name} was started elsewhere", "Stop it there, with Ctrl-C, or ask it to stop."
            )
        raise Busy(f"{name} does not run", "Look at its state.")
    found = server.queue.cancel(job.id, client)
    if found.status == "cancelling":
        server.dispatcher.cancel(found.id, now=told.now)
    return show(server, found)


@router.post("/runs/{name}/ask/{what}", status_code=202, response_model=ShownRun)
def ask_run(server: Here, name: str, what: Asked) -> dict[str, Any]:
    """Ask a run at work, whoever started it, for a checkpoint, for previews, or to stop.

    It does so between two steps; until then `asked` of the run holds it.
    """
    run = _path(server, name)
    if not is_written(run):
        raise Busy(f"{name} does not run", "Look at its state.")
    if what == "preview" and state_of(run)["settings"].get("preview_every") == 0:
        raise SettingsError(
            f"{name} draws no previews", "Stop it, and resume it with `preview_every`.", "preview"
        )
    ask(run, what)
    return _shown(server, name, run)


@router.post("/runs/{name}/resume", status_code=202, response_model=ShownJob)
def resume_run(
    server: Here, client: Who, name: str, told: Annotated[RunChanges, Body()] = _AS_IT_WAS
) -> dict[str, Any]:
    """Queue a job that goes on with a run, with settings changed that it may change."""
    run = _path(server, name)
    changed = told.model_dump(mode="json", exclude_none=True)
    if is_written(run):
        raise Busy(f"{name} runs already", "Look at its state.")
    server.check_room()
    new = NewJob(
        id=new_id(),
        kind="train",
        input={"resume": name, **changed},
        settings={"resume": str(run), **changed},
        folder=str(run),
        client=client,
    )
    return show(server, server.queue.submit(new)[0])


class AdapterQuery(Strict):
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")] = None
    """only those with this hash, which requests hold"""


@router.get("/adapters", response_model=Adapters)
def get_adapters(server: Here, query: Annotated[AdapterQuery, Query()]) -> dict[str, Any]:
    """Adapters that jobs may name: those of runs, and files."""
    return list_adapters(server, query.sha256)


def list_adapters(server: Server, sha256: str | None = None) -> dict[str, Any]:
    """All adapters as clients see them, or those with a hash."""
    catalog = server.catalog
    found = catalog.adapters() if sha256 is None else catalog.adapters_of(sha256)
    return {
        "adapters": [
            {
                "id": each.id,
                "base": Path(each.base).name if each.base and "/" in each.base else each.base,
                "recipe": each.recipe.name if each.recipe else None,
                "width": each.layout.width if each.layout else None,
                "height": each.layout.height if each.layout else None,
                "panels": each.layout.panels if each.layout else None,
                "about": each.about,
            }
            for each in found.values()
        ]
    }


@router.get("/plan", response_model=Plan)
def get_plan(server: Here, query: Annotated[PlanQuery, Query()]) -> dict[str, Any]:
    """Count what a run on this server's base would take, and choose what fits a card."""
    found = plan(server.catalog, server.base, query)
    hide = server.catalog.hide
    return found | {name: hide(found[name]) for name in ("text", "run_file")}


def _path(server: Server, name: str) -> Path:
    known = server.catalog.runs()
    if name not in known:
        raise Refused(404, f'there is no run "{name[:80]}"', "List the runs.")
    return known[name]


def _job_of(server: Server, run: Path, client: str) -> Job | None:
    return server.queue.of_folder(str(run), client)


def _shown(server: Server, name: str, run: Path) -> dict[str, Any]:
    job = _job_of(server, run, "")
    return {"id": name, **state_of(run), "job": job.id if job else None}
