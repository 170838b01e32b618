"""The sets of a dataset: their words, what `check` finds, their pictures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from iclora.errors import CaptionError, IcloraError
from iclora.files import write_text
from iclora.serve.looks import Look, View, stamp
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here
from iclora.sets.dataset import Dataset, ImageSet, caption_path
from iclora.sets.layout import Layout

__all__ = ["Canvas", "Match", "ShownImageSet", "check_match", "router", "set_of", "shown"]

router = APIRouter(prefix="/api/v1/datasets", tags=["datasets"], responses=PROBLEMS)

Match = Annotated[str | None, Header(max_length=1000)]
_Number = Annotated[int, Field(ge=1, le=9)]
_RecipeName = Annotated[str | None, Query(max_length=100)]
_SIDES = (192, 384, 768, 1536)
_AT_ONCE = 2.0
"""Seconds of looking for one answer."""


class ShownImageSet(BaseModel):
    """A set of a dataset."""

    name: str
    images: list[str]
    composite: bool
    caption: str | None
    """null if it has none, or none that can be read"""
    etag: str
    """of the caption, for If-Match"""
    stamp: str
    """of the pictures, for If-Match; it changes whenever they do"""


class Form(BaseModel):
    """A recipe as the sets of a dataset follow it, whatever is called by its name elsewhere."""

    name: str
    prefix: str
    markers: list[str]
    example: str
    per_row: list[int]
    width: int
    height: int
    boxes: list[list[int]]


class ImageSets(BaseModel):
    recipe: str
    form: Form
    problems: list[str]
    total: int
    sets: list[ShownImageSet]
    cursor: int | None


class Finding(BaseModel):
    severity: Literal["error", "warning"]
    text: str
    advice: str
    caption: bool
    """true if it concerns the words and not the pictures"""


class Canvas(BaseModel):
    """A canvas and its panels, px."""

    width: int
    height: int
    boxes: list[list[int]]


class Findings(BaseModel):
    """What `check` finds at a set."""

    name: str
    tokens: int | None
    problems: list[Finding]


class Checked(BaseModel):
    sets: list[Findings]
    cursor: int | None


class OneImageSet(ShownImageSet, Findings):
    limit: int
    exact: bool
    """false if tokens are an estimate, since the base's tokenizer is not at hand"""
    sizes: list[list[int]]
    """of each panel as it is read, px"""
    canvas: Canvas | None
    """the largest that is trained on; null if there is none"""
    canvases: int
    """how many of different sizes are trained on"""
    stretch: list[float]
    """how far each panel is off its picture's shape on that canvas; 1 is exact"""


class Borders(Canvas):
    """Where the panels of a composite lie in its picture."""

    unseen: int
    """borders that do not show, so that their usual place stands"""


class ImageSetQuery(Strict):
    recipe: Annotated[str | None, Field(max_length=100)] = None
    cursor: Annotated[int, Field(ge=0, le=10**7)] = 0
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class PictureQuery(Strict):
    view: View = "trained"
    n: _Number = 1
    side: Annotated[int, Field(ge=1, le=1536)] = 768
    """px that no side is longer than; rounded up to one of four sizes"""
    v: Annotated[str, Field(max_length=100)] = ""
    """anything that tells pictures apart that a browser may keep, such as the stamp"""


class Caption(Strict):
    caption: Annotated[str, Field(min_length=1, max_length=20_000)]


class Words(Strict):
    caption: Annotated[str, Field(max_length=20_000)]


class Judged(BaseModel):
    """A caption that is being written."""

    tokens: int
    limit: int
    exact: bool
    problem: str
    """empty if it could be written"""
    advice: str


@router.get("/{name}/sets", response_model=ImageSets)
def list_image_sets(
    server: Here, name: str, query: Annotated[ImageSetQuery, Query()]
) -> dict[str, Any]:
    """The sets of a dataset with their captions, in order."""
    dataset = server.looks.dataset(name, query.recipe)
    page = dataset.sets[query.cursor : query.cursor + query.limit]
    end = query.cursor + len(page)
    return {
        "recipe": dataset.recipe.name,
        "form": _form(dataset),
        "problems": [str(problem) for problem in dataset.problems][:100],
        "total": len(dataset.sets),
        "sets": [shown(dataset, each) for each in page],
        "cursor": end if end < len(dataset.sets) else None,
    }


@router.get("/{name}/check", response_model=Checked)
def check_image_sets(
    server: Here, name: str, query: Annotated[ImageSetQuery, Query()]
) -> dict[str, Any]:
    """What `check` finds at sets, as many as can be looked at in two seconds."""
    dataset = server.looks.dataset(name, query.recipe, fresh=False)
    until, found, at = time.monotonic() + _AT_ONCE, [], query.cursor
    while at < min(len(dataset.sets), query.cursor + query.limit) and time.monotonic() < until:
        look = server.looks.look(dataset, dataset.sets[at])
        found.append(_findings(look))
        at += 1
    return {"sets": found, "cursor": at if at < len(dataset.sets) else None}


@router.post("/{name}/words", response_model=Judged)
def judge_words(server: Here, name: str, told: Words, recipe: _RecipeName = None) -> dict[str, Any]:
    """Count the tokens of a caption that is being written, and say if it could be written."""
    dataset = server.looks.dataset(name, recipe, fresh=False)
    counter = server.tokens.counter()
    problem = advice = ""
    try:
        dataset.recipe.parse(told.caption)
    except CaptionError as error:
        problem, advice = error.problem, error.advice
    tokens = counter.count(told.caption) if told.caption.strip() else 0
    return {
        "tokens": tokens,
        "limit": counter.limit,
        "exact": counter.exact,
        "problem": problem,
        "advice": advice,
    }


@router.get("/{name}/sets/{image_set}", response_model=OneImageSet)
def get_image_set(
    server: Here, name: str, image_set: str, recipe: _RecipeName = None
) -> dict[str, Any]:
    """One set, with what `check` finds at it and the canvas that it is trained on."""
    dataset = server.looks.dataset(name, recipe)
    found = set_of(dataset, image_set)
    look, counter = server.looks.look(dataset, found), server.tokens.counter()
    ready = look.report.set
    layout = ready.layouts[-1] if ready else None
    return {
        **shown(dataset, found),
        **_findings(look),
        "limit": counter.limit,
        "exact": counter.exact,
        "sizes": [list(size) for size in look.report.sizes],
        "canvas": _canvas(layout) if layout else None,
        "canvases": len(ready.layouts) if ready else 0,
        "stretch": layout.stretch(ready.sizes) if layout and ready else [],
    }


@router.get("/{name}/sets/{image_set}/picture.webp", response_class=FileResponse)
def get_image_set_picture(
    server: Here, name: str, image_set: str, query: Annotated[PictureQuery, Query()]
) -> FileResponse:
    """A set as a trainer sees it, one of its panels, or one of its files."""
    dataset = server.looks.dataset(name, fresh=False)
    found = set_of(dataset, image_set)
    side = next(each for each in _SIDES if each >= query.side)
    path = server.looks.picture(dataset, found, query.view, query.n, side)
    kept = "private, max-age=31536000, immutable" if query.v else "no-cache"
    return FileResponse(path, media_type="image/webp", headers={"Cache-Control": kept})


@router.put("/{name}/sets/{image_set}/caption", response_model=ShownImageSet)
def put_caption(
    server: Here,
    name: str,
    image_set: str,
    told: Caption,
    response: Response,
    if_match: Match = None,
    recipe: _RecipeName = None,
) -> dict[str, Any]:
    """Write a set's caption: 428 without If-Match, 412 if it was changed on the disk meanwhile."""
    dataset = server.looks.dataset(name, recipe)
    found = set_of(dataset, image_set)
    check_match(if_match, _etag(found), f'the caption of "{found.name}"')
    if dataset.path.is_file():
        raise Refused(409, f"{name} is a zip, which is only read", "Unpack it.")
    dataset.recipe.parse(told.caption)
    path = caption_path(dataset, found)
    if not server.catalog.inside(path):
        raise Refused(404, f'the caption of "{found.name}" lies elsewhere', "Copy it here.")
    write_text(path, told.caption.strip() + "\n")
    server.looks.changed()
    dataset = server.looks.dataset(name, recipe)
    now = set_of(dataset, image_set)
    response.headers["ETag"] = _etag(now)
    return shown(dataset, now)


@router.get("/{name}/sets/{image_set}/boxes", response_model=Borders)
def get_boxes(
    server: Here, name: str, image_set: str, recipe: _RecipeName = None
) -> dict[str, Any]:
    """Where the panels of a composite lie in its picture."""
    dataset = server.looks.dataset(name, recipe)
    measured = set_of(dataset, image_set).measure(dataset.recipe)
    if measured.found is None:
        raise Refused(409, "this set has a file for each panel", "Replace a panel instead.")
    return {**_canvas(measured.found), "unseen": measured.unseen_seams}


# -- parts --------------------------------------------------------------------------------------


def check_match(told: str | None, now: str, what: str) -> None:
    if told is None:
        raise Refused(428, "If-Match is missing", "Send the `etag` or stamp of what you saw.")
    if told != now:
        raise Refused(412, f"{what} changed meanwhile", "Look again.")


def set_of(dataset: Dataset, name: str) -> ImageSet:
    found = next((each for each in dataset.sets if each.name == name), None)
    if found is None:
        raise Refused(404, f'there is no set "{name[:80]}" in it', "List its sets.")
    return found


def _etag(image_set: ImageSet) -> str:
    return f'"{hashlib.sha256(image_set.caption_bytes()).hexdigest()[:32]}"'


def shown(dataset: Dataset, image_set: ImageSet) -> dict[str, Any]:
    try:
        caption: str | None = image_set.caption()
    except IcloraError:
        caption = None
    return {
        "name": image_set.name,
        "images": list(image_set.images),
        "composite": image_set.composite,
        "caption": caption,
        "etag": _etag(image_set),
        "stamp": stamp(dataset, image_set),
    }


def _findings(look: Look) -> dict[str, Any]:
    names = ("severity", "text", "advice", "caption")
    said = [{name: getattr(each, name) for name in names} for each in look.problems]
    return {"name": look.report.name, "tokens": look.report.tokens, "problems": said}


def _canvas(layout: Layout) -> dict[str, Any]:
    boxes: Sequence[Sequence[int]] = layout.boxes
    return {"width": layout.width, "height": layout.height, "boxes": [list(b) for b in boxes]}


def _form(dataset: Dataset) -> dict[str, Any]:
    recipe = dataset.recipe
    return {
        "name": recipe.name,
        "prefix": recipe.prefix,
        "markers": list(recipe.markers),
        "example": recipe.example,
        "per_row": list(recipe.canvas.per_row),
        **_canvas(recipe.canvas),
    }
