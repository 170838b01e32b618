"""What a wish comes to before it is made: its canvas, what becomes of given panels, notes.

The same functions decide it in `making`; what only the base knows (tokens, letters) is said by the
job.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from iclora.errors import CaptionError, SettingsError
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here, Server
from iclora.sets.around import canvas_around
from iclora.sets.caption import estimate_tokens
from iclora.sets.images import open_image
from iclora.sets.layout import GRID, Layout
from iclora.sets.recipe import Recipe

__all__ = ["Complaint", "router", "task_of"]

router = APIRouter(prefix="/api/v1", tags=["studio"], responses=PROBLEMS)

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Wished(Strict):
    """As much of a wish as is there while it is being written."""

    recipe: Annotated[str | None, Field(max_length=201)] = None
    adapter: Annotated[str | None, Field(max_length=201)] = None
    size: tuple[int, int] | None = None
    prompt: Annotated[str, Field(max_length=20_000)] = ""
    given: dict[Annotated[int, Field(ge=1, le=9)], _Hash] = {}  # noqa: RUF012 (pydantic copies it)


class PanelNote(BaseModel):
    panel: int
    text: str
    exact: bool
    """true if the picture goes into the set pixel for pixel"""


class Complaint(BaseModel):
    problem: str
    advice: str
    setting: str | None


class Preview(BaseModel):
    """What would be made."""

    width: int
    height: int
    boxes: list[list[int]]
    """each panel's left, top, width and height, px"""
    panels: list[PanelNote]
    notes: list[str]
    """of the prompt"""
    tokens: int
    """an estimate; the job counts them with the base's own tokenizer"""
    problem: Complaint | None
    """why this would be refused"""


@router.post("/preview", response_model=Preview)
def preview(server: Here, wished: Wished) -> dict[str, Any]:
    """What a wish comes to, without the base."""
    recipe, usual = task_of(server, wished.recipe, wished.adapter)
    sizes = {}
    pictures = {}
    for number, sha256 in wished.given.items():
        pictures[number] = open_image(server.assets.path(sha256))
        sizes[number] = pictures[number].size
    problem, canvas = None, usual
    try:
        canvas = canvas_around(usual, sizes, wished.size, GRID)
    except SettingsError as error:
        problem = {"problem": error.problem, "advice": error.advice, "setting": "given"}
    panels = []
    for number, picture in pictures.items():
        fitted = canvas.fit_panel(number, picture).size
        panels.append(_note_of_panel(number, picture.size, fitted))
    notes: list[str] = []
    if wished.prompt.strip():
        try:
            notes = recipe.prompt(wished.prompt)[1]
        except CaptionError as error:
            problem = {"problem": error.problem, "advice": error.advice, "setting": "prompt"}
    return {
        "width": canvas.width,
        "height": canvas.height,
        "boxes": [list(box) for box in canvas.boxes],
        "panels": panels,
        "notes": notes,
        "tokens": estimate_tokens(wished.prompt),
        "problem": problem,
    }


def task_of(server: Server, name: str | None, adapter: str | None) -> tuple[Recipe, Layout]:
    """The recipe, and its usual canvas: the adapter's, if it was trained on this task."""
    carried = None
    if adapter:
        carried = server.catalog.adapter(adapter)
    if name:
        recipe = server.catalog.recipe(name)[0]
    elif carried and carried.recipe:
        recipe = carried.recipe
    else:
        raise SettingsError("no recipe is chosen", "Choose one.", "recipe")
    same = carried and carried.recipe and carried.recipe.same_task(recipe)
    return recipe, carried.layout if same and carried and carried.layout else recipe.canvas


def _note_of_panel(
    number: int, size: tuple[int, int], fitted: tuple[int, int]
) -> dict[str, object]:
    if size == fitted:
        said = "pixel for pixel"
    else:
        said = (
            f"{size[0]} \u00d7 {size[1]} px, in the composite {fitted[0]} \u00d7 {fitted[1]}; "
            "your file is kept"
        )
    return {"panel": number, "text": said, "exact": size == fitted}
