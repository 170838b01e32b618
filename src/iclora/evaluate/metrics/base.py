"""The contract every metric meets: made sets in, figures out; and the figures of bare pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.making.request import fit_given
from iclora.sets.canvas import split
from iclora.sets.layout import Box, Layout
from iclora.sets.recipe import Recipe

__all__ = ["Figures", "Made", "Metric", "Pixels", "made_pairs", "seam", "spread"]

Figures = dict[str, float]
"""What was measured, by the figure's name."""


@dataclass(frozen=True)
class Made:
    """A made set as a metric sees it.

    Attributes:
        recipe: what kind of set it is to be.
        words: each panel's own words; empty where the prompt has no markers.
        given: pictures of the panels that were known, by number counted from 1.
    """

    recipe: Recipe
    layout: Layout
    composite: Image.Image
    panels: tuple[Image.Image, ...]
    words: tuple[str, ...]
    given: Mapping[int, Image.Image] = field(default_factory=dict)

    @property
    def own(self) -> list[int]:
        """Indices, from 0, of the panels that the base made."""
        return [n for n in range(len(self.panels)) if n + 1 not in self.given]


class Metric(ABC):
    """What turns sets into figures. To add one: a class, and an entry in `load.METRICS`.

    Attributes:
        name: a short one, which the names of its figures begin with.
        main: the figure by which the best of several sets is chosen; higher is better.
        figures: what each figure means, by name; higher is better unless it says so.
        source: the model or rule behind it, for the report.
        notes: what a reader of its figures should know, known once it has measured.
    """

    name: ClassVar[str]
    main: ClassVar[str]
    figures: ClassVar[Mapping[str, str]]

    def __init__(self, source: str) -> None:
        self.source = source
        self.notes: list[str] = []

    def check(self, recipe: Recipe) -> None:
        """Called before anything is made. Raises: SettingsError if it knows no such sets."""
        del recipe

    @abstractmethod
    def of_sets(self, sets: Sequence[Made]) -> Iterator[Figures]:
        """Figures of each set alone, in order; one that could not be measured is left out."""

    def across_seeds(self, sets: Sequence[Made]) -> Figures:
        """Figures of two or more sets that differ in their seed alone; none by default."""
        del sets
        return {}


def made_pairs(made: Made) -> list[tuple[int, int]]:
    """Pairs of panels, from 0, at least one of which the base made."""
    every = combinations(range(len(made.panels)), 2)
    return [(a, b) for a, b in every if a in made.own or b in made.own]


def spread(sets: Sequence[Made], unlike: Callable[[int, int, int], float]) -> float:
    """Mean unlikeness of the same panel in two of the sets, over all made panels and pairs.

    Args:
        unlike: of (set, other set, panel), from 0.
    """
    found = [
        unlike(a, b, panel) for a, b in combinations(range(len(sets)), 2) for panel in sets[a].own
    ]
    return float(np.mean(found))


class Pixels(Metric):
    """What needs no model: whether known panels came back, and whether panels have borders."""

    name = "pixels"
    main = "seam"
    figures: ClassVar[Mapping[str, str]] = {
        "known error": "largest change of a known panel's pixels, 0 to 255; 0 unless broken",
        "seam": "step across the borders of panels over the steps inside them; near 1 panels run "
        "into each other; neither high nor low is good in itself",
    }

    def __init__(self) -> None:
        super().__init__("the pixels themselves")

    def of_sets(self, sets: Sequence[Made]) -> Iterator[Figures]:
        for made in sets:
            found = {}
            if made.given:
                found["known error"] = max(_known_errors(made))
            ratio = seam(np.asarray(made.composite), made.layout)
            if ratio is not None:
                found["seam"] = ratio
            yield found


def _known_errors(made: Made) -> Iterator[float]:
    """Of every given panel, alone and in the composite, where it may have been resized."""
    boxes = split(made.layout, made.composite)
    for number, fitted in fit_given(made.layout, made.given).items():
        yield _error(made.panels[number - 1], made.given[number])
        yield _error(boxes[number - 1], fitted)


def _error(one: Image.Image, other: Image.Image) -> float:
    if one.size != other.size:
        return 255.0
    difference = np.asarray(one).astype(int) - np.asarray(other).astype(int)
    return float(np.abs(difference).max())


def seam(pixels: NDArray[np.uint8], layout: Layout) -> float | None:
    """How much sharper the borders between panels are than what lies inside the panels.

    The mean absolute step between neighbouring pixels across all borders, over the mean step
    inside the panels; half a grey level is added to both, so that flat pictures have a ratio.

    Args:
        pixels: (height, width, 3) of the composite.
    Returns: None where no two panels touch.
    """
    values = pixels.astype(np.float64)
    across = [_border(values, a, b) for a, b in combinations(layout.boxes, 2)]
    steps = [step for step in across if step.size]
    if not steps:
        return None
    inside = []
    for box in layout.boxes:
        panel = values[box.top : box.bottom, box.left : box.right]
        inside += [np.abs(np.diff(panel, axis=axis)).ravel() for axis in (0, 1)]
    border = np.concatenate(steps).mean()
    return float((border + 0.5) / (np.concatenate(inside).mean() + 0.5))


def _border(values: NDArray[np.float64], a: Box, b: Box) -> NDArray[np.float64]:
    """Absolute steps from one panel to the other; none where they do not touch."""
    for one, other in ((a, b), (b, a)):
        top, bottom = max(one.top, other.top), min(one.bottom, other.bottom)
        if one.right == other.left and top < bottom:
            rows = values[top:bottom]
            step: NDArray[np.float64] = np.abs(rows[:, other.left] - rows[:, other.left - 1])
            return step.ravel()
        left, right = max(one.left, other.left), min(one.right, other.right)
        if one.bottom == other.top and left < right:
            columns = values[:, left:right]
            step = np.abs(columns[other.top] - columns[other.top - 1])
            return step.ravel()
    return np.empty(0)
