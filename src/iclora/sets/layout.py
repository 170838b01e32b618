"""Layouts: the canvas of a set and the places of its panels, fitted to pictures and grids.

A layout is a canvas and one box per panel. Most are *rows of panels*: `per_row` says how many
panels each row holds, from the top: (1, 1, 1) is three stacked, (2,) two side by side, (2, 2) the
familiar 2x2. Every row fills the width and has a height of its own, and within a row every panel
has a width of its own, so nothing is cropped. Free boxes (`per_row` empty) scale as a whole.

Token grid: a diffusion transformer reads the canvas in square tokens (16 px for FLUX.1). If every
box edge is a multiple of the grid, a panel mask is an exact token mask.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iclora.errors import LayoutError
from iclora.sets.fitting import (
    Size,
    check_canvas,
    fit_edges,
    fit_rows,
    place_edges,
    ranks,
    rows_around,
    shares,
    stack,
    stretch,
    unrounded,
)
from iclora.settings import problems_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["GRID", "MOST_STRETCH", "Box", "Layout", "Size", "token_mask"]

GRID = 16
"""Token edge, px, if no base is at hand to ask: that of FLUX.1, FLUX.2, Qwen-Image and Z-Image."""
_MOST_PANELS = 9
# Beyond this a resized panel looks wrong to anybody; grid rounding stays far below it.
MOST_STRETCH = 1.25
_LANCZOS = 1  # Pillow's number for it; geometry does not import Pillow.


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
    """A canvas of width x height px and the boxes of its panels, in reading order.

    Raises: pydantic.ValidationError for fewer than 2 or more than 9 panels, for boxes that
        overlap, are empty or leave the canvas, and for `per_row` that contradicts the boxes. The
        class methods raise LayoutError instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int
    height: int
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
        if not 2 <= n <= _MOST_PANELS and not self.single:
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
        rows = [[self.boxes[i] for i in row] for row in self._rows()]
        heights = [row[0].height for row in rows]
        size, boxes = stack(heights, [[box.width for box in row] for row in rows])
        full = all(sum(box.width for box in row) == self.width for row in rows)
        if not full or size != self.size or tuple(boxes) != self.boxes:
            raise LayoutError(
                f"the boxes are not rows of {list(self.per_row)} panels that fill the canvas",
                "Correct per_row, or leave it empty for free boxes.",
            )

    @classmethod
    def of_rows(cls, per_row: Iterable[int], width: int, height: int, grid: int = 1) -> Layout:
        """Rows of equal panels that fill the canvas, every edge a multiple of `grid` px.

        If the canvas does not divide evenly, earlier panels are one grid step larger.
        Raises: LayoutError if the canvas is off the grid or too small.
        """
        rows = tuple(per_row)
        if not rows or min(rows) < 1:
            raise LayoutError(f"rows of {list(rows)} panels", "Give every row at least one panel.")
        check_canvas(rows, width, height, grid)
        widths = [shares(width, [1] * n, grid) for n in rows]
        return cls.stacked(shares(height, [1] * len(rows), grid), widths)

    @classmethod
    def stacked(cls, heights: Sequence[int], widths: Sequence[Sequence[int]]) -> Layout:
        """Rows of these heights that hold panels of these widths. Raises: LayoutError."""
        size, boxes = stack(heights, widths)
        return cls._of(*size, boxes, tuple(len(row) for row in widths))

    @classmethod
    def _of(
        cls, width: int, height: int, boxes: Iterable[Iterable[int]], per_row: tuple[int, ...] = ()
    ) -> Layout:
        """A layout of whole numbers, which need no validation. Raises: LayoutError."""
        found = tuple(Box(*box) for box in boxes)
        made = cls.model_construct(width=width, height=height, per_row=per_row, boxes=found)
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
        return cls._of(width, height, [map(int, box) for box in boxes])

    @property
    def panels(self) -> int:
        return len(self.boxes)

    @property
    def single(self) -> bool:
        """Whether it is no set's but a single picture's: one panel that fills its canvas."""
        return self.boxes == (Box(0, 0, self.width, self.height),) and not self.per_row

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
        off = self._off_grid(grid)
        if off:
            raise LayoutError(
                f"{off} off the {grid} px token grid, so a token would be half inside a panel",
                "Fit the layout to the grid: layout.fit(sizes, area, grid).",
            )

    def _off_grid(self, grid: int) -> str | None:
        """The first thing with an edge off the grid, in words."""
        for i, box in enumerate(self.boxes, 1):
            if any(edge % grid for edge in box.corners):
                return f"panel {i} {box.corners} has an edge"
        if self.width % grid or self.height % grid:
            return f"a canvas of {self.width}x{self.height} px is"
        return None

    def stretch(self, sizes: Sequence[Size]) -> list[float]:
        """How far each box is off the aspect of the picture meant for it; 1.0 is exact.

        1.1 means the picture ends up 10% too wide or too tall. `sizes` are the pictures', in px.
        """
        self.check_count(len(sizes))
        return [stretch(box, size) for box, size in zip(self.sizes, sizes, strict=True)]

    def check_count(self, count: int) -> None:
        """Raises: LayoutError unless there is one picture for every panel."""
        if count != self.panels:
            raise LayoutError(
                f"{count} pictures for a layout of {self.panels} panels",
                "Give one picture for every panel, in reading order.",
            )

    def has_places_of(self, other: Layout) -> bool:
        """True if panels lie as in the other layout, and only their sizes differ."""
        if self.per_row or other.per_row:
            return self.per_row == other.per_row
        return _ranks(self) == _ranks(other)

    def check_number(self, number: int) -> None:
        """Raises: LayoutError if there is no panel of this number, counted from 1."""
        if not 1 <= number <= self.panels:
            raise LayoutError(
                f"there is no panel {number}; this layout has {self.panels}",
                f"Name panels 1 to {self.panels}.",
            )

    def _rows(self) -> list[list[int]]:
        """The numbers of the panels in each row, counted from 0."""
        return [list(range(a, b)) for a, b in pairwise([0, *accumulate(self.per_row)])]

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
        Raises: LayoutError if the number of pictures is wrong, or the area below 1.
        """
        if not area >= 1:
            raise LayoutError(f"a canvas of {area} px^2", "Ask for a resolution of 64 or more.")
        self.check_count(len(sizes))
        aspects = [w / h for w, h in sizes]
        if self.per_row:
            rows = tuple(tuple(aspects[i] for i in row) for row in self._rows())
            return Layout.stacked(*fit_rows(rows, area, grid))
        return self._moved(*fit_edges(self.boxes, self.size, aspects, area, grid))

    def fit_around(self, given: Mapping[int, Size], grid: int) -> Layout | None:
        """The same arrangement with some panels at exactly these sizes, on the grid.

        The other panels keep close to their shapes. This is how a set is completed without
        resizing the given pictures.

        Args:
            given: sizes in px by panel index, counted from 0; at least one.
        Returns: None if these sizes do not fit together, are off the grid, or would stretch
            another panel by more than 15%.
        """
        if any(w % grid or h % grid for w, h in given.values()):
            return None
        if not self.per_row:
            same = all(self.sizes[i] == size for i, size in given.items())
            return self if same and self._off_grid(grid) is None else None
        found = rows_around(self._rows(), [w / h for w, h in self.sizes], given, grid)
        if found is None:
            return None
        layout = Layout.stacked(*found)
        stretched = [s for i, s in enumerate(layout.stretch(self.sizes)) if i not in given]
        return layout if max(stretched, default=1.0) <= 1.15 else None

    def resized(self, width: int, height: int, grid: int) -> Layout:
        """The same arrangement on a canvas of exactly `width` x `height` px, on the grid.

        All edges move in proportion: a row twice as high as another stays so, and rows that only
        the grid's rounding made unequal become equal.

        Raises: LayoutError if that canvas is off the grid, or too small for its panels.
        """
        check_canvas(self.per_row, width, height, grid)
        if self.per_row:
            rows = [[self.boxes[i] for i in row] for row in self._rows()]
            heights = shares(height, unrounded([row[0].height for row in rows], grid), grid)
            widths = [shares(width, unrounded([b.width for b in row], grid), grid) for row in rows]
            return Layout.stacked(heights, widths)
        across = place_edges([(b.left, b.right) for b in self.boxes], self.width, width, grid)
        down = place_edges([(b.top, b.bottom) for b in self.boxes], self.height, height, grid)
        if across is None or down is None:
            raise LayoutError(
                f"a canvas of {width}x{height} px is too small for boxes of at least {grid} px",
                "Use a larger canvas.",
            )
        return self._moved(across, down)

    def _moved(self, across: Mapping[int, int], down: Mapping[int, int]) -> Layout:
        """The same free boxes with every edge moved."""
        boxes = []
        for b in self.boxes:
            left, top = across[b.left], down[b.top]
            boxes.append((left, top, across[b.right] - left, down[b.bottom] - top))
        return Layout._of(across[self.width], down[self.height], boxes)

    def fit_panel(self, number: int, image: Image) -> Image:
        """A picture at the size of its panel's box; it is resized at most once, never cropped.

        Args:
            number: of the panel, counted from 1.
        Raises: LayoutError if there is no such panel, or if the picture would be stretched by more
            than 25%.
        """
        self.check_number(number)
        box = self.boxes[number - 1]
        off = stretch(box.size, image.size)
        if off > MOST_STRETCH:
            raise LayoutError(
                f"panel {number} is {image.width}x{image.height} px and its box "
                f"{box.width}x{box.height} px: it would be stretched by {100 * (off - 1):.0f}%,"
                " and nothing is cropped",
                "Fit the layout to the pictures, or give the picture the box's shape.",
            )
        return image if image.size == box.size else image.resize(box.size, _LANCZOS)

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


def _ranks(layout: Layout) -> tuple[list[Size], list[Size]]:
    across = ranks([(b.left, b.right) for b in layout.boxes], layout.width)
    return across, ranks([(b.top, b.bottom) for b in layout.boxes], layout.height)


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
