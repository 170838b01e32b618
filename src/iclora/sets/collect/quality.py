"""How good a set is to train on, from 0 to 1, with the reasons why it is not better."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.sets.bars import find_edges, opposite
from iclora.sets.collect.cut_text import cut_text
from iclora.sets.collect.likeness import same_picture, unlike
from iclora.sets.collect.picture import Look
from iclora.sets.layout import Size
from iclora.sets.recipe import Recipe

__all__ = ["Quality", "judge"]

_LEAST_FINE = 0.38
"""Finest detail against that of the next octave: photographs have 0.5, soft film stills 0.4 and
drawings 0.9; pictures enlarged twice have 0.36."""
_SMALLEST = 128
"""Side below which detail of a picture says little, px."""
_BLOCKS = 1.5
"""Steps on JPEG's grid of 8 px against those beside it, both across and down, from which blocks
show: quality 75 has 1.1, quality 20 has 2."""
_SHARPEST = 0.9
"""Quantile of a picture's detail: skies and out-of-focus grounds are smooth in the sharpest one."""
_BUSY = 1.0
"""Detail of a block that shows something, in 256 levels."""
_LEAST_BUSY = 0.02
_STRIP = 64
"""Rows that are looked at at a time, so that they stay in the processor's cache."""
_FLAT = 6.0
"""Deviation of all pixels, in 256 levels, below which a picture shows next to nothing."""
_STRANGERS = 0.97
"""`unlike` of panels above which nothing holds them together."""


@dataclass(frozen=True)
class Quality:
    """A score and what lowers it."""

    score: float
    """1 for nothing to say; each reason multiplies it."""
    reasons: tuple[str, ...] = ()

    def less(self, factor: float, *reasons: str) -> Quality:
        """With more reasons, which lower the score by a factor together."""
        return Quality(round(self.score * factor, 3), self.reasons + reasons)


def judge(recipe: Recipe, panels: Sequence[Image.Image], looks: Sequence[Look]) -> Quality:
    """Judge a set by its pixels.

    Args:
        panels: RGB pictures in order.
        looks: of the same pictures.
    """
    found: list[tuple[str, float]] = []
    by_kind: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, (panel, box) in enumerate(zip(panels, recipe.canvas.sizes, strict=False), 1):
        for kind, factor in _of_panel(panel, box):
            by_kind[kind].append((number, factor))
    for kind, told in by_kind.items():
        # What all panels have in common counts once.
        found.append((f"{_named([n for n, _ in told])} {kind}", min(f for _, f in told)))
    pairs = list(combinations(range(len(looks)), 2))
    twins = [(a, b) for a, b in pairs if same_picture(looks[a], looks[b])]
    if pairs and len(twins) == len(pairs):
        found.append(("all panels show the same", 0.1))
    else:
        found += [(f"panels {a + 1} and {b + 1} show the same", 0.5) for a, b in twins]
    nearest = [
        min(unlike(look, other) for other in looks if other is not look)
        for look in looks
        if len(looks) > 1
    ]
    odd = [number for number, away in enumerate(nearest, 1) if away > _STRANGERS]
    if odd:
        found.append((f"{_named(odd)}: nothing beside looks like it", 0.6))
    score = float(np.prod([factor for _, factor in found])) if found else 1.0
    return Quality(round(score, 3), tuple(text for text, _ in found))


def _named(numbers: Sequence[int]) -> str:
    return f"panel{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _of_panel(panel: Image.Image, box: Size) -> list[tuple[str, float]]:
    found = []
    width, height = panel.size
    share = (width * height / (box[0] * box[1])) ** 0.5
    if share < 0.95:
        found.append(
            (
                f"of {width}x{height} px for a box of {box[0]}x{box[1]}",
                0.9 if share > 0.6 else max(0.2, share),
            )
        )
    edges = find_edges(panel)
    if any(edges) and any(opposite(panel, edges)):
        found.append((f"with bars of one colour ({edges.told})", 0.9))
    grey = np.asarray(panel.convert("L"), dtype=np.float32)
    if grey.std() < _FLAT:
        return [*found, ("without anything to see", 0.1)]
    fine = fineness(grey)
    if fine < _LEAST_FINE:
        found.append(("blurred or enlarged", max(0.3, 0.9 * (fine / _LEAST_FINE) ** 2)))
    if blockiness(grey) > _BLOCKS:
        found.append(("with blocks of strong compression", 0.6))
    if sides := cut_text(panel):
        found.append((f"with text cut at the {' and '.join(sides)}", 0.6))
    return found


def fineness(grey: NDArray[np.float32]) -> float:
    """Finest detail over that of the next octave: low for what is blurred or was enlarged.

    What was enlarged more than twice lacks both, so the next two are compared as well.
    """
    levels = [grey]
    while len(levels) < 3 and min(levels[-1].shape) >= 2 * _SMALLEST:
        levels.append(_halved(levels[-1]))
    blocks = [_detail(level) for level in levels]
    # Of a page that is empty in most places, what is drawn on it counts.
    busy = float((blocks[-1] > _BUSY).mean()) if blocks[-1].size else 1.0
    share = 1 - (1 - _SHARPEST) * (1 if busy > 0.5 else max(busy, _LEAST_BUSY))
    details = [float(np.quantile(each, share)) if each.size else 0.0 for each in blocks]
    return min((a / b for a, b in pairwise(details) if b > 0.1), default=1.0)


def _detail(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean size of the Laplacian in blocks of 8x8 px: (rows // 8, columns // 8)."""
    if min(grey.shape) < 16:
        return np.zeros((0, 0), dtype=np.float32)
    rows, columns = ((side - 2) // 8 * 8 for side in grey.shape)
    means = [
        _laplacian_of(grey[start : min(start + _STRIP, rows) + 2, : columns + 2])
        for start in range(0, rows, _STRIP)
    ]
    return np.concatenate(means)


def _laplacian_of(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean size of the Laplacian of each block of 8x8 px: (rows // 8, columns // 8)."""
    inner = 4 * grey[1:-1, 1:-1]
    for beside in (grey[:-2, 1:-1], grey[2:, 1:-1], grey[1:-1, :-2], grey[1:-1, 2:]):
        inner -= beside
    np.abs(inner, out=inner)
    rows, columns = (side // 8 for side in inner.shape)
    # Rows of a block first: sums along them are fast.
    lines: NDArray[np.float32] = inner.reshape(rows, 8, columns * 8).sum(axis=1)
    found: NDArray[np.float32] = lines.reshape(rows, columns, 8).sum(axis=2) / np.float32(64)
    return found


def _halved(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = (side // 2 * 2 for side in grey.shape)
    # Rows first: numpy's mean over both sides of a block takes ten times as long.
    lines = grey[:rows:2, :columns] + grey[1:rows:2, :columns]
    found: NDArray[np.float32] = (lines[:, ::2] + lines[:, 1::2]) * np.float32(0.25)
    return found


def blockiness(grey: NDArray[np.float32]) -> float:
    """Mean step across the lines of JPEG's grid over that across the other lines, the lesser of
    both directions: what is drawn on a grid of its own has it in one."""
    ratios = []
    for lines in (grey, grey.T):
        steps = np.abs(np.diff(lines, axis=1)).mean(axis=0)
        if len(steps) < 32:
            return 1.0
        grid = np.arange(len(steps)) % 8 == 7
        ratios.append(float(steps[grid].mean() / max(0.05, steps[~grid].mean())))
    return min(ratios)
