"""Datasets and their captions; recipes."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, Field

from iclora.errors import IcloraError
from iclora.files import write_text
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here
from iclora.sets.dataset import MANIFEST, Dataset, ImageSet, caption_path, open_dataset
from iclora.sets.kinds import IMAGE_SUFFIXES
from iclora.sets.recipe import Recipe

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["datasets"], responses=PROBLEMS)


class ShownDataset(BaseModel):
    """A dataset of the served folder."""

    id: str
    kind: str
    """folder or zip"""


class Datasets(BaseModel):
    datasets: list[ShownDataset]


class ShownImageSet(BaseModel):
    """A set of a dataset."""

    name: str
    images: list[str]
    composite: bool
    caption: str | None
    """null if it has none, or none that can be read"""
    etag: str
    """for If-Match"""


class ImageSets(BaseModel):
    recipe: str
    problems: list[str]
    sets: list[ShownImageSet]
    cursor: int | None


class ImageSetQuery(Strict):
    recipe: Annotated[str | None, Field(max_length=100)] = None
    cursor: Annotated[int, Field(ge=0, le=10**7)] = 0
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class Caption(Strict):
    caption: Annotated[str, Field(min_length=1, max_length=20_000)]


class ShownRecipe(BaseModel):
    """A task: its layout, markers and prompt form."""

    name: str
    summary: str
    prefix: str
    markers: list[str]
    example: str
    width: int
    height: int
    boxes: list[list[int]]
    """each panel's left, top, width and height, px"""
    usually_given: list[int]


class Recipes(BaseModel):
    recipes: list[ShownRecipe]


@router.get("/datasets", response_model=Datasets)
def list_datasets(server: Here) -> dict[str, Any]:
    """Folders and zips that hold pictures."""
    found = {
        name: path
        for name, path in server.catalog.datasets().items()
        if path.is_file() or _has_pictures(path)
    }
    kinds = {name: "zip" if path.is_file() else "folder" for name, path in found.items()}
    return {"datasets": [{"id": name, "kind": kind} for name, kind in kinds.items()]}


@router.get("/datasets/{name}/sets", response_model=ImageSets)
def list_image_sets(
    server: Here, name: str, query: Annotated[ImageSetQuery, Query()]
) -> dict[str, Any]:
    """The sets of a dataset with their captions, in order."""
    dataset = _open(server, name, query.recipe)
    page = dataset.sets[query.cursor : query.cursor + query.limit]
    end = query.cursor + len(page)
    return {
        "recipe": dataset.recipe.name,
        "problems": [str(problem) for problem in dataset.problems][:100],
        "sets": [_shown(each) for each in page],
        "cursor": end if end < len(dataset.sets) else None,
    }


@router.put("/datasets/{name}/sets/{image_set}/caption", response_model=ShownImageSet)
def put_caption(
    server: Here,
    name: str,
    image_set: str,
    told: Caption,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=1000)] = None,
    recipe: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """Write a set's caption: 428 without If-Match, 412 if it was changed on the disk meanwhile."""
    if if_match is None:
        raise Refused(428, "If-Match is missing", "Send the `etag` of the caption that you saw.")
    dataset = _open(server, name, recipe)
    found = _of(dataset, image_set)
    if if_match != _etag(found):
        raise Refused(412, f'the caption of "{found.name}" was changed meanwhile', "Look again.")
    if dataset.path.is_file():
        raise Refused(409, f"{name} is a zip, which is only read", "Unpack it.")
    dataset.recipe.parse(told.caption)
    path = caption_path(dataset, found)
    if not server.catalog.inside(path):
        raise Refused(404, f'the caption of "{found.name}" lies elsewhere', "Copy it here.")
    write_text(path, told.caption.strip() + "\n")
    now = _of(_open(server, name, recipe), image_set)
    response.headers["ETag"] = _etag(now)
    return _shown(now)


@router.get("/recipes", response_model=Recipes)
def list_recipes(server: Here) -> dict[str, Any]:
    """Tasks that a job may name."""
    found = server.catalog.recipes()
    return {"recipes": [_shown_recipe(name, recipe) for name, recipe in found.items()]}


@router.get("/recipes/{name}", response_model=ShownRecipe)
def get_recipe(server: Here, name: str) -> dict[str, Any]:
    """One task."""
    known = server.catalog.recipes()
    if name not in known:
        raise Refused(404, f'there is no recipe "{name[:80]}"', "List the recipes.")
    return _shown_recipe(name, known[name])


def _open(server: Here, name: str, recipe: str | None) -> Dataset:
    known = server.catalog.datasets()
    if name not in known:
        raise Refused(404, f'there is no dataset "{name[:80]}"', "List the datasets.")
    chosen = server.catalog.recipe(recipe)[1] if recipe is not None else None
    return open_dataset(known[name], chosen)


def _of(dataset: Dataset, name: str) -> ImageSet:
    found = next((each for each in dataset.sets if each.name == name), None)
    if found is None:
        raise Refused(404, f'there is no set "{name[:80]}" in it', "List its sets.")
    return found


def _etag(image_set: ImageSet) -> str:
    return f'"{hashlib.sha256(image_set.caption_bytes()).hexdigest()[:32]}"'


def _shown(image_set: ImageSet) -> dict[str, Any]:
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
    }


def _shown_recipe(name: str, recipe: Recipe) -> dict[str, Any]:
    canvas = recipe.canvas
    return {
        "name": name,
        "summary": recipe.summary,
        "prefix": recipe.prefix,
        "markers": list(recipe.markers),
        "example": recipe.example,
        "width": canvas.width,
        "height": canvas.height,
        "boxes": [list(box) for box in canvas.boxes],
        "usually_given": list(recipe.usually_known),
    }


def _has_pictures(folder: Any) -> bool:
    """True if a folder may be a dataset, by a look at what lies at its top."""
    if (folder / MANIFEST).is_file():
        return True
    try:
        for number, path in enumerate(sorted(folder.iterdir())):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                return True
            inner = path.is_dir() and number < 20
            if inner and any(each.suffix.lower() in IMAGE_SUFFIXES for each in path.iterdir()):
                return True
    except OSError:
        return False
    return False
