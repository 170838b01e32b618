"""Numbers behind `Layout.fit`: rows and free boxes brought to pictures' shapes, an area, a grid.

All of it works on plain numbers, for thousands of candidates are weighed for each canvas; the
layout is made of the winner alone. Sizes are in px, every result is a multiple of `grid` px.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import product

from iclora.errors import LayoutError

__all__ = [
    "Rows",
    "Size",
    "check_canvas",
    "fit_edges",
    "fit_rows",
    "place_edges",
    "ranks",
    "rows_around",
    "shares",
    "stack",
    "stretch",
    "unrounded",
]

Size = tuple[int, int]
"""Width and height."""
Box = tuple[int, int, int, int]
"""Left, top, width, height."""
Rows = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The height of each row, and in each row the width of each panel."""

# What a panel off its aspect costs against a canvas off its area, in log units. Shape is what a
# designer sees; area only has to stay close to what was asked for.
_AREA_WEIGHT = 0.25


def stretch(box: Size, size: Size) -> float:
    """How far a box is off the aspect of a picture; 1.0 is exact."""
    return math.exp(abs(math.log(box[0] / box[1]) - math.log(size[0] / size[1])))


def stack(heights: Sequence[int], widths: Sequence[Sequence[int]]) -> tuple[Size, list[Box]]:
    """Rows of these heights that hold panels of these widths: the canvas and its boxes."""
    boxes = []
    top = 0
    for height, row in zip(heights, widths, strict=True):
        left = 0
        for width in row:
            boxes.append((left, top, width, height))
            left += width
        top += height
    return (sum(widths[0]), top), boxes


def shares(total: int, weights: Sequence[float], grid: int) -> list[int]:
    """Split `total` in proportion to `weights`, each share a positive multiple of `grid`."""
    units = total // grid
    exact = [units * w / sum(weights) for w in weights]
    parts = [max(1, math.floor(e)) for e in exact]
    while sum(parts) != units:
        step = 1 if sum(parts) < units else -1
        # The share furthest from what is due to it moves, the first one among equals.
        movable = [i for i, part in enumerate(parts) if part + step >= 1]
        moved = max(movable, key=lambda i: (step * (exact[i] - parts[i]), -i))
        parts[moved] += step
    return [part * grid for part in parts]


def unrounded(sides: Sequence[int], grid: int) -> Sequence[int]:
    """Weights of panels' sides; equal ones if their difference is the grid's rounding alone."""
    low, high = min(sides), max(sides)
    return [1] * len(sides) if high - low <= grid and high <= 1.25 * low else sides


@functools.lru_cache(maxsize=1024)  # The pictures of most datasets have few sizes.
def fit_rows(rows: tuple[tuple[float, ...], ...], area: float, grid: int) -> Rows:
    """Fit rows of panels to the aspects of their pictures.

    Among all canvases of at most `area` the one is chosen whose boxes come closest to the aspects
    (largest error of any panel), traded against coming close to the area.

    Args:
        rows: width / height of each picture, row by row.
        area: wanted canvas area, px^2.
    """
    # A row of width W whose panels share one height is W / sum(aspects) tall.
    ideal = math.sqrt(area / sum(1 / sum(row) for row in rows))
    least = max(len(row) for row in rows) * grid
    low = max(least, math.floor(ideal * 0.75 / grid) * grid)
    best: tuple[float, Sequence[int], list[list[int]]] | None = None
    for width in range(low, max(low, math.ceil(ideal * 1.1 / grid) * grid) + 1, grid):
        widths = [shares(width, row, grid) for row in rows]
        options = [_heights(w, row, grid) for w, row in zip(widths, rows, strict=True)]
        for choice in product(*options):
            heights, errors = zip(*choice, strict=True)
            found = _cost(max(errors), width * sum(heights) / area)
            if best is None or found < best[0]:
                best = (found, heights, widths)
    assert best is not None, "the narrowest canvas is always a candidate"
    return best[1], best[2]


def rows_around(
    rows: Sequence[Sequence[int]], aspects: Sequence[float], given: Mapping[int, Size], grid: int
) -> Rows | None:
    """Fit rows of panels around some whose sizes are given and on the grid.

    Args:
        rows: the numbers of the panels in each row, counted from 0.
        aspects: width / height of each panel.
        given: sizes by number; at least one.
    Returns: None if these sizes do not fit together.
    """
    widths, heights = [], []
    total = _width_around(rows, aspects, given, grid)
    for row in rows:
        fixed = [given[i] for i in row if i in given]
        rest = total - sum(w for w, _ in fixed)
        free = [aspects[i] for i in row if i not in given]
        if len({h for _, h in fixed}) > 1 or rest < len(free) * grid or (rest and not free):
            return None
        spare = iter(shares(rest, free, grid) if free else [])
        widths.append([given[i][0] if i in given else next(spare) for i in row])
        near = _heights(widths[-1], [aspects[i] for i in row], grid)
        heights.append(fixed[0][1] if fixed else min(near, key=lambda h: h[1])[0])
    return heights, widths


def _width_around(
    rows: Sequence[Sequence[int]], aspects: Sequence[float], given: Mapping[int, Size], grid: int
) -> int:
    """Canvas width that the rows with given panels ask for: a row of given panels alone decides."""
    asked = []
    for row in rows:
        fixed = [i for i in row if i in given]
        if fixed:
            height = given[fixed[0]][1]
            parts = [
                given[i][0] if i in given else max(1, round(height * aspects[i] / grid)) * grid
                for i in row
            ]
            asked.append((len(fixed) == len(row), sum(parts)))
    return max(asked, key=lambda a: a[0])[1]


def _heights(
    widths: Sequence[int], aspects: Sequence[float], grid: int
) -> tuple[tuple[int, float], ...]:
    """The two heights on the grid next to a row's ideal one, each with its largest log error."""
    low = max(1, math.floor(sum(widths) / sum(aspects) / grid)) * grid
    return tuple(
        (h, max(abs(math.log(w / h / a)) for w, a in zip(widths, aspects, strict=True)))
        for h in (low, low + grid)
    )


def _cost(error: float, over: float) -> float:
    """Cost of a canvas: log error of its worst panel, and of its area against the wanted one."""
    # A canvas over the area is only ever a last resort.
    return error + _AREA_WEIGHT * abs(math.log(over)) + (1e6 * over if over > 1 else 0)


# -- free boxes ---------------------------------------------------------------------------------


def fit_edges(
    boxes: Sequence[Box], size: tuple[int, int], aspects: Sequence[float], area: float, grid: int
) -> tuple[dict[int, int], dict[int, int]]:
    """Scale free boxes as a whole to come close to the aspects of their pictures and to an area.

    Args:
        size: width and height of the canvas they lie on.
        aspects: width / height of each picture.
        area: wanted canvas area, px^2.
    Returns: the new place of every edge, across and down.
    """
    width, height = size
    ideal = math.sqrt(area / (width * height))
    xs = sorted({0, width} | {edge for x, _, w, _ in boxes for edge in (x, x + w)})
    ys = sorted({0, height} | {edge for _, y, _, h in boxes for edge in (y, y + h)})

    def weighed(percent: int) -> tuple[float, dict[int, int], dict[int, int]]:
        across, down = (_snap(edges, ideal * percent / 100, grid) for edges in (xs, ys))
        errors = [
            abs(math.log((across[x + w] - across[x]) / (down[y + h] - down[y])) - math.log(aspect))
            for (x, y, w, h), aspect in zip(boxes, aspects, strict=True)
        ]
        return _cost(max(errors), across[width] * down[height] / area), across, down

    _, across, down = min(map(weighed, range(100, 69, -1)), key=lambda found: found[0])
    return across, down


def _snap(edges: Sequence[int], scale: float, grid: int) -> dict[int, int]:
    """Scaled edges on the grid, still in order and apart."""
    snapped: dict[int, int] = {}
    last = -grid
    for edge in edges:
        last = max(last + grid, round(edge * scale / grid) * grid)
        snapped[edge] = last
    return snapped


def place_edges(
    spans: Sequence[tuple[int, int]], length: int, total: int, grid: int
) -> dict[int, int] | None:
    """Move the edges of free boxes, along one side of their canvas, to a side of another length.

    Args:
        spans: first and last edge of every box.
        length: of the side they lie along; the edges 0 and `length` are moved to 0 and `total`.
        total: of the new side.
    Returns: the new place of every edge, each as close to its proportion as the grid allows: no
        two edges change their order, and no box is thinner than one grid step. None if there is
        no room for that.
    """
    units = total // grid
    edges = sorted({0, length, *(edge for span in spans for edge in span)})
    # The grid steps that boxes need behind each edge, one after the other.
    behind: dict[int, int] = {}
    needed = 0
    for edge in reversed(edges):
        behind[edge] = needed = max(
            [needed, *(1 + behind[second] for first, second in spans if first == edge)]
        )
    if needed > units:
        return None
    placed: dict[int, int] = {}
    last = 0
    for edge in edges:
        thin = (placed[first] + 1 for first, second in spans if second == edge)
        last = max([last, round(edge * units / length), *thin])
        placed[edge] = last = min(last, units - behind[edge])
    return {edge: unit * grid for edge, unit in placed.items()}


def check_canvas(rows: Sequence[int], width: int, height: int, grid: int) -> None:
    """Raises: LayoutError for a canvas off the grid, or too small for rows of this many panels."""
    if width % grid or height % grid:
        near = [max(grid, round(v / grid) * grid) for v in (width, height)]
        raise LayoutError(
            f"a canvas of {width}x{height} px is off the {grid} px token grid",
            f"Use {near[0]}x{near[1]}.",
        )
    if rows and (width < max(rows) * grid or height < len(rows) * grid):
        raise LayoutError(
            f"a canvas of {width}x{height} px is too small for rows of {list(rows)} panels "
            f"of at least {grid} px",
            "Use a larger canvas.",
        )


def ranks(spans: Sequence[Size], whole: int) -> list[Size]:
    """The order of every span's ends among all ends, which sizes do not change."""
    ends = sorted({0, whole, *(end for span in spans for end in span)})
    return [(ends.index(a), ends.index(b)) for a, b in spans]
