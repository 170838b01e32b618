"""Figures of bare pixels: given panels that came back, borders between panels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.evaluate.metrics.base import Figures, Made, Metric
from iclora.sets.canvas import split
from iclora.sets.layout import Box, Layout

__all__ = ["Pixels", "seam"]


class Pixels(Metric):
    """Needs no model: whether given panels came back, and whether panels have borders."""

    name = "pixels"
    main = "seam"
    figures: ClassVar[Mapping[str, str]] = {
        "given error": "largest change of a given panel's pixels, 0 to 255; 0 unless broken",
        "seam": "step across the borders of panels over the steps inside them; near 1 panels run "
        "into each other; neither high nor low is good in itself",
        "distance": "mean absolute difference to the first arm's picture of the same noise, 0 to "
        "255; 0 where every pixel is the same",
    }

    def __init__(self) -> None:
        super().__init__("the pixels themselves")

    def of_sets(self, sets: Iterable[Made]) -> Iterator[Figures]:
        for made in sets:
            found = {}
            if made.given:
                found["given error"] = max(_given_errors(made))
            ratio = seam(np.asarray(made.composite), made.layout)
            if ratio is not None:
                found["seam"] = ratio
            yield found

    def beside(self, pairs: Iterable[tuple[Made, Made]]) -> Iterator[Figures]:
        for made, first in pairs:
            one, other = (np.asarray(each.composite).astype(float) for each in (made, first))
            yield {"distance": float(np.abs(one - other).mean())}


def _given_errors(made: Made) -> Iterator[float]:
    """Of every given panel, alone and in the composite, which may hold it resized."""
    boxes = split(made.layout, made.composite)
    for number, image in made.given.items():
        yield _error(made.panels[number - 1], image)
        yield _error(boxes[number - 1], made.layout.fit_panel(number, image))


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
