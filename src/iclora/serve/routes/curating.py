"""Changes of a dataset's sets by hand, each with a way back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from iclora.errors import IcloraError, SettingsError
from iclora.serve.assets import suffix_of
from iclora.serve.looks import stamp
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.routes.imagesets import Match, ShownImageSet, check_match, set_of, shown
from iclora.serve.server import Here, Server
from iclora.sets.dataset import Dataset, ImageSet
from iclora.sets.editing import (
    Changes,
    boxes_by_hand,
    leave_out_panel,
    leave_out_set,
    replace_panel,
    swap_panels,
)

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/datasets", tags=["datasets"], responses=PROBLEMS)

_Number = Annotated[int, Field(ge=1, le=9)]


class Placed(Strict):
    boxes: Annotated[list[tuple[int, int, int, int]], Field(min_length=2, max_length=9)]
    """left, top, width and height of each panel, px of the composite"""


class PanelChange(Strict):
    do: Literal["swap", "replace", "leave_out"]
    panel: _Number
    other: _Number | None = None
    """for a swap: the panel that it changes places with"""
    picture: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")] = None
    """for a replacement: the hash of a picture that was sent"""


class Changed(BaseModel):
    edit: str
    """of `edits/EDIT/undo`, which takes the change back"""
    set: ShownImageSet | None
    """null if it was left out"""


@router.put("/{name}/sets/{image_set}/boxes", response_model=Changed)
def put_boxes(
    server: Here, name: str, image_set: str, told: Placed, if_match: Match = None
) -> dict[str, Any]:
    """Place the panels of a composite by hand; its picture file keeps the boxes."""
    dataset, found = _matched(server, name, image_set, if_match)
    changes, _ = boxes_by_hand(dataset, found, told.boxes)
    return _apply(server, name, image_set, changes)


@router.post("/{name}/sets/{image_set}/panels", response_model=Changed)
def change_panels(
    server: Here, name: str, image_set: str, told: PanelChange, if_match: Match = None
) -> dict[str, Any]:
    """Swap two panels, put another picture in a panel's place, or leave one out."""
    dataset, found = _matched(server, name, image_set, if_match)
    if told.do == "swap":
        if told.other is None:
            raise SettingsError("a swap needs two panels", "Name the other in `other`.", "other")
        changes = swap_panels(dataset, found, told.panel, told.other)
    elif told.do == "replace":
        if told.picture is None:
            advice = "Send one, and name it in `picture`."
            raise SettingsError("no picture is named", advice, "picture")
        data = server.assets.path(told.picture).read_bytes()
        changes = replace_panel(dataset, found, told.panel, data, suffix_of(data))
    else:
        changes = leave_out_panel(dataset, found, told.panel)
    return _apply(server, name, image_set, changes)


@router.delete("/{name}/sets/{image_set}", response_model=Changed)
def leave_out(server: Here, name: str, image_set: str, if_match: Match = None) -> dict[str, Any]:
    """Leave a set out of its dataset, with a way back."""
    dataset, found = _matched(server, name, image_set, if_match)
    if len(dataset.sets) == 1:
        raise Refused(409, "this is the dataset's last set", "Remove the dataset's folder instead.")
    return _apply(server, name, image_set, leave_out_set(dataset, found))


@router.post("/{name}/edits/{edit}/undo", response_model=Changed)
def undo_edit(server: Here, name: str, edit: str) -> dict[str, Any]:
    """Take a change back: 412 if a file was changed since."""
    image_set = server.edits.undo(name, edit)
    return _now(server, name, image_set, "")


# -- parts --------------------------------------------------------------------------------------


def _apply(server: Server, name: str, image_set: str, changes: Changes) -> dict[str, Any]:
    return _now(server, name, image_set, server.edits.apply(name, image_set, changes))


def _now(server: Server, name: str, image_set: str, edit: str) -> dict[str, Any]:
    server.looks.changed()
    try:
        dataset = server.looks.dataset(name)
    except IcloraError:
        return {"edit": edit, "set": None}
    found = next((each for each in dataset.sets if each.name == image_set), None)
    return {"edit": edit, "set": shown(dataset, found) if found else None}


def _matched(
    server: Server, name: str, image_set: str, if_match: str | None
) -> tuple[Dataset, ImageSet]:
    dataset = server.looks.dataset(name)
    found = set_of(dataset, image_set)
    check_match(if_match, f'"{stamp(dataset, found)}"', f'the pictures of "{found.name}"')
    return dataset, found
