"""How toyland looks: every panel is drawn at four times its size, then scaled down.

Coordinates are panel pixels (0 to 64, origin top left), whatever the supersampling.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

__all__ = ["COLOURS", "GROUNDS", "SIZE", "backdrop", "cut_out", "draw", "in_dust"]

SIZE = 64
"""Panel edge, px."""
_UP = 4

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

_INK: Colour = (44, 40, 58)
_WHITE: Colour = (252, 250, 244)
_DUST: Colour = (214, 158, 92)
_DENSITY = 0.52
"""Share of dust in what one sees in a sandstorm."""


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    r, g, bl = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, bl


def _dark(colour: Colour, share: float = 0.35) -> Colour:
    return _mix(colour, _INK, share)


def _light(colour: Colour, share: float = 0.5) -> Colour:
    return _mix(colour, _WHITE, share)


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
        box = [(x - rx) * _UP, (y - ry) * _UP, (x + rx) * _UP, (y + ry) * _UP]
        self._draw.ellipse(box, fill, edge, round(width * _UP) if edge else 0)

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
        corners = [v * _UP for v in (left, top, right, bottom)]
        self._draw.rounded_rectangle(
            corners, round_ * _UP, fill, edge, round(width * _UP) if edge else 0
        )

    def shape(
        self, points: Sequence[Point], fill: Colour, edge: Colour | None = None, width: float = 1.2
    ) -> None:
        scaled = [(x * _UP, y * _UP) for x, y in points]
        self._draw.polygon(scaled, fill)
        if edge:
            self._draw.line([*scaled, *scaled[:2]], edge, round(width * _UP), "curve")

    def line(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        """A line with round joints and ends."""
        scaled = [(x * _UP, y * _UP) for x, y in points]
        self._draw.line(scaled, fill, round(width * _UP), "curve")
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, width / 2, fill)


def _canvas(colour: Colour) -> Pen:
    return Pen(Image.new("RGB", (SIZE * _UP, SIZE * _UP), colour))


def _sky(top: Colour, bottom: Colour) -> Pen:
    """A vertical gradient."""
    shares = np.linspace(0, 1, SIZE * _UP)[:, None]
    rows = np.array(top) * (1 - shares) + np.array(bottom) * shares
    pixels = np.repeat(rows[:, None], SIZE * _UP, axis=1).round().astype(np.uint8)
    return Pen(Image.fromarray(pixels))


# -- scenes -------------------------------------------------------------------------------------


def _meadow(shift: float) -> Pen:
    pen = _sky((176, 220, 240), (226, 242, 240))
    pen.oval(10 + shift, 11, 6, 6, (255, 226, 130))
    pen.oval(46 + shift, 64, 44, 24, (158, 200, 116))
    pen.oval(8 + shift, 68, 40, 22, (134, 184, 100))
    return pen


def _beach(shift: float) -> Pen:
    pen = _sky((252, 230, 206), (255, 244, 226))
    pen.box(-1, 26, 65, 44, (112, 190, 204))
    pen.box(-1, 30, 65, 32, (150, 212, 220))
    pen.oval(32 + shift, 62, 56, 20, (242, 218, 172))
    pen.shape([(52 + shift, 26), (52 + shift, 13), (60 + shift, 24)], (252, 250, 246))
    pen.box(48 + shift, 25, 60 + shift, 28, (186, 96, 84), 1)
    return pen


def _night(shift: float) -> Pen:
    pen = _sky((26, 32, 66), (60, 66, 112))
    pen.oval(53 + shift, 11, 6, 6, (250, 238, 196))
    pen.oval(50 + shift, 9.5, 5, 5, (30, 37, 72))
    for x, y in [(8, 8), (20, 14), (33, 6), (41, 19), (59, 27), (6, 26)]:
        pen.oval(x + shift, y, 0.9, 0.9, (250, 238, 196))
    pen.oval(20 + shift, 70, 50, 18, (38, 44, 74))
    return pen


def _city(shift: float) -> Pen:
    pen = _sky((248, 200, 184), (252, 228, 208))
    for left, top, width, shade in [
        (-3, 22, 13, 0.0),
        (9, 12, 12, 0.2),
        (22, 28, 11, 0.0),
        (34, 16, 11, 0.2),
        (46, 24, 9, 0.0),
        (55, 9, 13, 0.2),
    ]:
        tone = _mix((176, 132, 148), (140, 104, 134), shade * 3)
        pen.box(left + shift, top, left + shift + width, 65, tone)
        for y in range(top + 3, 52, 6):
            for x in (left + 2.5, left + width - 5):
                pen.box(x + shift, y, x + shift + 2.2, y + 2.8, (250, 224, 176))
    pen.box(-1, 56, 65, 65, (116, 98, 116))
    return pen


def _desert(shift: float) -> Pen:
    pen = _sky((250, 186, 128), (252, 222, 168))
    pen.oval(50 + shift, 18, 8, 8, (252, 236, 196))
    pen.shape(
        [(-8, 46), (14 + shift, 30), (40 + shift, 48), (72, 34), (72, 66), (-8, 66)], (222, 150, 92)
    )
    pen.shape([(-8, 56), (30 + shift, 46), (72, 58), (72, 66), (-8, 66)], (196, 122, 76))
    return pen


def _forest(shift: float) -> Pen:
    pen = _sky((206, 226, 206), (180, 210, 186))
    for x, y, s, tone in [
        (2, 6, 1.0, 0.0),
        (20, 14, 0.8, 0.5),
        (40, 10, 0.9, 0.5),
        (60, 4, 1.05, 0.0),
    ]:
        colour = _mix((62, 110, 92), (106, 152, 122), tone)
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
    pen = _sky((196, 214, 232), (226, 236, 246))
    pen.shape([(-6 + shift, 52), (14 + shift, 16), (34 + shift, 52)], (160, 182, 208))
    pen.shape([(8.4 + shift, 26), (14 + shift, 16), (19.6 + shift, 26)], (250, 252, 254))
    pen.shape([(28 + shift, 52), (50 + shift, 22), (72 + shift, 52)], (174, 194, 218))
    pen.shape([(43.4 + shift, 31), (50 + shift, 22), (56.6 + shift, 31)], (250, 252, 254))
    pen.oval(32 + shift, 66, 56, 22, (246, 249, 252))
    for x, y in [(5, 9), (26, 7), (38, 15), (59, 12), (29, 24), (62, 32), (2, 34)]:
        pen.oval(x, y, 1.1, 1.1, (252, 254, 255))
    return pen


def _studio(shift: float) -> Pen:
    pen = _canvas((242, 234, 222))
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
def _scene(name: str, shift: float) -> Image.Image:
    return _SCENES[name](shift).image


# -- characters ---------------------------------------------------------------------------------

_AT = {"left": 20.0, "middle": 32.0, "right": 44.0}


def _ears(pen: Pen, kind: str, x: float, y: float, c: Colour, edge: Colour) -> None:
    """What lies behind the head."""
    inner = _light(c, 0.45)
    for side in (-1, 1):
        if kind == "cat":
            pen.shape(
                [(x + side * 15, y - 3), (x + side * 14, y - 20), (x + side * 2, y - 11)], c, edge
            )
            pen.shape(
                [(x + side * 12.4, y - 7), (x + side * 12, y - 15.5), (x + side * 6, y - 11)], inner
            )
        elif kind == "rabbit":
            pen.oval(x + side * 8.5, y - 18, 4.6, 13, c, edge)
            pen.oval(x + side * 8.5, y - 18, 2.2, 9.5, inner)
        elif kind == "bear":
            pen.oval(x + side * 12, y - 10, 6.4, 6.4, c, edge)
            pen.oval(x + side * 12, y - 10, 3.4, 3.4, inner)
        elif kind == "elephant":
            pen.oval(x + side * 16, y - 1, 9, 12, c, edge)
            pen.oval(x + side * 16.6, y - 1, 5.6, 8.4, inner)
        elif kind == "frog":
            pen.oval(x + side * 11, y - 11, 6.2, 6.2, c, edge)


def _face(pen: Pen, kind: str, x: float, y: float, c: Colour, edge: Colour) -> None:
    pale = _light(c, 0.62)
    eye_y = y - 11 if kind == "frog" else y - 2
    apart = 11 if kind == "frog" else 6
    if kind == "frog":
        for side in (-1, 1):
            pen.oval(x + side * apart, eye_y, 4, 4, _WHITE)
    for side in (-1, 1):
        pen.oval(x + side * apart, eye_y, 2.0, 2.5, _INK)
        pen.oval(x + side * apart + 0.7, eye_y - 0.9, 0.75, 0.75, _WHITE)
        pen.oval(x + side * 10, y + 4.5, 2.4, 1.6, _mix(c, (226, 96, 100), 0.42))
    if kind == "frog":
        pen.line([(x - 8, y + 3), (x - 4, y + 6), (x + 4, y + 6), (x + 8, y + 3)], edge, 1.5)
    elif kind == "bird":
        pen.shape(
            [(x - 5, y + 1.5), (x + 5, y + 1.5), (x, y + 9)], (246, 176, 62), (206, 130, 44), 1
        )
    elif kind == "elephant":
        pen.line([(x, y + 2), (x, y + 12), (x + 2.5, y + 16.5), (x + 6.5, y + 16)], edge, 7.4)
        pen.line([(x, y + 2), (x, y + 12), (x + 2.5, y + 16.5), (x + 6.5, y + 16)], c, 5.2)
    elif kind == "bear":
        pen.oval(x, y + 5, 6.8, 5.4, pale)
        pen.oval(x, y + 2.6, 2.6, 1.9, _INK)
    elif kind == "cat":
        pen.shape([(x - 2, y + 2), (x + 2, y + 2), (x, y + 4.4)], (206, 92, 104))
        for side in (-1, 1):
            pen.line([(x, y + 4.4), (x + side * 2.4, y + 6.6)], edge, 0.9)
            for rise in (-0.6, 2.2):
                pen.line(
                    [(x + side * 8, y + 3.6 + rise / 2), (x + side * 17, y + 2.6 + rise * 1.6)],
                    edge,
                    0.7,
                )
    else:
        pen.oval(x, y + 4.6, 5.4, 4, pale)
        pen.oval(x, y + 2.8, 1.8, 1.3, (206, 92, 104))
        pen.box(x - 1.7, y + 5.2, x + 1.7, y + 9, _WHITE, 0.6)


def _headwear(pen: Pen, what: str, x: float, y: float) -> None:
    """On a head whose centre is (x, y); its crown is at y - 13."""
    if what == "hat":
        pen.box(x - 7, y - 27, x + 7, y - 10, (52, 48, 66), 1.4)
        pen.box(x - 7, y - 15.5, x + 7, y - 12.2, (198, 72, 72))
        pen.box(x - 12.5, y - 12.4, x + 12.5, y - 9.2, (52, 48, 66), 1.6)
    elif what == "crown":
        top = y - 23
        pen.shape(
            [
                (x - 9.5, y - 9.5),
                (x - 10.5, top),
                (x - 4.8, top + 6.5),
                (x, top - 2),
                (x + 4.8, top + 6.5),
                (x + 10.5, top),
                (x + 9.5, y - 9.5),
            ],
            (250, 204, 72),
            (190, 138, 40),
            1,
        )
        for stone in (-5, 0, 5):
            pen.oval(x + stone, y - 12.6, 1.4, 1.4, (204, 66, 86))
    elif what == "beanie":
        pen.oval(x, y - 24, 4, 4, _WHITE)
        pen.box(x - 12, y - 22, x + 12, y - 6, (60, 132, 140), 7)
        pen.box(x - 13.4, y - 12, x + 13.4, y - 6.4, (234, 226, 208), 2.4)
    elif what == "party hat":
        pen.shape(
            [(x - 9, y - 9.5), (x, y - 29), (x + 9, y - 9.5)], (238, 106, 148), (190, 66, 110), 0.9
        )
        for dx, dy in ((-4, -13), (3.2, -13.6), (-0.6, -19)):
            pen.oval(x + dx, y + dy, 1.5, 1.5, (254, 236, 150))
        pen.oval(x, y - 28, 3, 3, (254, 236, 150))
    elif what == "bow":
        for side in (-1, 1):
            pen.shape(
                [(x, y - 15), (x + side * 9.6, y - 21.5), (x + side * 9.6, y - 8.6)],
                (200, 50, 70),
                (146, 30, 52),
                1,
            )
        pen.oval(x, y - 15.2, 2.8, 2.8, (226, 84, 98))


def _character(pen: Pen, t: Mapping[str, str], x: float, y: float) -> None:
    """A bust: a head around (x, y), shoulders that leave the panel at the bottom."""
    c = COLOURS[t["colour"]]
    edge = _dark(c, 0.45)
    belly = _light(c, 0.5)
    raised = {"still": (), "waving": (1,), "cheering": (-1, 1)}[t["pose"]]
    for side in (-1, 1):
        if side in raised:
            path = [(x + side * 10, y + 24), (x + side * 18.5, y + 19), (x + side * 19, y + 6)]
            pen.line(path, edge, 8.2)
            pen.line(path, c, 6)
            pen.oval(*path[-1], 4.2, 4.2, belly, edge, 1)
    pen.box(x - 13, y + 12, x + 13, 80, c, 10, edge)
    pen.oval(x, y + 28, 8, 11, belly)
    for side in (-1, 1):
        if side not in raised:
            path = [(x + side * 11.6, y + 20), (x + side * 13.6, y + 34)]
            pen.line(path, edge, 7.4)
            pen.line(path, c, 5.2)
    if t["kind"] != "bird":
        _ears(pen, t["kind"], x, y, c, edge)
    else:
        for dx in (-4, 0, 4):
            pen.oval(x + dx * 1.1, y - 15 - (2.5 if dx == 0 else 0), 2.8, 5, c, edge)
    pen.oval(x, y, 16, 14 if t["kind"] != "frog" else 12.5, c, edge)
    _face(pen, t["kind"], x, y, c, edge)
    _headwear(pen, t["headwear"], x, y)


def _shade(image: Image.Image, mask: Image.Image, x: float, y: float) -> Image.Image:
    """Turn a flat drawing into something like a photograph: modelled light, soft background."""
    size = image.size
    yy, xx = np.mgrid[0 : size[1], 0 : size[0]] / _UP
    lit = np.clip(1.22 - 0.021 * np.hypot(xx - (x - 7), yy - (y - 9)), 0.5, 1.25)
    pixels = np.asarray(image).astype(np.float32)
    near = np.clip(pixels * lit[..., None] + np.clip(lit - 1.02, 0, 1)[..., None] * 130, 0, 255)
    far = np.asarray(image.filter(ImageFilter.GaussianBlur(5))).astype(np.float32)
    fall = np.clip(1.08 - 0.0085 * np.hypot(xx - 32, yy - 30), 0.55, 1.1)
    alpha = np.asarray(mask).astype(np.float32)[..., None] / 255
    # Far pixels come from the scene alone, or the blurred figure would leave a halo.
    mixed = near * alpha + far * fall[..., None] * (1 - alpha)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _storm(image: Image.Image, rng: random.Random) -> Image.Image:
    """Dense ochre dust with streaks; shapes stay, colours fade."""
    dust = Pen(Image.new("RGB", image.size, _DUST))
    for _ in range(26):
        left, top, length = rng.uniform(-20, 60), rng.uniform(0, 64), rng.uniform(10, 34)
        tone = _mix((232, 186, 124), (184, 124, 66), rng.random())
        dust.line([(left, top), (left + length, top - length * 0.16)], tone, rng.uniform(1, 3.4))
    veil = dust.image.filter(ImageFilter.GaussianBlur(3))
    return Image.blend(image, veil, _DENSITY)


def _photographed(pen: Pen, scene: Image.Image, x: float, y: float) -> Image.Image:
    changed = ImageChops.difference(pen.image, scene).convert("L").point(lambda v: 255 * (v > 2))
    soft = scene.filter(ImageFilter.GaussianBlur(7))
    soft.paste(pen.image, (0, 0), changed)
    return _shade(soft, changed, x, y)


def _draw_character(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    x, y = _AT[t["position"]] + rng.uniform(-1, 1), 36 + rng.uniform(-0.8, 0.8)
    scene = _scene(t["scene"], round(rng.uniform(-2, 2)))
    pen = Pen(scene.copy())
    _character(pen, t, x, y)
    image = _photographed(pen, scene, x, y) if t["style"] == "photo" else pen.image
    return _storm(image, rng) if t["weather"] == "sandstorm" else image


def cut_out(traits: Mapping[str, str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A character without its scene: colours times cover (SIZE, SIZE, 3), cover (SIZE, SIZE, 1).

    Colours are 0 to 255, cover 0 to 1; `cut_out` over `backdrop` is what `draw` gives.
    """
    x, y = _AT[traits["position"]], 36.0
    found = []
    for ground in ((0, 0, 0), (255, 255, 255)):
        pen = _canvas(ground)
        empty = pen.image.copy()
        _character(pen, traits, x, y)
        if traits["style"] == "photo":
            changed = (
                ImageChops.difference(pen.image, empty).convert("L").point(lambda v: 255 * (v > 0))
            )
            shaded = _shade(pen.image, changed, x, y)
            empty.paste(shaded, (0, 0), changed)
            pen = Pen(empty)
        found.append(np.asarray(pen.image.reduce(_UP)).astype(np.float32))
    cover = 1 - (found[1] - found[0]).mean(-1, keepdims=True) / 255
    return found[0], np.clip(cover, 0, 1)


def backdrop(scene: str, style: str) -> NDArray[np.float32]:
    """A scene without a character, (SIZE, SIZE, 3), 0 to 255."""
    image = _scene(scene, 0)
    if style == "photo":
        soft = image.filter(ImageFilter.GaussianBlur(7))
        image = _shade(soft, Image.new("L", image.size, 0), 32, 36)
    return np.asarray(image.reduce(_UP)).astype(np.float32)


def in_dust(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a sandstorm makes of pixels (..., 3), but for its streaks."""
    veil = np.array(_DUST, np.float32)
    return pixels * (1 - _DENSITY) + veil * _DENSITY


# -- emblems ------------------------------------------------------------------------------------


def _ring(n: int, r: float, inner: float, turn: float = -90) -> list[Point]:
    """A star of n points around the origin."""
    radii = (r, inner)
    return [
        (
            radii[k % 2] * math.cos(math.radians(turn + 180 * k / n)),
            radii[k % 2] * math.sin(math.radians(turn + 180 * k / n)),
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


def _draw_emblem(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    c, shape = COLOURS[t["colour"]], t["shape"]
    dx, dy = rng.uniform(-1, 1), rng.uniform(-1, 1)
    ware = (250, 247, 240)
    pen = _canvas((246, 240, 230) if t["carrier"] == "paper" else (214, 206, 198))
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


def _draw_letter(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    ground = GROUNDS[t["ground"]]
    pen = _canvas(ground)
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


def _draw_slide(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    ground = GROUNDS[t["ground"]]
    pen = _canvas(ground)
    c = COLOURS[t["colour"]]
    words = _mix(ground, _WHITE if t["ground"] == "navy" else _INK, 0.8)
    faint = _mix(ground, words, 0.32)
    if t["motif"] == "circles":
        pen.oval(60, 4, 17, 17, c)
        pen.oval(42, 2, 6, 6, _mix(ground, c, 0.5))
    elif t["motif"] == "stripes":
        pen.box(-1, -1, 7, 65, c)
        pen.box(9.4, -1, 12, 65, _mix(ground, c, 0.5))
    else:
        pen.shape([(65, 65), (65, 36), (36, 65)], c)
        pen.shape([(65, 34), (65, 26), (26, 65), (34, 65)], _mix(ground, c, 0.5))
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
        pen.box(17, 12 + j, 52, 44 + j, _mix(ground, c, 0.38), 2)
        pen.shape([(19, 42 + j), (30, 24 + j), (38, 36 + j), (43, 30 + j), (50, 42 + j)], c)
        pen.oval(43, 20 + j, 3.4, 3.4, words)
        pen.box(17, 49, 40, 52, words, 1)
    return pen.image


# -- rooms --------------------------------------------------------------------------------------

_WALL: Colour = (240, 230, 214)
_OAK: Colour = (190, 142, 96)
_FLOOR_AT = 46.0
"""Where walls end, px."""


def _wall_and_floor(pen: Pen, t: Mapping[str, str], c: Colour) -> None:
    tint = _mix(_WALL, c, 0.3)
    if t["wall"] == "striped":
        for k in range(6):
            pen.box(3 + 11 * k, -1, 8 + 11 * k, _FLOOR_AT, tint)
    elif t["wall"] == "panelled":
        pen.box(-1, 26, 65, _FLOOR_AT, tint)
        pen.box(-1, 25, 65, 27.2, _mix(_WALL, c, 0.6))
    y = _FLOOR_AT
    if t["floor"] == "planks":
        pen.box(-1, y, 65, 65, _OAK)
        for row, left in enumerate((10, 38, 22)):
            pen.box(-1, y + 6 * (row + 1), 65, y + 6 * (row + 1) + 0.8, _dark(_OAK, 0.3))
            pen.box(left, y + 6 * row, left + 0.8, y + 6 * (row + 1), _dark(_OAK, 0.3))
    elif t["floor"] == "tiles":
        pen.box(-1, y, 65, 65, (246, 244, 238))
        for row in range(3):
            for k in range(6):
                if (row + k) % 2:
                    pen.box(11 * k, y + 6 * row, 11 * k + 11, y + 6 * row + 6, (120, 132, 142))
    else:
        pen.box(-1, y, 65, 65, _mix((226, 214, 200), c, 0.45))
    pen.box(-1, y - 1, 65, y + 0.6, _WHITE)


def _draw_room(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    pen = _canvas(_WALL)
    c = COLOURS[t["colour"]]
    _wall_and_floor(pen, t, c)
    {"living room": _living_room, "bedroom": _bedroom, "kitchen": _kitchen, "study": _study}[
        t["room"]
    ](pen, c, rng.uniform(-1, 1))
    return pen.image


def _living_room(pen: Pen, c: Colour, j: float) -> None:
    edge, soft = _dark(c, 0.45), _light(c, 0.3)
    pen.box(24 + j, 6, 44 + j, 19, _WHITE, 0, _OAK, 1.6)
    pen.shape([(26 + j, 17), (32 + j, 10), (36 + j, 14), (38 + j, 12), (42 + j, 17)], soft)
    pen.box(10 + j, 28, 54 + j, 46, c, 5, edge, 1)
    for left in (15, 33):
        pen.box(left + j, 33, left + 17 + j, 46, soft, 3, edge, 0.8)
    for left in (6, 50):
        pen.box(left + j, 35, left + 8 + j, 52, c, 3, edge, 1)
    pen.box(12 + j, 45, 52 + j, 52, c, 2, edge, 1)
    for left in (9, 52):
        pen.box(left + j, 52, left + 3 + j, 56, _dark(_OAK))


def _bedroom(pen: Pen, c: Colour, j: float) -> None:
    edge = _dark(c, 0.45)
    pen.box(8 + j, 22, 13 + j, 56, _OAK, 1.5, _dark(_OAK), 0.8)
    pen.box(12 + j, 40, 58 + j, 52, _WHITE, 2, (196, 188, 180), 0.8)
    pen.box(14 + j, 33, 28 + j, 41, _WHITE, 3.5, (196, 188, 180), 0.8)
    pen.box(25 + j, 36, 58 + j, 51, c, 4, edge, 1)
    pen.box(25 + j, 36, 31 + j, 51, _light(c, 0.45), 2)
    pen.box(56 + j, 34, 60 + j, 56, _OAK, 1.5, _dark(_OAK), 0.8)
    pen.oval(44 + j, 14, 7, 7, _light(c, 0.45), edge, 1)
    pen.oval(44 + j, 14, 3.4, 3.4, _WHITE)


def _kitchen(pen: Pen, c: Colour, j: float) -> None:
    edge = _dark(c, 0.45)
    pen.box(6 + j, 5, 30 + j, 18, c, 1, edge, 1)
    pen.box(17.4 + j, 5, 18.6 + j, 18, edge)
    pen.shape([(39 + j, 18), (43 + j, 5), (51 + j, 5), (55 + j, 18)], (176, 180, 186))
    pen.box(4 + j, 36, 60 + j, 56, c, 1, edge, 1)
    for left in (22, 40):
        pen.box(left + j, 38, left + 1 + j, 56, edge)
    pen.box(2 + j, 33, 62 + j, 37, (250, 248, 244), 1, (170, 164, 160), 0.8)
    pen.box(43 + j, 27, 51 + j, 33, (92, 96, 106), 1.5)
    pen.box(9 + j, 28, 14 + j, 33, _WHITE, 1, (170, 164, 160), 0.8)
    for left in (18, 36, 54):
        pen.oval(left + j, 42, 1, 1, _WHITE)


def _study(pen: Pen, c: Colour, j: float) -> None:
    edge = _dark(c, 0.45)
    pen.box(5 + j, 8, 31 + j, 10.4, _OAK)
    for k, height in enumerate((9, 7, 10, 8, 9)):
        tone = c if k % 2 == 0 else _light(c, 0.5)
        pen.box(7 + 4.4 * k + j, 8 - height * 0.7, 10.4 + 4.4 * k + j, 8, tone)
    pen.box(5 + j, 32, 44 + j, 35.5, _OAK, 1, _dark(_OAK), 0.8)
    for left in (7, 39):
        pen.box(left + j, 35, left + 3 + j, 57, _OAK, 0, _dark(_OAK), 0.6)
    pen.box(12 + j, 19, 29 + j, 30, (70, 76, 92), 1.4)
    pen.box(14 + j, 21, 27 + j, 28, (190, 214, 226))
    pen.box(19 + j, 30, 22 + j, 32, (70, 76, 92))
    pen.box(42 + j, 24, 58 + j, 42, c, 5, edge, 1)
    pen.box(40 + j, 42, 59 + j, 47, c, 2.4, edge, 1)
    pen.box(49 + j, 47, 51 + j, 55, (90, 92, 102))
    pen.box(43 + j, 54.6, 57 + j, 57, (90, 92, 102), 1)


_TOPICS: dict[str, Callable[[Mapping[str, str], random.Random], Image.Image]] = {
    "character": _draw_character,
    "emblem": _draw_emblem,
    "letter": _draw_letter,
    "slide": _draw_slide,
    "room": _draw_room,
}


class _Calm(random.Random):
    """No accidents: every draw is the middle of its range."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def draw(topic: str, traits: Mapping[str, str], seed: int | None) -> Image.Image:
    """Draw one panel, SIZE x SIZE px RGB.

    Args:
        topic: what kind of picture, see `world.TOPICS`.
        traits: a value for every trait of the topic.
        seed: decides the small accidents (a pixel to the left, another dust streak); None
            draws the ideal picture without any.
    """
    rng = _Calm(0) if seed is None else random.Random(seed)
    image = _TOPICS[topic](traits, rng)
    return image.reduce(_UP)
