"""The canvas of a set that is asked for, from the usual one and the sizes of given panels."""

from __future__ import annotations

from collections.abc import Mapping

from iclora.errors import SettingsError
from iclora.sets.layout import Layout, Size

__all__ = ["canvas_around"]


def canvas_around(
    usual: Layout, given: Mapping[int, Size], size: Size | None, multiple: int
) -> Layout:
    """The canvas: as asked, else the usual area with the given panels' shapes.

    Args:
        usual: the adapter's or the recipe's.
        given: sizes in px of given panels by number, counted from 1.
        size: of the canvas in px, if it was asked for.
        multiple: px that the canvas's sides must be a multiple of.
    Raises: LayoutError; SettingsError if nothing is left to make.
    """
    for number in given:
        usual.check_number(number)
    if given and len(given) == usual.panels:
        raise SettingsError("all panels are given; nothing is left to complete", "Leave one out.")
    if size is not None:
        return usual.resized(*size, multiple)
    area = usual.width * usual.height
    if given:
        around = usual.fit_around({n - 1: shape for n, shape in given.items()}, multiple)
        # Within these bounds of the usual area a base still paints well, and nothing is resized.
        if around and 0.15 * area <= around.width * around.height <= 1.5 * area:
            return around
    sizes = list(usual.sizes)
    for number, shape in given.items():
        sizes[number - 1] = shape
    return usual.fit(sizes, area, multiple)
