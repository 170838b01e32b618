"""Emblems on their carriers, letters, slides."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from iclora.toyland.drawing.pen import COLOURS, GROUNDS, INK, WHITE, Colour, Pen, Point, blank, mix

__all__ = ["draw_emblem", "draw_letter", "draw_slide"]


def _ring(n: int, r: float, inner: float, start: float = -90) -> list[Point]:
    """A star of n points around the origin."""
    radii = (r, inner)
    return [
        (
            radii[k % 2] * math.cos(math.radians(start + 180 * k / n)),
            radii[k % 2] * math.sin(math.radians(start + 180 * k / n)),
        )
        for k in range(2 * n)
    ]


def _emblem(pen: Pen, shape: str, x: float, y: float, r: float, c: Colour, ground: Colour) -> None:
    def at(points: Sequence[Point]) -> list[Point]:
        return [(x + px * r, y + py * r) for px, py in points]

    if shape == "star":
        pen.shape(at(_ring(5, 1.08, 0.46)), c)
    elif shape == "moon":
        pen.oval(x, y, r, r, c)
        pen.oval(x + 0.46 * r, y - 0.2 * r, 0.78 * r, 0.78 * r, ground)
    elif shape == "heart":
        pen.oval(x - 0.46 * r, y - 0.3 * r, 0.54 * r, 0.54 * r, c)
        pen.oval(x + 0.46 * r, y - 0.3 * r, 0.54 * r, 0.54 * r, c)
        pen.shape(at([(-0.93, -0.04), (0.93, -0.04), (0, 0.98)]), c)
    elif shape == "drop":
        pen.oval(x, y + 0.3 * r, 0.68 * r, 0.68 * r, c)
        pen.shape(at([(-0.62, 0.06), (0, -1.08), (0.62, 0.06)]), c)
    elif shape == "bolt":
        pen.shape(
            at(
                [(0.3, -1.08), (-0.7, 0.2), (-0.08, 0.2), (-0.3, 1.08), (0.7, -0.24), (0.08, -0.24)]
            ),
            c,
        )
    elif shape == "flower":
        for k in range(6):
            a = math.radians(60 * k - 90)
            pen.oval(x + 0.6 * r * math.cos(a), y + 0.6 * r * math.sin(a), 0.42 * r, 0.42 * r, c)
        pen.oval(x, y, 0.34 * r, 0.34 * r, ground)


def draw_emblem(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    c, shape = COLOURS[t["colour"]], t["shape"]
    dx, dy = rng.uniform(-1, 1), rng.uniform(-1, 1)
    ware = (250, 247, 240)
    pen = blank((246, 240, 230) if t["carrier"] == "paper" else (214, 206, 198))
    line = (158, 146, 140)
    if t["carrier"] == "paper":
        _emblem(pen, shape, 32 + dx, 32 + dy, 21, c, (246, 240, 230))
        return pen.image
    if t["carrier"] != "sign":
        pen.box(-1, 52, 65, 65, (190, 178, 168))
    if t["carrier"] == "mug":
        pen.oval(50 + dx, 34 + dy, 10, 11, line)
        pen.oval(50 + dx, 34 + dy, 6, 7, (214, 206, 198))
        pen.box(10 + dx, 12 + dy, 50 + dx, 56 + dy, ware, 5, line, 0.8)
        pen.oval(30 + dx, 13.5 + dy, 19, 3, (226, 220, 210))
        x, y, r = 30 + dx, 36 + dy, 13.0
    elif t["carrier"] == "bag":
        pen.line(
            [(22 + dx, 22 + dy), (25 + dx, 6 + dy), (39 + dx, 6 + dy), (42 + dx, 22 + dy)],
            line,
            2.4,
        )
        pen.shape(
            [(12 + dx, 19 + dy), (52 + dx, 19 + dy), (56 + dx, 60 + dy), (8 + dx, 60 + dy)],
            ware,
            line,
            0.8,
        )
        x, y, r = 32 + dx, 40 + dy, 14.0
    elif t["carrier"] == "shirt":
        pen.shape(
            [
                (20, 8),
                (44, 8),
                (62, 20),
                (55, 32),
                (48, 27),
                (48, 61),
                (16, 61),
                (16, 27),
                (9, 32),
                (2, 20),
            ],
            ware,
            line,
            0.8,
        )
        pen.oval(32, 8, 7, 5, (214, 206, 198))
        x, y, r = 32 + dx, 38 + dy, 12.5
    else:
        pen.box(30, -2, 34, 10, line)
        pen.box(7 + dx, 9 + dy, 57 + dx, 57 + dy, ware, 9, line, 1.6)
        x, y, r = 32 + dx, 33 + dy, 16.0
    _emblem(pen, shape, x, y, r, c, ware)
    return pen.image


# -- letters ------------------------------------------------------------------------------------


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    angles = np.radians(np.linspace(start, end, 25))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


_LETTERS: dict[str, list[list[Point]]] = {
    "A": [[(-0.8, 1), (0, -1), (0.8, 1)], [(-0.5, 0.3), (0.5, 0.3)]],
    "C": [_arc(0.1, 0, 0.9, 1, -45, -315)],
    "E": [[(0.7, -1), (-0.6, -1), (-0.6, 1), (0.7, 1)], [(-0.6, 0), (0.45, 0)]],
    "H": [[(-0.75, -1), (-0.75, 1)], [(0.75, -1), (0.75, 1)], [(-0.75, 0), (0.75, 0)]],
    "L": [[(-0.6, -1), (-0.6, 1), (0.7, 1)]],
    "O": [_arc(0, 0, 0.9, 1, 0, 360)],
    "S": [[*_arc(0, -0.5, 0.68, 0.5, -30, -270), *_arc(0, 0.5, 0.68, 0.5, -90, 150)]],
    "T": [[(-0.85, -1), (0.85, -1)], [(0, -1), (0, 1)]],
}
"""Centre lines, in units of half the letter's height."""


def draw_letter(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    ground = GROUNDS[t["ground"]]
    pen = blank(ground)
    c = COLOURS[t["colour"]]
    x, y = 32 + rng.uniform(-1, 1), 32 + rng.uniform(-1, 1)
    lean = 0.32 if t["slant"] == "slanted" else 0.0
    strokes = [
        [(x + 18 * px - lean * 19 * py, y + 19 * py) for px, py in stroke]
        for stroke in _LETTERS[t["letter"]]
    ]
    weight = {"thin": 3.4, "bold": 11.0, "outlined": 11.0}[t["stroke"]]
    for stroke in strokes:
        pen.line(stroke, c, weight)
    if t["stroke"] == "outlined":
        for stroke in strokes:
            pen.line(stroke, ground, 6.2)
    return pen.image


# -- slides -------------------------------------------------------------------------------------


def draw_slide(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    ground = GROUNDS[t["ground"]]
    pen = blank(ground)
    c = COLOURS[t["colour"]]
    words = mix(ground, WHITE if t["ground"] == "navy" else INK, 0.8)
    faint = mix(ground, words, 0.32)
    if t["motif"] == "circles":
        pen.oval(60, 4, 17, 17, c)
        pen.oval(42, 2, 6, 6, mix(ground, c, 0.5))
    elif t["motif"] == "stripes":
        pen.box(-1, -1, 7, 65, c)
        pen.box(9.4, -1, 12, 65, mix(ground, c, 0.5))
    else:
        pen.shape([(65, 65), (65, 36), (36, 65)], c)
        pen.shape([(65, 34), (65, 26), (26, 65), (34, 65)], mix(ground, c, 0.5))
    j = rng.uniform(-1.5, 1.5)
    if t["slide"] == "title":
        pen.box(17, 24 + j, 52, 31 + j, words, 1.5)
        pen.box(17, 35 + j, 42, 38 + j, faint, 1)
    elif t["slide"] == "chart":
        pen.box(17, 8, 38, 12, words, 1)
        for k, share in enumerate((0.45, 0.75, 0.6, 1.0)):
            pen.box(
                17 + 8.5 * k, 50 - (30 + j) * share, 23 + 8.5 * k, 50, c if k % 2 else words, 0.8
            )
        pen.line([(16, 51), (50, 51)], faint, 1.2)
    elif t["slide"] == "list":
        pen.box(17, 8, 38, 12, words, 1)
        for k in range(4):
            pen.oval(19, 21 + j + 9 * k, 2.2, 2.2, c)
            pen.box(25, 19.6 + j + 9 * k, 50 - 5 * (k % 2), 22.4 + j + 9 * k, faint, 1)
    else:
        pen.box(17, 12 + j, 52, 44 + j, mix(ground, c, 0.38), 2)
        pen.shape([(19, 42 + j), (30, 24 + j), (38, 36 + j), (43, 30 + j), (50, 42 + j)], c)
        pen.oval(43, 20 + j, 3.4, 3.4, words)
        pen.box(17, 49, 40, 52, words, 1)
    return pen.image
