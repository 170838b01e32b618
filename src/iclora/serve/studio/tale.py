"""What a story comes to before it is made: its canvases, and which images are made on each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from iclora.errors import IcloraError, SettingsError
from iclora.making.words import Story, plan_windows
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here
from iclora.serve.studio.preview import Complaint, task_of
from iclora.sets.caption import JointCaption, estimate_tokens

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["studio"], responses=PROBLEMS)

_Line = Annotated[str, Field(max_length=4000)]
_Number = Annotated[int, Field(ge=1, le=99)]


class Told(Strict):
    """A story while it is written."""

    recipe: Annotated[str | None, Field(max_length=201)] = None
    adapter: Annotated[str | None, Field(max_length=201)] = None
    overview: _Line = ""
    images: Annotated[list[_Line], Field(max_length=99)] = []  # noqa: RUF012 (pydantic copies it)
    anchor: Annotated[list[_Number], Field(max_length=9)] = []  # noqa: RUF012
    fresh: _Number | None = None
    given: Annotated[list[_Number], Field(max_length=99)] = []  # noqa: RUF012


class ShownWindow(BaseModel):
    """One canvas."""

    images: list[int]
    """the image that each panel shows, counted from 1"""
    made: list[int]
    """those that are made on it; empty if it need not be made"""
    tokens: int
    """an estimate"""


class Plan(BaseModel):
    panels: int
    """of a canvas"""
    width: int
    height: int
    """of its first panel, px"""
    windows: list[ShownWindow]
    text: str
    """the story as a job takes it"""
    problem: Complaint | None
    line: int | None
    """the image that the problem concerns; 0 for the overview"""


@router.post("/preview/story", response_model=Plan)
def preview_story(server: Here, told: Told) -> dict[str, Any]:
    """The canvases of a story, without the base."""
    recipe, canvas = task_of(server, told.recipe, told.adapter)
    lines = [" ".join(line.split()) for line in (told.overview, *told.images)]
    found: dict[str, Any] = {
        "panels": canvas.panels,
        "width": canvas.boxes[0][2],
        "height": canvas.boxes[0][3],
        "windows": [],
        "text": "\n".join(lines) + "\n",
        "problem": None,
        "line": None,
    }
    try:
        for number, line in enumerate(lines):
            if _as_read(line) != line:
                found["line"] = number
                raise SettingsError(_why(number, line), "Begin it with a word.", "story")
        story = Story(lines[0], tuple(lines[1:]))
        anchors = told.anchor or [1]
        windows = plan_windows(story, canvas.panels, anchors, told.fresh, told.given)
    except IcloraError as error:
        problem = {"problem": error.problem, "advice": error.advice, "setting": error.setting}
        return found | {"problem": problem}
    shown = set(told.given)
    for window in windows:
        words = [story.images[n - 1] for n in window.images]
        text = JointCaption.join(story.overview, words, recipe.markers, recipe.prefix).render()
        made = [n for n in window.images if n not in shown]
        shown |= set(made)
        row = {"images": window.images, "made": made, "tokens": estimate_tokens(text)}
        found["windows"].append(row)
    return found


def _as_read(line: str) -> str | None:
    """A line as the verb reads it among others; None if it is left out. Raises: SettingsError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "story.txt")
        path.write_text(f"all of it\n{line}\nand on\n", encoding="utf-8")
        images = Story.read(path).images
    return images[0] if len(images) == 2 else None


def _why(number: int, line: str) -> str:
    what = "what all images share" if number == 0 else f"image {number}"
    return f"{what} has no words yet" if not line else f"{what} is read as a comment or a list"
