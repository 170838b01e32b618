"""Runs and adapters: what they are, a run's log, stopping it and going on; the plan of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from iclora.serve.jobs import Busy, Job, NewJob
from iclora.serve.planning import PlanQuery, plan
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.routes.jobs import ShownJob, show
from iclora.serve.runs import is_written, log_after, state_of
from iclora.serve.server import Here, Server, Who
from iclora.serve.store import new_id

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
    previews: list[str]


class Runs(BaseModel):
    runs: list[ShownRun]


class Log(BaseModel):
    rows: list[dict[str, Any]]
    """step, loss and sets of each step, in order"""


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


@router.get("/runs/{name}/previews/{file}", response_class=FileResponse)
def get_preview(server: Here, name: str, file: str) -> FileResponse:
    """A grid of previews."""
    run = _path(server, name)
    known = {path.name: path for path in (run / "previews").glob("*.png")}
    if file not in known or not server.catalog.inside(known[file]):
        raise Refused(404, f'there is no preview "{file[:80]}"', "See `previews` of the run.")
    return FileResponse(known[file], media_type="image/png")


class Stop(Strict):
    now: bool = False
    """do not wait for a checkpoint: what was trained since the last one is lost"""


_SAVED = Stop()


@router.post("/runs/{name}/stop", response_model=ShownJob)
def stop_run(
    server: Here, client: Who, name: str, told: Annotated[Stop, Body()] = _SAVED
) -> dict[str, Any]:
    """Stop a run: it saves and ends between two steps, and can be gone on with."""
    run = _path(server, name)
    job = _job_of(server, run, client)
    if job is None:
        if is_written(run):
            raise Busy(f"{name} was started elsewhere", "Stop it there, with Ctrl-C.")
        raise Busy(f"{name} does not run", "Look at its state.")
    found = server.queue.cancel(job.id, client)
    if found.status == "cancelling":
        server.dispatcher.cancel(found.id, now=told.now)
    return show(server, found)


@router.post("/runs/{name}/resume", status_code=202, response_model=ShownJob)
def resume_run(server: Here, client: Who, name: str) -> dict[str, Any]:
    """Queue a job that goes on with a run."""
    run = _path(server, name)
    if is_written(run):
        raise Busy(f"{name} runs already", "Look at its state.")
    server.check_room()
    new = NewJob(
        id=new_id(),
        kind="train",
        input={"resume": name},
        settings={"resume": str(run)},
        folder=str(run),
        client=client,
    )
    return show(server, server.queue.submit(new)[0])


@router.get("/adapters", response_model=Adapters)
def list_adapters(server: Here) -> dict[str, Any]:
    """Adapters that jobs may name: those of runs, and files."""
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
            for each in server.catalog.adapters().values()
        ]
    }


@router.get("/plan", response_model=Plan)
def get_plan(server: Here, query: Annotated[PlanQuery, Query()]) -> dict[str, str]:
    """Count what a run on this server's base would take, and choose what fits a card."""
    found = plan(server.catalog, server.base, query)
    return {name: server.catalog.hide(text) for name, text in found.items()}


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
