"""Where the tokens of a panel lie, and which panel each token of a canvas belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iclora.sets.layout import GRID, Box, Layout

__all__ = ["cells_of", "token_owners"]


def cells_of(box: Box, grid: int) -> tuple[slice, slice]:
    """Rows and columns of a panel's tokens."""
    return (slice(box.top // grid, box.bottom // grid), slice(box.left // grid, box.right // grid))


def token_owners(layout: Layout, grid: int = GRID) -> NDArray[np.int64]:
    """The panel of each token; in a gap between free boxes, the one that is nearest.

    Args:
        grid: edge of a token, px.
    Returns: (height // grid, width // grid), panels counted from 0.
    Raises: LayoutError if an edge is off the grid.
    """
    layout.check_grid(grid)
    rows, columns = np.mgrid[: layout.height // grid, : layout.width // grid]

    def away(at: NDArray[np.int64], first: int, end: int) -> NDArray[np.int64]:
        """Tokens from the range first to end, 0 inside of it."""
        return np.maximum(np.maximum(first - at, at - (end - 1)), 0)

    cells = [cells_of(box, grid) for box in layout.boxes]
    squares = [
        away(rows, down.start, down.stop) ** 2 + away(columns, across.start, across.stop) ** 2
        for down, across in cells
    ]
    owners: NDArray[np.int64] = np.argmin(np.stack(squares), 0)
    return owners
