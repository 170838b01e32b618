"""Characters before a scene: flat or photographed, in clear air or in a sandstorm."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from iclora.toyland.drawing.pen import (
    COLOURS,
    INK,
    SCALE,
    WHITE,
    Colour,
    Pen,
    blank,
    dark,
    light,
    mix,
)
from iclora.toyland.drawing.scenes import scene_picture

__all__ = ["backdrop", "cut_out", "draw_character", "in_dust"]

DUST: Colour = (214, 158, 92)
_DENSITY = 0.52
"""Share of dust in what one sees in a sandstorm."""
_AT = {"left": 20.0, "middle": 32.0, "right": 44.0}
_HEIGHT = 36.0


def _ears(pen: Pen, kind: str, x: float, y: float, c: Colour, edge: Colour) -> None:
    """What lies behind the head."""
    inner = light(c, 0.45)
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
    pale = light(c, 0.62)
    eye_y = y - 11 if kind == "frog" else y - 2
    apart = 11 if kind == "frog" else 6
    if kind == "frog":
        for side in (-1, 1):
            pen.oval(x + side * apart, eye_y, 4, 4, WHITE)
    for side in (-1, 1):
        pen.oval(x + side * apart, eye_y, 2.0, 2.5, INK)
        pen.oval(x + side * apart + 0.7, eye_y - 0.9, 0.75, 0.75, WHITE)
        pen.oval(x + side * 10, y + 4.5, 2.4, 1.6, mix(c, (226, 96, 100), 0.42))
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
        pen.oval(x, y + 2.6, 2.6, 1.9, INK)
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
        pen.box(x - 1.7, y + 5.2, x + 1.7, y + 9, WHITE, 0.6)


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
        pen.oval(x, y - 24, 4, 4, WHITE)
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
    """A bust without headwear: a head around (x, y), shoulders that leave the panel below."""
    c = COLOURS[t["colour"]]
    edge = dark(c, 0.45)
    belly = light(c, 0.5)
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


def _shade(image: Image.Image, mask: Image.Image, x: float, y: float) -> Image.Image:
    """Turn a flat drawing into something like a photograph: modelled light, soft background."""
    yy, xx = np.mgrid[0 : image.height, 0 : image.width] / SCALE
    near = _lit(np.asarray(image), x, y)
    far = np.asarray(image.filter(ImageFilter.GaussianBlur(5))).astype(np.float32)
    fall = np.clip(1.08 - 0.0085 * np.hypot(xx - 32, yy - 30), 0.55, 1.1)
    alpha = np.asarray(mask).astype(np.float32)[..., None] / 255
    # Far pixels come from the scene alone, or the blurred figure would leave a halo.
    mixed = near * alpha + far * fall[..., None] * (1 - alpha)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _lit(pixels: NDArray[np.uint8], x: float, y: float) -> NDArray[np.float64]:
    """What the light on a character around (x, y) makes of its pixels (H, W, 3)."""
    gain, shine = _light(pixels.shape[0], pixels.shape[1], x, y)
    found: NDArray[np.float64] = np.clip(pixels.astype(np.float32) * gain + shine, 0, 255)
    return found


@lru_cache(maxsize=len(_AT))
def _light(
    height: int, width: int, x: float, y: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What pixels are multiplied by and what is added, (H, W, 1) each."""
    yy, xx = np.mgrid[0:height, 0:width] / SCALE
    lit = np.clip(1.22 - 0.021 * np.hypot(xx - (x - 7), yy - (y - 9)), 0.5, 1.25)[..., None]
    return lit, np.clip(lit - 1.02, 0, 1) * 130


def _storm(image: Image.Image, rng: random.Random) -> Image.Image:
    """Dense ochre dust with streaks; shapes stay, colours fade."""
    dust = Pen(Image.new("RGB", image.size, DUST))
    for _ in range(26):
        left, top, length = rng.uniform(-20, 60), rng.uniform(0, 64), rng.uniform(10, 34)
        tone = mix((232, 186, 124), (184, 124, 66), rng.random())
        dust.line([(left, top), (left + length, top - length * 0.16)], tone, rng.uniform(1, 3.4))
    veil = dust.image.filter(ImageFilter.GaussianBlur(3))
    return Image.blend(image, veil, _DENSITY)


def _photographed(pen: Pen, scene: Image.Image, x: float, y: float) -> Image.Image:
    changed = ImageChops.difference(pen.image, scene).convert("L").point(lambda v: 255 * (v > 2))
    soft = scene.filter(ImageFilter.GaussianBlur(7))
    soft.paste(pen.image, (0, 0), changed)
    return _shade(soft, changed, x, y)


def draw_character(t: Mapping[str, str], rng: random.Random) -> Image.Image:
    x, y = _AT[t["position"]] + rng.uniform(-1, 1), _HEIGHT + rng.uniform(-0.8, 0.8)
    scene = scene_picture(t["scene"], round(rng.uniform(-2, 2)))
    pen = Pen(scene.copy())
    _character(pen, t, x, y)
    _headwear(pen, t["headwear"], x, y)
    image = _photographed(pen, scene, x, y) if t["style"] == "photo" else pen.image
    return _storm(image, rng) if t["weather"] == "sandstorm" else image


def cut_out(traits: Mapping[str, str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A character without its scene: colours times cover (SIZE, SIZE, 3), cover (SIZE, SIZE, 1).

    Colours are 0 to 255, cover 0 to 1; `cut_out` over `backdrop` is what `draw` gives.
    """
    x, y = _AT[traits["position"]], _HEIGHT
    pen = Pen(
        _bareheaded(*(traits[name] for name in ("kind", "colour", "position", "pose"))).copy()
    )
    _headwear(pen, traits["headwear"], x, y)
    image, grey = pen.image, pen.image.convert("L")
    # 255 where anything is drawn, whatever its colour.
    drawn = Image.merge("RGB", [ImageChops.add(grey, grey, 1 / 255)] * 3)
    if traits["style"] == "photo":
        image = Image.fromarray(_lit(np.asarray(image), x, y).astype(np.uint8))
        image = ImageChops.darker(image, drawn)
    on_white = ImageChops.lighter(image, ImageChops.invert(drawn))
    found = [np.asarray(i.reduce(SCALE)).astype(np.float32) for i in (image, on_white)]
    cover = 1 - (found[1] - found[0]).mean(-1, keepdims=True) / 255
    return found[0], np.clip(cover, 0, 1)


@lru_cache(maxsize=len(_AT) * 3)
def _bareheaded(kind: str, colour: str, position: str, pose: str) -> Image.Image:
    """A character on black, which nothing is drawn in; headwear comes last, on a copy."""
    pen = blank((0, 0, 0))
    traits = {"kind": kind, "colour": colour, "pose": pose}
    _character(pen, traits, _AT[position], _HEIGHT)
    return pen.image


def backdrop(scene: str, style: str) -> NDArray[np.float32]:
    """A scene without a character, (SIZE, SIZE, 3), 0 to 255."""
    image = scene_picture(scene, 0)
    if style == "photo":
        soft = image.filter(ImageFilter.GaussianBlur(7))
        image = _shade(soft, Image.new("L", image.size, 0), 32, 36)
    return np.asarray(image.reduce(SCALE)).astype(np.float32)


def in_dust(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a sandstorm makes of pixels (..., 3), but for its streaks."""
    veil = np.array(DUST, np.float32)
    return pixels * (1 - _DENSITY) + veil * _DENSITY
