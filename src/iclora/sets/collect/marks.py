"""Marks that the pictures of one source have at the same place: watermarks, logos of channels.

A mark's edges lie at the same pixels, in the same direction, in nearly every picture, and nothing
else's do. Bars and frames have edges in one direction only, so they are none, and pictures that
are alike in much of what they show (one camera that stands still) have no mark.

Source: the idea of Dekel et al. 2017, "On the effectiveness of visible watermarks", section 3.1,
with counted signs instead of median gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.progress import Progress
from iclora.sets.collect.picture import Found, Look
from iclora.sets.layout import Size

__all__ = ["Mark", "find_mark", "has_mark", "marked_sets"]

_LEAST = 10
"""Pictures of different scenes in which a mark is looked for: chance makes fewer agree."""
_ENOUGH = 48
"""Pictures in which a mark is looked for at most."""
_SIDE = 512
"""Longer side of the pictures that are compared, px."""
_STEP = 3
"""Difference of neighbouring pixels that counts, in 256 levels."""
_SHARE = 0.75
"""Share of the pictures in which an edge of a mark shows; it cannot on its own colour."""
_BLOCK = 8
_EDGES = 5
"""Pixels of a block that are edges, in each direction."""
_BLOCKS = 2
"""Blocks of a mark at least."""
_MOST = 0.15
"""Share of the picture that marks take at most."""
_THERE = 0.5
"""Share of a mark's edges that a picture with it shows."""

Signs = NDArray[np.int8]


@dataclass(frozen=True)
class Mark:
    """A mark, by its edges."""

    box: tuple[int, int, int, int]
    """Left, top, width and height in the pictures, px; around all parts of it."""
    signs: Signs
    """(2, height, width): which way brightness goes at the mark's edges, across and down; 0 for
    what is none. Of the pictures at 512 px."""


Place = tuple[str, Size, int]
"""A source, the size of its pictures in px, and the number of a panel, from 1."""


def marked_sets(
    sets: Sequence[tuple[Found, Sequence[Look]]], progress: Progress
) -> dict[int, list[str]]:
    """Sets with pictures that have the mark of their source.

    Pages of a deck share what its template has, and sheets what is drawn around their panels, so
    neither is looked at.

    Args:
        sets: each with the looks of its pictures.
    Returns: what to say of them, by index. Raises: IcloraError, Cancelled.
    """
    places: dict[Place, list[int]] = defaultdict(list)
    scenes: dict[Place, dict[str, int]] = defaultdict(dict)
    for index, (found, looks) in enumerate(sets):
        for number, (picture, look) in enumerate(zip(found.pictures, looks, strict=True), 1):
            origin = picture.origin
            if found.composite or ("page" in origin.at and "picture" not in origin.at):
                continue
            inside = {"time", "page", "slide", "row"} & set(origin.at)
            source = origin.file if inside else PurePosixPath(origin.file).parent.as_posix()
            places[source, look.size, number].append(index)
            scenes[source, look.size, number].setdefault(found.scene, index)
    told: dict[int, list[str]] = defaultdict(list)
    wanted = [place for place in places if len(scenes[place]) >= _LEAST]
    for done, place in enumerate(wanted, 1):
        progress("looking for marks", done, len(wanted), place[0])
        at = place[2] - 1
        every = -(-len(scenes[place]) // _ENOUGH)
        looked = list(scenes[place].values())[::every]
        mark = find_mark(sets[index][0].pictures[at].open() for index in looked)
        if mark is None:
            continue
        where = "{},{} ({}x{} px)".format(*mark.box)
        text = f"panel {place[2]} with a mark that its source has in many pictures, at {where}"
        for index in places[place]:
            if has_mark(mark, sets[index][0].pictures[at].open()):
                told[index].append(text)
    return dict(told)


def find_mark(pictures: Iterable[Image.Image]) -> Mark | None:
    """The mark of pictures of different scenes; None if they have none, or are too few.

    Args:
        pictures: RGB, of one size.
    """
    count, size = 0, (0, 0)
    up: list[NDArray[np.int16]] = []
    down: list[NDArray[np.int16]] = []
    for picture in pictures:
        signs = _signs(picture)
        if not count:
            size = picture.size
            up, down = ([np.zeros(signs.shape, dtype=np.int16)] for _ in range(2))
        up[0] += signs > 0
        down[0] += signs < 0
        count += 1
    if count < _LEAST:
        return None
    agreed: Signs = (up[0] >= _SHARE * count).astype(np.int8) - (down[0] >= _SHARE * count)
    blocks = _blocks(agreed)
    if not _BLOCKS <= blocks.sum() <= _MOST * blocks.size:
        return None
    inside = blocks.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)
    agreed = agreed[:, : inside.shape[0], : inside.shape[1]] * inside
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    scale = max(size) / min(max(size), _SIDE)
    left, top, right, bottom = (
        round(edge * scale) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    )
    return Mark((left, top, right - left, bottom - top), agreed)


def has_mark(mark: Mark, picture: Image.Image) -> bool:
    """True if a picture of the size of those that a mark was found in has it."""
    signs = _signs(picture)[:, : mark.signs.shape[1], : mark.signs.shape[2]]
    there = signs[mark.signs != 0] == mark.signs[mark.signs != 0]
    return bool(there.mean() >= _THERE)


def _signs(picture: Image.Image) -> Signs:
    """Which way brightness goes from each pixel to the next, across and down: (2, h, w)."""
    grey = picture.convert("L")
    grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    light = np.asarray(grey, dtype=np.int16)
    across, down = np.diff(light, axis=1)[:-1], np.diff(light, axis=0)[:, :-1]
    steps = np.stack([across, down])
    signs: Signs = (steps >= _STEP).astype(np.int8) - (steps <= -_STEP)
    return signs


def _blocks(agreed: Signs) -> NDArray[np.bool_]:
    """Which blocks have edges in both directions, and a neighbour that has them too."""
    rows, columns = (side // _BLOCK for side in agreed.shape[1:])
    cut = agreed[:, : rows * _BLOCK, : columns * _BLOCK] != 0
    edges = cut.reshape(2, rows, _BLOCK, columns, _BLOCK).sum(axis=(2, 4))
    full = (edges >= _EDGES).all(axis=0)
    around = np.pad(full, 1)
    beside = sum(
        around[1 + y : 1 + y + rows, 1 + x : 1 + x + columns].astype(int)
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    )
    found: NDArray[np.bool_] = full & (beside > 1)
    return found
