"""Jobs: post, look, wait, cancel, retry, move; the queue."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from iclora.errors import SettingsError
from iclora.files import digest, inside
from iclora.serve.inputs import Ask, asks
from iclora.serve.jobs import ENDED, Job
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here, Server, Who

__all__ = ["job_page", "router", "show", "submit", "wait_for"]

router = APIRouter(prefix="/api/v1", tags=["jobs"], responses=PROBLEMS)

Why = Callable[[int | None], dict[str, Any]]
"""From how many jobs are before one to `waits_for` and `ahead`."""

_FILES = {
    ".png": "image/png",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".html": "text/html; charset=utf-8",
}
_AS_PAGE = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:;"
    " style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
}
"""A report is looked at: nothing in it runs."""

Status = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]


class Ahead(BaseModel):
    """How far a job is that runs while others wait."""

    stage: str
    done: int
    total: int
    """what its stage counts, such as steps"""
    eta_s: float | None
    """seconds that its stage may still take"""


class ShownJob(BaseModel):
    """A job as clients see it."""

    id: str
    """sorts by time"""
    kind: str
    status: Status
    position: int | None
    """jobs before it, while it waits"""
    waits_for: str | None
    """why it waits"""
    ahead: Ahead | None
    """how far the job is that it waits for"""
    priority: int
    tag: str
    exact: bool
    attempt: int
    created: float
    """seconds since 1970"""
    started: float | None
    ended: float | None
    progress: dict[str, Any] | None
    input: dict[str, Any]
    """with all defaults, and the seed that was drawn"""
    result: dict[str, Any] | None
    """`sets`: ids of made sets; `notes`: what a person should know; names of other files"""
    error: dict[str, str | None] | None


class JobPage(BaseModel):
    """Jobs, the newest first."""

    jobs: list[ShownJob]
    cursor: str | None
    """of the next page; null at the end"""


class JobQuery(Strict):
    status: Status | None = None
    kind: Annotated[str | None, Field(max_length=40)] = None
    cursor: Annotated[str | None, Field(pattern=r"^[0-9a-f]{26}$")] = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 50


class Move(Strict):
    priority: Annotated[int | None, Field(ge=-100, le=100)] = None
    before: Annotated[str | None, Field(max_length=80)] = None
    """id of another waiting job"""


class QueueChange(Strict):
    paused: bool | None = None
    """begin no further job; it holds over a restart"""
    cancel_waiting: bool = False
    """cancel every job that waits, and none that runs"""


class QueueState(BaseModel):
    model_config = ConfigDict(extra="forbid")

    paused: bool
    waiting: int
    running: int
    cancelled: int = 0
    """jobs that this request has cancelled"""


def show(
    server: Server, job: Job, position: int | None = None, why: Why | None = None
) -> dict[str, Any]:
    """A job as `ShownJob` has it.

    Args:
        position: jobs before it, if that is known.
        why: `why_jobs_wait`, if several are shown.
    """
    waits: dict[str, Any] = {"waits_for": None, "ahead": None}
    if job.status == "queued":
        position = server.queue.position(job) if position is None else position
        waits = (why or why_jobs_wait(server))(position)
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "position": position if job.status == "queued" else None,
        **waits,
        "priority": job.priority,
        "tag": job.tag,
        "exact": job.exact,
        "attempt": job.attempt,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "progress": None if job.status in ENDED else server.bus.progress.get(job.id),
        "input": job.input,
        "result": job.result,
        "error": job.error,
    }


def why_jobs_wait(server: Server) -> Why:
    """Why jobs wait just now, by how many are before one."""
    if server.queue.paused:
        return lambda _: {"waits_for": "the queue is paused", "ahead": None}
    running = server.queue.page(status="running", limit=1)
    ready = server.not_ready()
    if ready is not None and not running:
        return lambda _: {"waits_for": ready, "ahead": None}
    # Of whose it is nothing is told.
    doing = f"; a job to {running[0].kind} runs" if running else ""
    ahead = _how_far(server, running[0]) if running else None

    def why(position: int | None) -> dict[str, Any]:
        jobs = "1 job" if position == 1 else f"{position} jobs"
        first = f"{jobs} before it" if position else "a free worker"
        return {"waits_for": first + doing, "ahead": ahead}

    return why


def _how_far(server: Server, job: Job) -> dict[str, Any] | None:
    """As `Ahead` has it; None before its first report."""
    told = server.bus.progress.get(job.id)
    return {name: told.get(name) for name in Ahead.model_fields} if told else None


def submit(server: Server, ask: Ask, client: str, key: str | None = None) -> tuple[Job, bool]:
    """Put a job into the queue. Returns: the job, and True if it is new. Raises: IcloraError."""
    server.check_room()
    new = server.intake.job(ask, client)
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,200}", key):
        raise SettingsError(
            "an idempotency key is 1 to 200 printable characters", "Use a UUID.", "Idempotency-Key"
        )
    return server.queue.submit(new, key, digest(ask.model_dump_json(exclude_unset=True)))


async def wait_for(server: Server, job: Job, client: str, seconds: float) -> Job:
    """The job once it has ended, or as it is after some seconds."""
    listener = server.bus.listen(client, job.id, counted=False)
    end = time.monotonic() + seconds
    try:
        while True:
            now = await run_in_threadpool(server.queue.get, job.id, client)
            left = end - time.monotonic()
            if now.status in ENDED or left <= 0:
                return now
            try:
                if await listener.next(left) is None:
                    return now
            except TimeoutError:
                continue
    finally:
        server.bus.leave(listener)


def _preferred(prefer: str | None) -> float:
    """Seconds of `Prefer: wait=N`; proxies cut requests that are silent for long."""
    match = re.search(r"(?:^|[,;\s])wait=([0-9]{1,6})(?:$|[,;\s])", prefer or "")
    return min(60.0, float(match[1])) if match else 0.0


@router.post(
    "/jobs", status_code=202, response_model=ShownJob, responses={200: {"model": ShownJob}}
)
async def post_job(
    server: Here,
    client: Who,
    ask: Annotated[asks, Body()],
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=1000)] = None,
    prefer: Annotated[str | None, Header(max_length=1000)] = None,
) -> dict[str, Any]:
    """Queue a job. The answer comes once it is on the disk; the same key gives the same job."""
    job, fresh = await run_in_threadpool(submit, server, ask, client, idempotency_key)
    if seconds := _preferred(prefer):
        job = await wait_for(server, job, client, seconds)
        response.headers["Preference-Applied"] = f"wait={seconds:.0f}"
    response.status_code = 202 if fresh else 200
    response.headers["Location"] = f"jobs/{job.id}"
    return await run_in_threadpool(show, server, job)


@router.get("/jobs", response_model=JobPage)
def list_jobs(server: Here, client: Who, query: Annotated[JobQuery, Query()]) -> Response:
    """Jobs, the newest first."""
    # Checking a thousand jobs against the model would take longer than finding them.
    return Response(to_json(job_page(server, client, query)), media_type="application/json")


def job_page(server: Server, client: str, query: JobQuery) -> dict[str, Any]:
    """A page of jobs, as clients see it."""
    found = server.queue.page(client, query.status, query.kind, query.cursor, query.limit)
    places = server.queue.positions() if any(j.status == "queued" for j in found) else {}
    why = why_jobs_wait(server)
    return {
        "jobs": [show(server, job, places.get(job.id), why) for job in found],
        "cursor": found[-1].id if len(found) == query.limit else None,
    }


@router.get("/jobs/{job}", response_model=ShownJob)
def get_job(server: Here, client: Who, job: str) -> dict[str, Any]:
    """One job."""
    return show(server, server.queue.get(job, client))


class Files(BaseModel):
    files: list[str]
    """names below the job's own folder"""


@router.get("/jobs/{job}/files", response_model=Files)
def list_files(server: Here, client: Who, job: str) -> dict[str, Any]:
    """The pictures and documents in a job's own folder, so far as they are there: at most 5,000."""
    folder = Path(server.queue.get(job, client).folder)
    if folder.parent != server.catalog.out or not folder.is_dir():
        return {"files": []}
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix in _FILES)
    names = (path.relative_to(folder) for path in paths)
    shown = (name.as_posix() for name in names if not any(p[0] == "." for p in name.parts))
    return {"files": list(islice(shown, 5000))}


@router.get("/jobs/{job}/files/{name:path}", response_class=Response)
def get_file(server: Here, client: Who, job: str, name: str) -> Response:
    """A file that a job has made in a folder of its own: pictures, a report and its figures."""
    found = server.queue.get(job, client)
    folder = Path(found.folder)
    path = inside(folder, name, lambda problem, advice: Refused(404, problem, advice))
    own = folder.parent == server.catalog.out and server.catalog.inside(path)
    hidden = any(part.startswith(".") for part in path.relative_to(folder.resolve()).parts)
    if not own or hidden or path.suffix not in _FILES or not path.is_file():
        raise Refused(404, f'job {job} has made no file "{name[:80]}"', "See its result.")
    if path.suffix == ".png":
        return FileResponse(path, media_type="image/png", headers=_AS_PAGE)
    text = server.catalog.hide(path.read_text(encoding="utf-8"))
    return Response(text, media_type=_FILES[path.suffix], headers=_AS_PAGE)


@router.post("/jobs/{job}/cancel", response_model=ShownJob)
def cancel_job(server: Here, client: Who, job: str) -> dict[str, Any]:
    """Cancel this job: at once if it waits, else between two steps. What has ended stays so."""
    found = server.queue.cancel(job, client)
    if found.status == "cancelling":
        server.dispatcher.cancel(found.id)
    return show(server, found)


@router.post("/jobs/{job}/retry", response_model=ShownJob)
def retry_job(server: Here, client: Who, job: str) -> dict[str, Any]:
    """Queue a job again that failed or was cancelled, with its seeds and folder."""
    return show(server, server.queue.retry(job, client))


@router.patch("/jobs/{job}", response_model=ShownJob)
def move_job(server: Here, client: Who, job: str, move: Move) -> dict[str, Any]:
    """Give a waiting job another priority, or the place before another."""
    return show(server, server.queue.move(job, client, move.priority, move.before))


@router.get("/queue", response_model=QueueState)
def get_queue(server: Here) -> dict[str, Any]:
    """How full the queue is."""
    counts = server.queue.counts()
    return {
        "paused": server.queue.paused,
        "waiting": sum(n for (_, status), n in counts.items() if status == "queued"),
        "running": sum(n for (_, s), n in counts.items() if s in ("running", "cancelling")),
    }


@router.post("/queue", response_model=QueueState)
def change_queue(server: Here, client: Who, change: QueueChange) -> dict[str, Any]:
    """Pause the queue or go on; cancel what waits. Clients with keys cancel their own jobs."""
    if change.paused is not None:
        _refuse_clients(client)
        server.queue.pause(change.paused)
    gone = server.queue.cancel_waiting(client) if change.cancel_waiting else []
    state = get_queue(server) | {"cancelled": len(gone)}
    server.bus.tell("queue", {"paused": state["paused"]})
    return state


def _refuse_clients(client: str) -> None:
    if client:
        raise Refused(403, "only the server's own token pauses the queue", "Ask who runs it.")
