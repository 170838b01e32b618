"""All that the page asks for at first, in one answer: a tunnel makes each question slow."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from iclora.serve.routes.answers import PROBLEMS
from iclora.serve.routes.datasets import ShownRecipe, list_recipes
from iclora.serve.routes.jobs import JobQuery, QueueState, ShownJob, get_queue, job_page
from iclora.serve.routes.runs import ShownAdapter, list_adapters
from iclora.serve.routes.state import About, about
from iclora.serve.server import Here, Who
from iclora.serve.studio.about import Machine, form, machine
from iclora.serve.studio.drafts import Draft, get_draft

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["studio"], responses=PROBLEMS)

_JOBS = 200


class Start(BaseModel):
    """What the page knows before its first event."""

    event: str
    """id of the last event before this answer: a stream that goes on after it misses nothing"""
    jobs: list[ShownJob]
    """the newest"""
    running: list[ShownJob]
    """those that run, however old"""
    queue: QueueState
    machine: Machine
    about: About
    recipes: list[ShownRecipe]
    adapters: list[ShownAdapter]
    form: dict[str, Any]
    """the JSON schema of what a set that is completed is told"""
    draft: Draft
    """of Make"""


@router.get("/start", response_model=Start)
def start(server: Here, client: Who) -> dict[str, Any]:
    """What the page shows first, as of one moment or a little later."""
    event = server.bus.last
    newest = job_page(server, client, JobQuery(limit=_JOBS))
    live = job_page(server, client, JobQuery(status="running"))
    return {
        "event": event,
        "jobs": newest["jobs"],
        "running": live["jobs"],
        "queue": get_queue(server),
        "machine": machine(server),
        "about": about(server),
        **list_recipes(server),
        **list_adapters(server),
        "form": form("complete"),
        "draft": get_draft(server, client, "make"),
    }
