"""Drawings of the embedded base to try things on."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from iclora.serve.jobs import Busy
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here
from iclora.serve.studio.toys import draw_toy_sets

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["studio"], responses=PROBLEMS)


class Drawn(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """of the new dataset"""
    count: Annotated[int, Field(ge=1, le=100)] = 40
    """sets"""


class DrawnAs(BaseModel):
    id: str
    """of the new dataset"""


@router.post("/examples", status_code=201, response_model=DrawnAs)
def draw_examples(server: Here, told: Drawn) -> dict[str, str]:
    """Draw storyboards of toyland with captions, enough to train on; only for that base."""
    if server.base != "toyland":
        raise Refused(409, f"{server.base} would learn nothing of these drawings", "Send your own.")
    server.check_room()
    place = server.catalog.new("data", told.name)
    if place.exists():
        raise Busy(f'there is a dataset "{told.name}" already', "Use another name.")
    draw_toy_sets(place, range(told.count))
    return {"id": f"data~{told.name}"}
