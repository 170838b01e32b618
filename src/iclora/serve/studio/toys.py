"""Recipes, sets and runs of the embedded base, whose panels are 64 px and canvases tiny."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w

from iclora.files import work_folder, write_bytes, write_text
from iclora.sets.check import usual_resolutions
from iclora.sets.editing import manifest_of
from iclora.sets.images import write_png
from iclora.sets.recipe import Recipe
from iclora.settings import StudioSettings
from iclora.toyland.tasks import TASKS, TUNING, draw_tuning_set

__all__ = ["draw_toy_sets", "usual_settings", "with_its_own", "write_toy_recipes", "write_toy_sets"]

_TASK = "film-storyboard"
_EXAMPLES = "toyland-storyboards"
_CLEAR = (0, 1, 3)
"""Drawn sets in which `check` finds nothing: a plain ground looks like a bar."""

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
        recipe = _recipe(task).model_dump(mode="json", exclude_none=True)
        recipe["layout"] = {key: value for key, value in recipe["layout"].items() if value}
        write_text(path, tomli_w.dumps(recipe))
        written.append(name)
    return written


def write_toy_sets(folder: Path) -> bool:
    """Draw three example sets into a folder that has no datasets.

    Returns: True if they were drawn. Raises: StorageError.
    """
    if (folder / "data").exists():
        return False
    draw_toy_sets(folder / "data" / _EXAMPLES, _CLEAR)
    return True


def draw_toy_sets(folder: Path, numbers: Iterable[int]) -> None:
    """Draw a dataset of storyboards with their captions.

    Args:
        numbers: of the tuning sets, from 0.
    Raises: StorageError if it is there.
    """
    task = TASKS[_TASK]
    with work_folder(folder) as work:
        for file, data in manifest_of(_recipe(_TASK), "").items():
            write_bytes(work / file, data or b"")
        for name, number in enumerate(numbers, 1):
            canvas, caption = draw_tuning_set(task, 0, number)
            place = work / f"{name:04d}"
            for i, panel in enumerate(canvas.panels, 1):
                write_png(place / f"{i}.png", panel.render())
            write_text(place / "caption.txt", caption.text + "\n")


def _recipe(task: str) -> Recipe:
    """A task's recipe by the name under which the page lists it."""
    return TASKS[task].small_recipe.model_copy(update={"name": _SHOWN[task]})


def with_its_own(settings: StudioSettings, base: str) -> StudioSettings:
    """The settings of a studio; of the embedded base it offers its captioner and its judge, too."""
    if base != "toyland":
        return settings
    own = {name: getattr(settings, name) or ("toyland",) for name in ("captioner", "metric")}
    return settings.model_copy(update=own)


def usual_settings(recipe: Recipe | None) -> dict[str, Any]:
    """Settings of a run of the embedded base, short enough to wait for on a CPU.

    Args:
        recipe: of its sets, whose canvas it is trained on as it is.
    """
    sides = usual_resolutions(recipe) if recipe else (128,)
    steps = TUNING["steps"] // 4
    return {
        **TUNING,
        "steps": steps,
        "resolutions": list(sides),
        "conditional": 0.5,  # It then also completes sets, which Make is about.
        "save_every": steps // 3,
        "preview_every": steps // 3,
        "preview_resolution": max(sides),
    }
