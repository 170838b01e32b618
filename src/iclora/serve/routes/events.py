"""Server-sent events, of everything or of one job."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here, Server, Who

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["events"], responses=PROBLEMS)

_STREAM: dict[str, Any] = {
    "response_class": StreamingResponse,
    "responses": {200: {"content": {"text/event-stream": {}}}},
}
_Last = Annotated[str | None, Header(max_length=1000)]


class From(Strict):
    after: Annotated[str | None, Field(max_length=100)] = None
    """id of the last event that is known, for clients that cannot say it by Last-Event-ID"""


@router.get("/events", **_STREAM)
async def events(
    server: Here, client: Who, query: Annotated[From, Query()], last_event_id: _Last = None
) -> StreamingResponse:
    """What happens: job, progress, preview, note, set, queue.

    `reset` comes first if more was missed than is kept: ask again for what you show.
    """
    return await _stream(server, client, None, last_event_id or query.after)


@router.get("/jobs/{job}/events", **_STREAM)
async def job_events(
    server: Here, client: Who, job: str, last_event_id: _Last = None
) -> StreamingResponse:
    """What happens to one job."""
    found = await run_in_threadpool(server.queue.get, job, client)
    return await _stream(server, client, found.id, last_event_id)


async def _stream(
    server: Server, client: str, job: str | None, last: str | None
) -> StreamingResponse:
    listener = server.bus.listen(client, job)
    return StreamingResponse(
        server.bus.stream(listener, last),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
