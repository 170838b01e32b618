"""Recipes for the embedded base, whose panels are 64 px: the shipped ones are a megapixel."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from iclora.files import write_text
from iclora.toyland.tasks import TASKS

__all__ = ["write_toy_recipes"]

_SHOWN = {
    "film-storyboard": "toyland-storyboard",
    "portrait-photography": "toyland-portraits",
    "home-decoration": "toyland-rooms",
    "visual-identity": "toyland-identity",
}


def write_toy_recipes(folder: Path) -> list[str]:
    """Write toyland's recipes into FOLDER/recipes, those that are not there.

    Returns: names of the new ones. Raises: StorageError.
    """
    written = []
    for task, name in _SHOWN.items():
        path = folder / "recipes" / f"{name}.toml"
        if path.exists():
            continue
        recipe = TASKS[task].small_recipe.model_dump(mode="json", exclude_none=True)
        recipe["name"] = name
        recipe["layout"] = {key: value for key, value in recipe["layout"].items() if value}
        write_text(path, tomli_w.dumps(recipe))
        written.append(name)
    return written
