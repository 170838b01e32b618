"""Pictures that are joined into sheets: film stills, textures, skies, nights and drawings."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from iclora.toyland.tasks import TASKS, draw_set

__all__ = ["KINDS", "pictures"]

KINDS = ("photo", "grain", "smooth", "sky", "night", "drawing")


def _noise(rng: np.random.Generator, width: int, height: int, cells: int) -> np.ndarray:
    seeds = rng.integers(0, 256, (cells, cells + 1, 3), dtype=np.uint8)
    grown = Image.fromarray(seeds).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(grown, dtype=np.float32)


def _grain(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    scale = ((4, 0.5), (9, 0.25), (24, 0.15), (60, 0.1))
    made = sum(share * _noise(rng, width, height, cells) for cells, share in scale)
    return np.asarray(made + rng.normal(0, 5, (height, width, 1)))


def _smooth(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    return _noise(rng, width, height, 6)


def _sky(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A calm sky over ground."""
    top, low = rng.integers(90, 256, (2, 1, 1, 3))
    share = np.linspace(0, 1, height)[:, None, None]
    sky = top * (1 - share) + low * share + rng.normal(0, 1.2, (height, width, 3))
    ground = _grain(rng, width, height) * 0.7
    line = height * rng.uniform(0.35, 0.7) + 12 * np.sin(np.linspace(0, 7, width))
    return np.where((np.arange(height)[:, None] > line)[..., None], ground, sky)


def _night(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    fade = np.clip(np.linspace(-0.5, 1.5, height), 0, 1)[:: int(rng.choice((-1, 1))), None, None]
    return _grain(rng, width, height) * 0.4 * fade + rng.normal(0, 1.5, (height, width, 1))


PAINTERS: Mapping[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "grain": _grain,
    "smooth": _smooth,
    "sky": _sky,
    "night": _night,
}


def pictures(
    kind: str, seed: int, count: int, size: tuple[int, int], photos: Sequence[Image.Image] = ()
) -> list[Image.Image]:
    """Some pictures of a kind; drawings are those of one set of toyland."""
    dice, rng = random.Random(seed), np.random.default_rng(seed)
    if kind == "drawing":
        task = dice.choice(list(TASKS.values()))
        drawn: list[Image.Image] = []
        while len(drawn) < count:
            drawn += [panel.render() for panel in draw_set(task, dice)[0].panels]
        way = dice.choice((Image.Resampling.NEAREST, Image.Resampling.LANCZOS))
        return [each.resize(size, way) for each in drawn[:count]]
    if kind == "photo" and photos:
        return [_part(dice, dice.choice(photos), size) for _ in range(count)]
    paint = PAINTERS.get(kind, _grain)
    made = [np.clip(paint(rng, *size), 0, 255).astype(np.uint8) for _ in range(count)]
    return [Image.fromarray(each) for each in made]


def _part(dice: random.Random, photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A part of a photo, away from its ends."""
    ratio = size[0] / size[1]
    wide = min(photo.width, photo.height * ratio) * dice.uniform(0.5, 0.9)
    left = dice.uniform(0.05, 0.95) * (photo.width - wide)
    top = dice.uniform(0.05, 0.95) * (photo.height - wide / ratio)
    box = (left, top, left + wide, top + wide / ratio)
    return photo.resize(size, Image.Resampling.LANCZOS, box=box)
