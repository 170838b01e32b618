"""Datasets as a whole; recipes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from iclora.errors import RecipeError
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here
from iclora.sets.dataset import MANIFEST, open_dataset
from iclora.sets.editing import manifest_of
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


class Chosen(Strict):
    recipe: Annotated[str, Field(min_length=1, max_length=100)]


class Written(BaseModel):
    edit: str
    """of `edits/EDIT/undo`, which takes the change back"""


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


@router.put("/datasets/{name}/recipe", response_model=Written)
def put_recipe(server: Here, name: str, told: Chosen) -> dict[str, Any]:
    """Say which recipe a dataset's sets follow, for a folder that does not say it."""
    path = server.catalog.dataset(name)
    if path.is_file():
        raise Refused(409, f"{name} is a zip, which is only read", "Unpack it.", "recipe")
    changes = manifest_of(*server.catalog.recipe(told.recipe))
    open_dataset(path, server.catalog.recipe(told.recipe)[1])
    edit = server.edits.apply(name, "", changes)
    server.looks.changed()
    return {"edit": edit}


@router.get("/recipes", response_model=Recipes)
def list_recipes(server: Here) -> dict[str, Any]:
    """Tasks that a job may name."""
    found = server.catalog.recipes()
    return {"recipes": [_shown_recipe(name, recipe) for name, recipe in found.items()]}


@router.get("/recipes/{name}", response_model=ShownRecipe)
def get_recipe(server: Here, name: str) -> dict[str, Any]:
    """One task."""
    try:
        return _shown_recipe(name, server.catalog.recipe(name)[0])
    except RecipeError as error:
        raise Refused(404, error.problem, error.advice) from None


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
