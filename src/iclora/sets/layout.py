"""Where panels sit on a canvas: compose, split, fit, mask.

A layout is a canvas and one box per panel. Most are *rows of panels*: `per_row` says how many
panels each row holds, from the top: (1, 1, 1) is three stacked, (2,) two side by side, (2, 2) the
familiar 2x2. Every row fills the width and has a height of its own, and within a row every panel
has a width of its own, so panels of any shape keep their aspect without cropping. Free boxes
(`per_row` empty) are scaled as a whole.

Token grid: a diffusion transformer reads the canvas in square tokens (16 px for FLUX.1). Where
every box edge is a multiple of the grid, a panel mask is an exact token mask.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise, product
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iclora.errors import LayoutError
from iclora.sets.seams import find_seams
from iclora.settings import problems_of

__all__ = ["GRID", "MOST_STRETCH", "Box", "Layout", "token_mask"]

Size = tuple[int, int]
"""Width and height in px."""

GRID = 16
"""Token edge, px, if no base is at hand to ask: that of FLUX.1, FLUX.2, Qwen-Image and Z-Image."""
_MOST_PANELS = 9
# Beyond this a resized panel looks wrong to anybody; grid rounding stays far below it.
MOST_STRETCH = 1.25
# What a panel off its aspect costs against a canvas off its area, in log units. Shape is what a
# designer sees; area only has to stay close to what was asked for.
_AREA_WEIGHT = 0.25


class Box(NamedTuple):
    """One panel's rectangle on the canvas, in px from the top left corner."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def size(self) -> Size:
        """Width and height in px."""
        return self.width, self.height

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as Pillow takes it."""
        return self.left, self.top, self.right, self.bottom

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


class Layout(BaseModel):
    """A canvas and the boxes of its panels, in reading order.

    Raises: pydantic.ValidationError for fewer than 2 or more than 9 panels, for boxes that
        overlap, are empty or leave the canvas, and for `per_row` that contradicts the boxes. The
        class methods raise LayoutError instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int
    """px"""
    height: int
    """px"""
    per_row: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Panels in each row from the top; empty for free boxes."""
    boxes: tuple[Box, ...]

    @model_validator(mode="after")
    def _is_possible(self) -> Layout:
        try:
            return self._checked()
        except LayoutError as error:
            raise ValueError(str(error)) from error

    def _checked(self) -> Layout:
        """This layout. Raises: LayoutError if no set can lie on it."""
        n = len(self.boxes)
        if not 2 <= n <= _MOST_PANELS:
            raise LayoutError(
                f"a layout of {n} panel{'s' * (n != 1)}; a set has 2 to {_MOST_PANELS}",
                "Add or remove panels.",
            )
        for i, box in enumerate(self.boxes, 1):
            if box.width < 1 or box.height < 1:
                raise LayoutError(
                    f"panel {i} is empty ({box.width}x{box.height} px)", "Enlarge it."
                )
            if min(box.left, box.top) < 0 or box.right > self.width or box.bottom > self.height:
                raise LayoutError(
                    f"panel {i} {box.corners} leaves the {self.width}x{self.height} px canvas",
                    "Move its box inside the canvas.",
                )
            for j, other in enumerate(self.boxes[: i - 1], 1):
                if box.overlaps(other):
                    raise LayoutError(f"panels {j} and {i} overlap", "Move their boxes apart.")
        if self.per_row:
            self._check_rows()
        return self

    def _check_rows(self) -> None:
        """Raises: LayoutError if the boxes are not the rows that `per_row` names."""
        if sum(self.per_row) != self.panels:
            raise LayoutError(
                f"rows of {list(self.per_row)} panels do not add up to {self.panels} panels",
                "Let per_row name every panel once.",
            )
        ends = [0, *accumulate(self.per_row)]
        rows = [self.boxes[a:b] for a, b in pairwise(ends)]
        heights = [row[0].height for row in rows]
        _, height, boxes = _stack(heights, [[box.width for box in row] for row in rows])
        full = all(sum(box.width for box in row) == self.width for row in rows)
        if not full or height != self.height or boxes != self.boxes:
            raise LayoutError(
                f"the boxes are not rows of {list(self.per_row)} panels that fill the canvas",
                "Correct per_row, or leave it empty for free boxes.",
            )

    # -- making layouts -------------------------------------------------------------------------

    @classmethod
    def of_rows(cls, per_row: Iterable[int], width: int, height: int, grid: int = 1) -> Layout:
        """Rows of equal panels that fill the canvas, every edge a multiple of `grid` px.

        Where the canvas does not divide evenly, earlier panels are one grid step larger.
        Raises: LayoutError if the canvas is off the grid or too small.
        """
        rows = tuple(per_row)
        if not rows or min(rows) < 1:
            raise LayoutError(f"rows of {list(rows)} panels", "Give every row at least one panel.")
        if width % grid or height % grid:
            near = [max(grid, round(v / grid) * grid) for v in (width, height)]
            raise LayoutError(
                f"a canvas of {width}x{height} px is off the {grid} px token grid",
                f"Use {near[0]}x{near[1]}.",
            )
        if width < max(rows) * grid or height < len(rows) * grid:
            raise LayoutError(
                f"a canvas of {width}x{height} px is too small for rows of {list(rows)} panels "
                f"of at least {grid} px",
                "Use a larger canvas.",
            )
        heights = _shares(height, [1.0] * len(rows), grid)
        widths = [_shares(width, [1.0] * n, grid) for n in rows]
        return cls._of_rows(heights, widths)

    @classmethod
    def _of_rows(cls, heights: Sequence[int], widths: Sequence[Sequence[int]]) -> Layout:
        """Rows of these heights that hold panels of these widths. Raises: LayoutError."""
        width, height, boxes = _stack(heights, widths)
        per_row = tuple(len(row) for row in widths)
        return cls._of(width, height, boxes, per_row)

    @classmethod
    def _of(
        cls, width: int, height: int, boxes: tuple[Box, ...], per_row: tuple[int, ...] = ()
    ) -> Layout:
        """A layout of values that need no conversion. Raises: LayoutError."""
        made = cls.model_construct(width=width, height=height, per_row=per_row, boxes=boxes)
        return made._checked()

    @classmethod
    def rows(cls, panels: int, width: int, height: int, grid: int = 1) -> Layout:
        """`panels` stacked one above the other."""
        return cls.of_rows((1,) * panels, width, height, grid)

    @classmethod
    def columns(cls, panels: int, width: int, height: int, grid: int = 1) -> Layout:
        """`panels` side by side."""
        return cls.of_rows((panels,), width, height, grid)

    @classmethod
    def free(cls, boxes: Iterable[Sequence[int]], width: int, height: int) -> Layout:
        """Any boxes, each (left, top, width, height) in px; gaps between them are painted white."""
        return cls._of(width, height, tuple(Box(*map(int, box)) for box in boxes))

    # -- looking at them ------------------------------------------------------------------------

    @property
    def panels(self) -> int:
        return len(self.boxes)

    @property
    def size(self) -> Size:
        """Width and height of the canvas in px."""
        return self.width, self.height

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Width and height of every panel in px."""
        return tuple(box.size for box in self.boxes)

    def check_grid(self, grid: int) -> None:
        """Raises: LayoutError naming the first edge that is not a multiple of `grid` px."""
        for i, box in enumerate(self.boxes, 1):
            if any(edge % grid for edge in box.corners):
                raise LayoutError(
                    f"panel {i} {box.corners} has an edge off the {grid} px token grid, so a token "
                    "would be half known and half unknown",
                    "Fit the layout to the grid: layout.fit(sizes, area, grid).",
                )
        if self.width % grid or self.height % grid:
            raise LayoutError(
                f"a canvas of {self.width}x{self.height} px is off the {grid} px token grid",
                "Fit the layout to the grid: layout.fit(sizes, area, grid).",
            )

    def stretch(self, sizes: Sequence[Size]) -> list[float]:
        """How far each box is off the aspect of the picture meant for it; 1.0 is exact.

        1.1 means the picture ends up 10% too wide or too tall.
        """
        return [
            _stretch(box, size) for box, size in zip(self.sizes, self._one_each(sizes), strict=True)
        ]

    def _one_each(self, items: Sequence[Any]) -> Sequence[Any]:
        if len(items) != self.panels:
            raise LayoutError(
                f"{len(items)} pictures for a layout of {self.panels} panels",
                "Give one picture for every panel, in reading order.",
            )
        return items

    # -- fitting --------------------------------------------------------------------------------

    def fit(self, sizes: Sequence[Size], area: float, grid: int) -> Layout:
        """The same arrangement for pictures of these sizes, near `area` and on the grid.

        Nothing is cropped: every picture fills its box. Among all canvases of at most `area` the
        one is chosen whose boxes come closest to the pictures' aspects (largest error of any
        panel), traded against coming close to the area.

        Args:
            sizes: width and height of each picture in px.
            area: wanted canvas area in px^2; the result does not exceed it unless a canvas of
                one grid step a panel already does.
            grid: token edge in px.
        Raises: LayoutError if the number of pictures is wrong, or the area no area.
        """
        if not area >= 1:
            raise LayoutError(f"a canvas of {area} px^2", "Ask for a resolution of 64 or more.")
        aspects = [w / h for w, h in self._one_each(sizes)]
        if self.per_row:
            return self._fit_rows(aspects, area, grid)
        return min(
            self._free_candidates(area, grid),
            key=lambda layout: _cost(
                max(math.log(s) for s in layout.stretch(sizes)), layout.width * layout.height / area
            ),
        )

    def _fit_rows(self, aspects: Sequence[float], area: float, grid: int) -> Layout:
        starts = list(accumulate(self.per_row, initial=0))
        rows = [aspects[a:b] for a, b in pairwise(starts)]
        # A row of width W whose panels share one height is W / sum(aspects) tall.
        ideal = math.sqrt(area / sum(1 / sum(row) for row in rows))
        least = max(self.per_row) * grid
        low = max(least, math.floor(ideal * 0.75 / grid) * grid)
        best: tuple[float, Sequence[int], list[list[int]]] | None = None
        for width in range(low, max(low, math.ceil(ideal * 1.1 / grid) * grid) + 1, grid):
            widths = [_shares(width, row, grid) for row in rows]
            options = [_heights(w, row, grid) for w, row in zip(widths, rows, strict=True)]
            for choice in product(*options):
                heights, errors = zip(*choice, strict=True)
                cost = _cost(max(errors), width * sum(heights) / area)
                if best is None or cost < best[0]:
                    best = (cost, heights, widths)
        assert best is not None, "the narrowest canvas is always a candidate"
        return Layout._of_rows(best[1], best[2])

    def _free_candidates(self, area: float, grid: int) -> Iterable[Layout]:
        ideal = math.sqrt(area / (self.width * self.height))
        xs = sorted({0, self.width} | {e for b in self.boxes for e in (b.left, b.right)})
        ys = sorted({0, self.height} | {e for b in self.boxes for e in (b.top, b.bottom)})
        for percent in range(100, 69, -1):
            x, y = (_snap(edges, ideal * percent / 100, grid) for edges in (xs, ys))
            boxes = tuple(
                Box(x[b.left], y[b.top], x[b.right] - x[b.left], y[b.bottom] - y[b.top])
                for b in self.boxes
            )
            yield Layout._of(x[self.width], y[self.height], boxes)

    def fit_around(self, known: Mapping[int, Size], grid: int) -> Layout | None:
        """The same arrangement with some panels at exactly these sizes, on the grid.

        The other panels keep close to their shapes here. This is how a set is completed without
        resizing the pictures that are given.

        Args:
            known: sizes in px by panel index, counted from 0; at least one.
        Returns: None where these sizes do not fit together, are off the grid, or would bend
            another panel by more than 15%.
        """
        if any(w % grid or h % grid for w, h in known.values()):
            return None
        if not self.per_row:
            same = all(self.sizes[i] == size for i, size in known.items())
            return self if same and _on_grid(self, grid) else None
        starts = list(accumulate(self.per_row, initial=0))
        rows = [list(range(a, b)) for a, b in pairwise(starts)]
        ratio = [w / h for w, h in self.sizes]
        widths, heights = [], []
        total = _width_around(rows, ratio, known, grid)
        for row in rows:
            given = [known[i] for i in row if i in known]
            rest = total - sum(w for w, _ in given)
            free = [ratio[i] for i in row if i not in known]
            if len({h for _, h in given}) > 1 or rest < len(free) * grid or (rest and not free):
                return None
            spare = iter(_shares(rest, free, grid) if free else [])
            widths.append([known[i][0] if i in known else next(spare) for i in row])
            near = _heights(widths[-1], [ratio[i] for i in row], grid)
            heights.append(given[0][1] if given else min(near, key=lambda h: h[1])[0])
        layout = Layout._of_rows(heights, widths)
        bent = [s for i, s in enumerate(layout.stretch(self.sizes)) if i not in known]
        return layout if max(bent, default=1.0) <= 1.15 else None

    def resized(self, width: int, height: int, grid: int) -> Layout:
        """The same arrangement on a canvas of exactly `width` x `height` px, on the grid.

        Raises: LayoutError if that canvas is off the grid.
        """
        if self.per_row:
            return Layout.of_rows(self.per_row, width, height, grid)
        scaled = self.fit(self.sizes, width * height, grid)
        if scaled.size != (width, height):
            raise LayoutError(
                f"these free boxes do not fill {width}x{height} px on the {grid} px token grid",
                f"Use {scaled.width}x{scaled.height}.",
            )
        return scaled

    # -- pictures -------------------------------------------------------------------------------

    def compose(self, panels: Sequence[Image.Image]) -> Image.Image:
        """Join RGB pictures into one canvas; each is resized once to fill its box, none cropped.

        Raises: LayoutError if a picture is missing or would be stretched by more than 25%.
        """
        for number, image in enumerate(self._one_each(panels), 1):
            self._check_stretch(number, image.size)
        canvas = Image.new("RGB", self.size, "white")
        for image, box in zip(panels, self.boxes, strict=True):
            canvas.paste(_filling(image, box), (box.left, box.top))
        return canvas

    def fit_panel(self, number: int, image: Image.Image) -> Image.Image:
        """A given picture at the size of its panel's box.

        Args:
            number: of the panel, counted from 1.
        Raises: LayoutError if there is no such panel, or if the picture would be stretched by more
            than 25%.
        """
        self.check_number(number)
        box = self.boxes[number - 1]
        self._check_stretch(number, image.size)
        return _filling(image, box)

    def check_number(self, number: int) -> None:
        """Raises: LayoutError if there is no panel of this number, counted from 1."""
        if not 1 <= number <= self.panels:
            raise LayoutError(
                f"there is no panel {number}; this layout has {self.panels}",
                f"Name panels 1 to {self.panels}.",
            )

    def _check_stretch(self, number: int, size: Size) -> None:
        """Raises: LayoutError if a picture of this size would be stretched by more than 25%."""
        box = self.boxes[number - 1]
        stretch = _stretch(box.size, size)
        if stretch > MOST_STRETCH:
            raise LayoutError(
                f"panel {number} is {size[0]}x{size[1]} px and its box {box.width}x{box.height} "
                f"px: it would be stretched by {100 * (stretch - 1):.0f}%, and nothing is cropped",
                "Fit the layout to the pictures, or bring the picture into the box's shape.",
            )

    def split(self, composite: Image.Image) -> list[Image.Image]:
        """The panels of a composite of exactly this layout's size. Raises: LayoutError."""
        if composite.size != self.size:
            raise LayoutError(
                f"a composite of {composite.width}x{composite.height} px for a layout of "
                f"{self.width}x{self.height} px",
                "Find its panels first: layout.find_seams(composite).",
            )
        return [composite.crop(box.corners) for box in self.boxes]

    def find_seams(self, composite: Image.Image) -> tuple[Layout, int]:
        """This arrangement's boxes in a composite that somebody else joined, of any size.

        Rows of panels: each seam is searched around its place in this layout, as the line across
        the canvas where the picture changes at once. Where nothing changes, the expected place
        stands. Free boxes are scaled. All pixels belong to a panel; the boxes need no grid.

        Returns: the layout, and how many seams do not show.
        Raises: LayoutError if the composite is too small to hold the panels.
        """
        width, height = composite.size
        if min(width, height) < 8 * self.panels:
            raise LayoutError(
                f"a composite of {width}x{height} px is too small to hold {self.panels} panels",
                "Use the full-sized picture.",
            )
        if not self.per_row:
            sx, sy = width / self.width, height / self.height
            edges = [
                tuple(round(e * s) for e, s in zip(b.corners, (sx, sy, sx, sy), strict=True))
                for b in self.boxes
            ]
            return Layout.free([(a, b, c - a, d - b) for a, b, c, d in edges], width, height), 0
        pixels = np.asarray(composite, dtype=np.float32)
        bottoms = [self.boxes[i - 1].bottom / self.height for i in accumulate(self.per_row)]
        ys, missed = find_seams(pixels, bottoms)
        widths = []
        for (top, bottom), end, n in zip(
            pairwise([0, *ys]), accumulate(self.per_row), self.per_row, strict=True
        ):
            rights = [box.right / self.width for box in self.boxes[end - n : end]]
            xs, unseen = find_seams(pixels[top:bottom].transpose(1, 0, 2), rights)
            missed += unseen
            widths.append([b - a for a, b in pairwise([0, *xs])])
        return Layout._of_rows([b - a for a, b in pairwise([0, *ys])], widths), missed

    # -- as data --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Any) -> Layout:
        """Read what `to_json` wrote. Raises: LayoutError if it is not that."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise LayoutError(
                f"not a layout: {problems_of(error)}", "Use what iclora wrote."
            ) from error


def token_mask(layout: Layout, panels: Collection[int], grid: int = GRID) -> NDArray[np.bool_]:
    """Mark the tokens covered by the chosen panels.

    One token covers grid x grid pixels, read row by row. FLUX.1: 16 = VAE stride 8 x packing 2.

    Args:
        panels: panel indices, counted from 0.
    Returns: bool (height // grid, width // grid), True inside the panels.
    Raises: LayoutError if a panel does not exist or an edge is off the grid.
    Source: packing as in FLUX.1, "prepare" in its reference sampling code.
    """
    layout.check_grid(grid)
    mask = np.zeros((layout.height // grid, layout.width // grid), dtype=bool)
    for i in panels:
        layout.check_number(i + 1)
        box = layout.boxes[i]
        mask[box.top // grid : box.bottom // grid, box.left // grid : box.right // grid] = True
    return mask


def _log_aspect(size: Size) -> float:
    return math.log(size[0] / size[1])


def _stretch(box: Size, size: Size) -> float:
    """How far a box is off the aspect of a picture; 1.0 is exact."""
    return math.exp(abs(_log_aspect(box) - _log_aspect(size)))


def _filling(image: Image.Image, box: Box) -> Image.Image:
    """The picture at the size of a box."""
    return image if image.size == box.size else image.resize(box.size, Image.Resampling.LANCZOS)


def _stack(
    heights: Sequence[int], widths: Sequence[Sequence[int]]
) -> tuple[int, int, tuple[Box, ...]]:
    """Rows of these heights that hold panels of these widths: canvas width and height, boxes."""
    boxes = []
    top = 0
    for height, row in zip(heights, widths, strict=True):
        left = 0
        for width in row:
            boxes.append(Box(left, top, width, height))
            left += width
        top += height
    return sum(widths[0]), top, tuple(boxes)


def _shares(total: int, weights: Sequence[float], grid: int) -> list[int]:
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


def _on_grid(layout: Layout, grid: int) -> bool:
    edges = [layout.width, layout.height, *(e for b in layout.boxes for e in b.corners)]
    return not any(edge % grid for edge in edges)


def _width_around(
    rows: Sequence[Sequence[int]], ratio: Sequence[float], known: Mapping[int, Size], grid: int
) -> int:
    """Canvas width that the rows with known panels ask for: a fully known row decides."""
    asked = []
    for row in rows:
        given = [i for i in row if i in known]
        if given:
            height = known[given[0]][1]
            parts = [
                known[i][0] if i in known else max(1, round(height * ratio[i] / grid)) * grid
                for i in row
            ]
            asked.append((len(given) == len(row), sum(parts)))
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
    """What a canvas costs: log error of its worst panel, and of its area against the wanted one."""
    # A canvas over the area is only ever a last resort.
    return error + _AREA_WEIGHT * abs(math.log(over)) + (1e6 * over if over > 1 else 0)


def _snap(edges: Sequence[int], scale: float, grid: int) -> dict[int, int]:
    """Scaled edges on the grid, still in order and apart."""
    snapped: dict[int, int] = {}
    last = -grid
    for edge in edges:
        last = max(last + grid, round(edge * scale / grid) * grid)
        snapped[edge] = last
    return snapped
