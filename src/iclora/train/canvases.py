"""The canvases a run trains at, known as soon as its sets are, or guessed before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iclora.errors import SettingsError
from iclora.sets.check import TrainingSet, check_dataset, training_layouts
from iclora.sets.dataset import Dataset, open_dataset
from iclora.sets.recipe import load_recipe
from iclora.settings import TrainSettings

__all__ = ["Canvases", "CanvasesOf", "canvases_of_sets", "find_canvases", "texts_of"]


@dataclass(frozen=True)
class Canvases:
    """The canvases a run trains at."""

    sets: tuple[tuple[tuple[int, int], ...], ...]
    """Of each set its (width, height) in px."""
    source: str
    """Where they are from, in words."""
    panels: int | None = None
    """Panels of a set; None if nothing tells yet."""

    @property
    def distinct(self) -> list[tuple[int, int]]:
        """All sizes once, by area, the largest last."""
        return sorted({size for sizes in self.sets for size in sizes}, key=lambda s: s[0] * s[1])


CanvasesOf = Callable[[TrainSettings], Canvases]
"""Finds the canvases of a run with other resolutions."""


def find_canvases(settings: TrainSettings, grid: int) -> CanvasesOf:
    """Find the canvases of the dataset; before it is there those of the recipe, or squares.

    Sets with problems count as well, if their pictures can be read.

    Raises: DatasetError, RecipeError; SettingsError if no set can be read.
    """
    if Path(settings.data).exists():
        dataset = open_dataset(settings.data, settings.recipe)
        sides, upscale = settings.resolutions, settings.upscale
        reports = check_dataset(dataset, resolutions=sides, upscale=upscale, grid=grid)
        sets = [report.set for report in reports if report.set]
        if not sets:
            raise SettingsError(
                f"{settings.data} holds no set that can be read", "`iclora check` it.", "data"
            )
        return canvases_of_sets(sets, dataset, grid)
    missing = f"for {settings.data} is not there yet"
    if settings.recipe:
        canvas, source = load_recipe(settings.recipe).canvas, f"of {settings.recipe}, {missing}"

        def of_recipe(other: TrainSettings) -> Canvases:
            layouts = training_layouts(canvas, canvas.sizes, other.resolutions, grid, upscale=True)
            sizes = tuple(layout.size for layout in layouts)
            return Canvases((sizes,), source, canvas.panels)

        return of_recipe

    def squares(other: TrainSettings) -> Canvases:
        sizes = tuple((round(r / grid) * grid,) * 2 for r in sorted(set(other.resolutions)))
        return Canvases((sizes,), f"squares, {missing}")

    return squares


def canvases_of_sets(sets: Sequence[TrainingSet], dataset: Dataset, grid: int) -> CanvasesOf:
    """Find the canvases of checked sets; no picture is decoded again for other resolutions."""

    def canvases(settings: TrainSettings) -> Canvases:
        sizes = []
        for each in sets:
            layouts = training_layouts(
                dataset.recipe.canvas, each.sizes, settings.resolutions, grid, settings.upscale
            )
            sizes.append(tuple(layout.size for layout in layouts))
        source = f"{len(sets)} sets of {settings.data}"
        return Canvases(tuple(sizes), source, dataset.recipe.canvas.panels)

    return canvases


def texts_of(settings: TrainSettings, canvases: Canvases) -> int:
    """How many texts a set has. Raises: SettingsError if that is not known yet."""
    if settings.text == "joint":
        return 1
    if canvases.panels is None:
        raise SettingsError(
            f"with `text` {settings.text} every panel has a text, and nothing says how many panels "
            "a set has",
            "Set `recipe`, or plan when the sets are there.",
            setting="recipe",
        )
    return canvases.panels
