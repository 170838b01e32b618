"""Recipes and runs for the embedded base, whose panels are 64 px: the shipped are a megapixel."""

from __future__ import annotations

from math import ceil, sqrt
from pathlib import Path
from typing import Any

import tomli_w

from iclora.files import write_text
from iclora.sets.recipe import Recipe
from iclora.settings import StudioSettings
from iclora.toyland.tasks import TASKS, TUNING

__all__ = ["usual_settings", "with_its_own", "write_toy_recipes"]

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


def with_its_own(settings: StudioSettings, base: str) -> StudioSettings:
    """The settings of a studio; of the embedded base it offers its captioner and its judge, too."""
    if base != "toyland":
        return settings
    own = {name: getattr(settings, name) or ("toyland",) for name in ("captioner", "metric")}
    return settings.model_copy(update=own)


def usual_settings(recipe: Recipe | None) -> dict[str, Any]:
    """Settings of a run of the embedded base, a few minutes long on a CPU.

    Args:
        recipe: of its sets, whose canvas it is trained on as it is.
    """
    side = ceil(sqrt(recipe.canvas.width * recipe.canvas.height)) if recipe else 128
    often = TUNING["steps"] // 6
    return {
        **TUNING,
        "resolutions": [side],
        "conditional": 0.5,  # It then also completes sets, which Make is about.
        "held_out": 0.1,
        "save_every": often,
        "preview_every": often,
        "preview_resolution": side,
    }
