"""iclora.toml: the recipe that the sets of a dataset follow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from iclora.errors import DatasetError, RecipeError
from iclora.files.documents import decode, parse_json, parse_toml
from iclora.sets.listing import Files, Problem
from iclora.sets.recipe import Recipe, load_recipe, meant, read_recipe, recipe_names
from iclora.sets.unread import is_image

__all__ = ["MANIFEST", "common_folder", "manifest_recipe", "other_manifests"]

MANIFEST = "iclora.toml"
_HERE = PurePosixPath()
_MANIFEST_SIZE = 2**20
_REQUEST_SIZE = 2**24


def other_manifests(listing: Files, root: PurePosixPath, chosen: Recipe) -> list[Problem]:
    """Folders below the root that say they are a dataset of another recipe."""
    problems = []
    for name in _manifests(listing):
        if name.parent == root or not name.is_relative_to(root):
            continue
        try:
            data = listing[name.as_posix()].read(_MANIFEST_SIZE)
            own = parse_toml(data, name.as_posix(), DatasetError)["recipe"]
        except (KeyError, DatasetError):
            own = "?"
        if own != chosen.name:
            problems.append(
                Problem(
                    name.as_posix(),
                    f'this folder has an {MANIFEST} of its own, for the recipe "{own}", and its '
                    f'sets are read as "{chosen.name}"',
                    "Open that folder by itself, or remove the file.",
                )
            )
    return problems


def _manifests(listing: Files) -> list[PurePosixPath]:
    """Those of a folder once more in other letters, as some disks and archives write names."""
    return [PurePosixPath(n) for n in listing if n.rpartition("/")[2].lower() == MANIFEST]


def common_folder(listing: Files) -> PurePosixPath:
    """The folder that holds the manifest, or else the deepest that holds every image."""
    if manifests := _manifests(listing):
        return min(manifests, key=lambda p: len(p.parts)).parent
    # "x" makes every path relative to one folder, which commonpath demands.
    folders = [f"x/{PurePosixPath(n).parent}" for n in listing if is_image(n)]
    return PurePosixPath(os.path.commonpath(folders)).relative_to("x") if folders else _HERE


def manifest_recipe(
    path: Path, listing: Files, root: PurePosixPath, unlisted: Sequence[Problem] = ()
) -> tuple[Recipe, list[Problem]]:
    """The recipe that a dataset names.

    Args:
        path: the dataset, for errors.
        root: the folder in the listing that holds the manifest.
        unlisted: what could not be listed, perhaps the manifest.
    Returns: it, and what the manifest says that nothing reads; of sets that iclora made and that
        have no manifest, the one recipe that all were made by.
    Raises: DatasetError without a manifest or a recipe in it; RecipeError.
    """
    found = sorted(each.as_posix() for each in _manifests(listing) if each.parent == root)
    if not found:
        lost = next((p for p in unlisted if PurePosixPath(p.subject).name == MANIFEST), None)
        if lost:
            raise DatasetError(f"{path}/{lost.subject}: {lost.text}", lost.advice)
        if (made := _recipes_of_requests(listing)) and made <= {*recipe_names()} and len(made) == 1:
            return load_recipe(made.pop()), []
        raise DatasetError(
            f"{path} does not say which recipe its sets follow (it has no {MANIFEST})",
            f'Name the `recipe`, or write {MANIFEST} with the line recipe = "film-storyboard".',
            setting="recipe",
        )
    # In small letters, if there are several.
    name = found[-1]
    told = parse_toml(listing[name].read(_MANIFEST_SIZE), f"{path}/{name}", DatasetError)
    needs = 'It needs one line such as recipe = "film-storyboard".'
    if "recipe" not in told:
        raise DatasetError(f"{path}/{name} names no recipe", needs)
    recipe = told.pop("recipe")
    if not isinstance(recipe, str):
        raise DatasetError(f"{path}/{name} names no recipe, but {recipe!r}", needs)
    more = [
        Problem(name, f'nothing reads "{key}" in it', f"Remove that line. {needs}", "warning")
        for key in told
    ]
    own = (root / recipe).as_posix()
    if recipe not in recipe_names() and own in listing:
        data = listing[own].read(_MANIFEST_SIZE)
        text = decode(data, f"{path}/{own}", RecipeError)
        return read_recipe(text, f"{path}/{own}"), more
    if recipe not in recipe_names():
        # Not a path elsewhere: a dataset must not make its reader open other files.
        raise RecipeError(
            f'{path}/{name} names the recipe "{recipe}", which is neither one of iclora\'s nor a '
            "file beside it",
            f"{meant(recipe)}Use one of {', '.join(recipe_names())}, or put the TOML file "
            "into the dataset.",
        )
    return load_recipe(recipe), more


def _recipes_of_requests(listing: Files) -> set[str]:
    """The recipes of the requests beside made sets; "" stands for one that cannot be told."""
    found = set()
    for name in listing:
        if name.rpartition("/")[2] != "request.json":
            continue
        try:
            told = parse_json(listing[name].read(_REQUEST_SIZE), name, DatasetError)
        except DatasetError:
            told = None
        recipe = told.get("recipe") if isinstance(told, dict) else None
        found.add(recipe if isinstance(recipe, str) else "")
    return found
