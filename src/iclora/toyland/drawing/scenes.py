"""Eight scenes that characters stand in."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from iclora.toyland.drawing.pen import Pen, blank, mix, sky

__all__ = ["scene_picture"]


def _meadow(shift: float) -> Pen:
    pen = sky((176, 220, 240), (226, 242, 240))
    pen.oval(10 + shift, 11, 6, 6, (255, 226, 130))
    pen.oval(46 + shift, 64, 44, 24, (158, 200, 116))
    pen.oval(8 + shift, 68, 40, 22, (134, 184, 100))
    return pen


def _beach(shift: float) -> Pen:
    pen = sky((252, 230, 206), (255, 244, 226))
    pen.box(-1, 26, 65, 44, (112, 190, 204))
    pen.box(-1, 30, 65, 32, (150, 212, 220))
    pen.oval(32 + shift, 62, 56, 20, (242, 218, 172))
    pen.shape([(52 + shift, 26), (52 + shift, 13), (60 + shift, 24)], (252, 250, 246))
    pen.box(48 + shift, 25, 60 + shift, 28, (186, 96, 84), 1)
    return pen


def _night(shift: float) -> Pen:
    pen = sky((26, 32, 66), (60, 66, 112))
    pen.oval(53 + shift, 11, 6, 6, (250, 238, 196))
    pen.oval(50 + shift, 9.5, 5, 5, (30, 37, 72))
    for x, y in [(8, 8), (20, 14), (33, 6), (41, 19), (59, 27), (6, 26)]:
        pen.oval(x + shift, y, 0.9, 0.9, (250, 238, 196))
    pen.oval(20 + shift, 70, 50, 18, (38, 44, 74))
    return pen


def _city(shift: float) -> Pen:
    pen = sky((248, 200, 184), (252, 228, 208))
    for left, top, width, shade in [
        (-3, 22, 13, 0.0),
        (9, 12, 12, 0.2),
        (22, 28, 11, 0.0),
        (34, 16, 11, 0.2),
        (46, 24, 9, 0.0),
        (55, 9, 13, 0.2),
    ]:
        tone = mix((176, 132, 148), (140, 104, 134), shade * 3)
        pen.box(left + shift, top, left + shift + width, 65, tone)
        for y in range(top + 3, 52, 6):
            for x in (left + 2.5, left + width - 5):
                pen.box(x + shift, y, x + shift + 2.2, y + 2.8, (250, 224, 176))
    pen.box(-1, 56, 65, 65, (116, 98, 116))
    return pen


def _desert(shift: float) -> Pen:
    pen = sky((250, 186, 128), (252, 222, 168))
    pen.oval(50 + shift, 18, 8, 8, (252, 236, 196))
    pen.shape(
        [(-8, 46), (14 + shift, 30), (40 + shift, 48), (72, 34), (72, 66), (-8, 66)], (222, 150, 92)
    )
    pen.shape([(-8, 56), (30 + shift, 46), (72, 58), (72, 66), (-8, 66)], (196, 122, 76))
    return pen


def _forest(shift: float) -> Pen:
    pen = sky((206, 226, 206), (180, 210, 186))
    for x, y, s, tone in [
        (2, 6, 1.0, 0.0),
        (20, 14, 0.8, 0.5),
        (40, 10, 0.9, 0.5),
        (60, 4, 1.05, 0.0),
    ]:
        colour = mix((62, 110, 92), (106, 152, 122), tone)
        pen.box(x - 1.4 + shift, y + 30 * s, x + 1.4 + shift, 62, (110, 84, 70))
        for k in range(3):
            half, top = (6 + 3.2 * k) * s, y + 11 * k * s
            foot = top + 16 * s
            pen.shape(
                [(x + shift - half, foot), (x + shift, top), (x + shift + half, foot)], colour
            )
    pen.oval(32, 72, 54, 20, (92, 130, 92))
    return pen


def _snow(shift: float) -> Pen:
    pen = sky((196, 214, 232), (226, 236, 246))
    pen.shape([(-6 + shift, 52), (14 + shift, 16), (34 + shift, 52)], (160, 182, 208))
    pen.shape([(8.4 + shift, 26), (14 + shift, 16), (19.6 + shift, 26)], (250, 252, 254))
    pen.shape([(28 + shift, 52), (50 + shift, 22), (72 + shift, 52)], (174, 194, 218))
    pen.shape([(43.4 + shift, 31), (50 + shift, 22), (56.6 + shift, 31)], (250, 252, 254))
    pen.oval(32 + shift, 66, 56, 22, (246, 249, 252))
    for x, y in [(5, 9), (26, 7), (38, 15), (59, 12), (29, 24), (62, 32), (2, 34)]:
        pen.oval(x, y, 1.1, 1.1, (252, 254, 255))
    return pen


def _studio(shift: float) -> Pen:
    pen = blank((242, 234, 222))
    pen.oval(32 + shift, 30, 27, 27, (228, 214, 196))
    return pen


_SCENES: dict[str, Callable[[float], Pen]] = {
    "meadow": _meadow,
    "beach": _beach,
    "night": _night,
    "city": _city,
    "desert": _desert,
    "forest": _forest,
    "snow": _snow,
    "studio": _studio,
}


@lru_cache(maxsize=256)
def scene_picture(name: str, shift: float) -> Image.Image:
    return _SCENES[name](shift).image
