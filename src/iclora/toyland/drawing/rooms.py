"""Four rooms, each with its wall and floor."""

from __future__ import annotations

import random
from collections.abc import Mapping

from PIL import Image

from iclora.toyland.drawing.pen import COLOURS, WHITE, Colour, Pen, blank, dark, light, mix

__all__ = ["draw_room"]

_WALL: Colour = (240, 230, 214)
_OAK: Colour = (190, 142, 96)
_FLOOR_AT = 46.0
"""Where walls end, px."""


def _wall_and_floor(pen: Pen, t: Mapping[str, str], c: Colour) -> None:
    tint = mix(_WALL, c, 0.3)
    if t["wall"] == "striped":
        for k in range(6):
            pen.box(3 + 11 * k, -1, 8 + 11 * k, _FLOOR_AT, tint)
    elif t["wall"] == "panelled":
        pen.box(-1, 26, 65, _FLOOR_AT, tint)
        pen.box(-1, 25, 65, 27.2, mix(_WALL, c, 0.6))
    y = _FLOOR_AT
    if t["floor"] == "planks":
        pen.box(-1, y, 65, 65, _OAK)
        for row, left in enumerate((10, 38, 22)):
            pen.box(-1, y + 6 * (row + 1), 65, y + 6 * (row + 1) + 0.8, dark(_OAK, 0.3))
            pen.box(left, y + 6 * row, left + 0.8, y + 6 * (row + 1), dark(_OAK, 0.3))
    elif t["floor"] == "tiles":
        pen.box(-1, y, 65, 65, (246, 244, 238))
        for row in range(3):
            for k in range(6):
                if (row + k) % 2:
                    pen.box(11 * k, y + 6 * row, 11 * k + 11, y + 6 * row + 6, (120, 132, 142))
    else:
        pen.box(-1, y, 65, 65, mix((226, 214, 200), c, 0.45))
    pen.box(-1, y - 1, 65, y + 0.6, WHITE)


def draw_room(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    pen = blank(_WALL)
    c = COLOURS[t["colour"]]
    _wall_and_floor(pen, t, c)
    {"living room": _living_room, "bedroom": _bedroom, "kitchen": _kitchen, "study": _study}[
        t["room"]
    ](pen, c, rng.uniform(-1, 1))
    return pen.image


def _living_room(pen: Pen, c: Colour, j: float) -> None:
    edge, soft = dark(c, 0.45), light(c, 0.3)
    pen.box(24 + j, 6, 44 + j, 19, WHITE, 0, _OAK, 1.6)
    pen.shape([(26 + j, 17), (32 + j, 10), (36 + j, 14), (38 + j, 12), (42 + j, 17)], soft)
    pen.box(10 + j, 28, 54 + j, 46, c, 5, edge, 1)
    for left in (15, 33):
        pen.box(left + j, 33, left + 17 + j, 46, soft, 3, edge, 0.8)
    for left in (6, 50):
        pen.box(left + j, 35, left + 8 + j, 52, c, 3, edge, 1)
    pen.box(12 + j, 45, 52 + j, 52, c, 2, edge, 1)
    for left in (9, 52):
        pen.box(left + j, 52, left + 3 + j, 56, dark(_OAK))


def _bedroom(pen: Pen, c: Colour, j: float) -> None:
    edge = dark(c, 0.45)
    pen.box(8 + j, 22, 13 + j, 56, _OAK, 1.5, dark(_OAK), 0.8)
    pen.box(12 + j, 40, 58 + j, 52, WHITE, 2, (196, 188, 180), 0.8)
    pen.box(14 + j, 33, 28 + j, 41, WHITE, 3.5, (196, 188, 180), 0.8)
    pen.box(25 + j, 36, 58 + j, 51, c, 4, edge, 1)
    pen.box(25 + j, 36, 31 + j, 51, light(c, 0.45), 2)
    pen.box(56 + j, 34, 60 + j, 56, _OAK, 1.5, dark(_OAK), 0.8)
    pen.oval(44 + j, 14, 7, 7, light(c, 0.45), edge, 1)
    pen.oval(44 + j, 14, 3.4, 3.4, WHITE)


def _kitchen(pen: Pen, c: Colour, j: float) -> None:
    edge = dark(c, 0.45)
    pen.box(6 + j, 5, 30 + j, 18, c, 1, edge, 1)
    pen.box(17.4 + j, 5, 18.6 + j, 18, edge)
    pen.shape([(39 + j, 18), (43 + j, 5), (51 + j, 5), (55 + j, 18)], (176, 180, 186))
    pen.box(4 + j, 36, 60 + j, 56, c, 1, edge, 1)
    for left in (22, 40):
        pen.box(left + j, 38, left + 1 + j, 56, edge)
    pen.box(2 + j, 33, 62 + j, 37, (250, 248, 244), 1, (170, 164, 160), 0.8)
    pen.box(43 + j, 27, 51 + j, 33, (92, 96, 106), 1.5)
    pen.box(9 + j, 28, 14 + j, 33, WHITE, 1, (170, 164, 160), 0.8)
    for left in (18, 36, 54):
        pen.oval(left + j, 42, 1, 1, WHITE)


def _study(pen: Pen, c: Colour, j: float) -> None:
    edge = dark(c, 0.45)
    pen.box(5 + j, 8, 31 + j, 10.4, _OAK)
    for k, height in enumerate((9, 7, 10, 8, 9)):
        tone = c if k % 2 == 0 else light(c, 0.5)
        pen.box(7 + 4.4 * k + j, 8 - height * 0.7, 10.4 + 4.4 * k + j, 8, tone)
    pen.box(5 + j, 32, 44 + j, 35.5, _OAK, 1, dark(_OAK), 0.8)
    for left in (7, 39):
        pen.box(left + j, 35, left + 3 + j, 57, _OAK, 0, dark(_OAK), 0.6)
    pen.box(12 + j, 19, 29 + j, 30, (70, 76, 92), 1.4)
    pen.box(14 + j, 21, 27 + j, 28, (190, 214, 226))
    pen.box(19 + j, 30, 22 + j, 32, (70, 76, 92))
    pen.box(42 + j, 24, 58 + j, 42, c, 5, edge, 1)
    pen.box(40 + j, 42, 59 + j, 47, c, 2.4, edge, 1)
    pen.box(49 + j, 47, 51 + j, 55, (90, 92, 102))
    pen.box(43 + j, 54.6, 57 + j, 57, (90, 92, 102), 1)
