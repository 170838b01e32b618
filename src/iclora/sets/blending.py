"""Lines between a picture and a bar that scaling a whole sheet has made of both.

A sheet that is scaled after it was joined has edges that lie between two px. The line there is a
mixture of bar and picture. All pictures of a row have it at the same place, so together they tell
its share where a single picture could not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from iclora.sets.edges import Pixels, is_drawn, sampled
from iclora.sets.layout import Box

__all__ = ["without_blended"]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SHARE = 0.25
"""Share of the bar in a line from which it is no line of the picture."""
_FLAT = 4.0
"""Mean deviation of a bar's line in brightness, in 256 levels."""
_APART = 12.0
"""Mean difference in brightness of a bar from the picture, below which it tells nothing."""
_BESIDE = 2
"""px before a picture at which a bar's line is not blended."""


def without_blended(per_row: Sequence[int], boxes: Sequence[Box], pixels: Pixels) -> list[Box]:
    """The boxes without outermost lines that hold more than a little of the bar beside them.

    Args:
        boxes: of the pictures in px of the sheet, without the bars around them.
        pixels: (height, width, 3), of the whole sheet.
    """
    if is_drawn(pixels):  # a drawing has lines of its own there
        return list(boxes)
    # JPEG blends colours at half the size, but no brightness.
    light = pixels @ _LUMA
    ends = [0, *accumulate(per_row)]
    rows = [list(range(a, b)) for a, b in pairwise(ends)]
    found = _trimmed(rows, boxes, light)
    if len(set(per_row)) == 1:
        columns = [list(column) for column in zip(*rows, strict=True)]
        turned = _trimmed(columns, [_turned(box) for box in found], light.T)
        found = [_turned(box) for box in turned]
    return found


def _turned(box: Box) -> Box:
    return Box(box.top, box.left, box.height, box.width)


def _trimmed(groups: Sequence[Sequence[int]], boxes: Sequence[Box], light: Pixels) -> list[Box]:
    """Boxes without blended lines at their tops and bottoms; those of a group lie in one row."""
    found = list(boxes)
    height = len(light)
    for group in groups:
        own = [boxes[k] for k in group]
        top = _is_blended([(light[:, b.left : b.right], b.top) for b in own])
        low = _is_blended([(light[::-1, b.left : b.right], height - b.bottom) for b in own])
        for k in group:
            b = found[k]
            found[k] = Box(b.left, b.top + top, b.width, b.height - top - low)
    return found


def _is_blended(ends: Sequence[tuple[Pixels, int]]) -> bool:
    """True if the first lines of some pictures, taken together, hold much of the bar before them.

    Args:
        ends: the lines of the sheet along each picture, and the number of the picture's first one.
    """
    over = under = 0.0
    for lines, at in ends:
        if at < _BESIDE:
            continue
        bar, first, second = sampled(lines[[at - _BESIDE, at, at + 1], :, None])[..., 0]
        if np.abs(bar - bar.mean()).mean() > _FLAT:
            continue
        way = bar.mean() - second
        if np.abs(way).mean() < _APART:
            continue
        over += float(((first - second) * way).sum())
        under += float((way * way).sum())
    return over > _SHARE * under > 0
