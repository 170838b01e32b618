"""The palette and the pen every picture is drawn with.

Coordinates are panel px (0 to 64, origin top left), whatever the supersampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

__all__ = [
    "COLOURS",
    "GROUNDS",
    "INK",
    "SCALE",
    "SIZE",
    "WHITE",
    "Colour",
    "Pen",
    "Point",
    "blank",
    "dark",
    "light",
    "mix",
    "sky",
]

SIZE = 64
"""Panel edge, px."""
SCALE = 4
"""Every panel is drawn at this multiple of its size, then scaled down."""

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (212, 76, 71),
    "orange": (236, 142, 62),
    "yellow": (244, 205, 84),
    "green": (112, 170, 92),
    "blue": (68, 132, 196),
    "purple": (138, 98, 176),
    "pink": (240, 150, 178),
    "grey": (136, 142, 150),
}
"""What a character, an emblem, a letter or a deck can be coloured."""

GROUNDS: dict[str, Colour] = {
    "cream": (250, 242, 224),
    "navy": (38, 48, 78),
    "mint": (206, 232, 218),
    "white": (252, 252, 252),
}

INK: Colour = (44, 40, 58)
WHITE: Colour = (252, 250, 244)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    r, g, bl = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, bl


def dark(colour: Colour, share: float = 0.35) -> Colour:
    return mix(colour, INK, share)


def light(colour: Colour, share: float = 0.5) -> Colour:
    return mix(colour, WHITE, share)


class Pen:
    """Draws in panel px on a supersampled picture."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image)

    def oval(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: Colour,
        edge: Colour | None = None,
        width: float = 1.2,
    ) -> None:
        """An ellipse around (x, y); its edge is drawn inside of it."""
        box = [(x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE]
        self._draw.ellipse(box, fill, edge, round(width * SCALE) if edge else 0)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        fill: Colour,
        round_: float = 0,
        edge: Colour | None = None,
        width: float = 1.2,
    ) -> None:
        corners = [v * SCALE for v in (left, top, right, bottom)]
        self._draw.rounded_rectangle(
            corners, round_ * SCALE, fill, edge, round(width * SCALE) if edge else 0
        )

    def shape(
        self, points: Sequence[Point], fill: Colour, edge: Colour | None = None, width: float = 1.2
    ) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.polygon(scaled, fill)
        if edge:
            self._draw.line([*scaled, *scaled[:2]], edge, round(width * SCALE), "curve")

    def line(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        """A line with round joints and ends."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill, round(width * SCALE), "curve")
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, width / 2, fill)


def blank(colour: Colour) -> Pen:
    return Pen(Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), colour))


def sky(top: Colour, bottom: Colour) -> Pen:
    """A vertical gradient."""
    shares = np.linspace(0, 1, SIZE * SCALE)[:, None]
    rows = np.array(top) * (1 - shares) + np.array(bottom) * shares
    pixels = np.repeat(rows[:, None], SIZE * SCALE, axis=1).round().astype(np.uint8)
    return Pen(Image.fromarray(pixels))
