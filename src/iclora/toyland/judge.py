"""Reads the truth back from pixels, by comparing a panel with renderings of everything it could be.

How well it reads true renderings is measured by `workshop.toyland.judge`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.toyland.drawing import SIZE, backdrop, cut_out, draw, in_dust
from iclora.toyland.world import TOPICS, TRAITS

__all__ = ["agreement", "diversity", "read", "stated_right"]

Pixels = NDArray[np.float32]
Traits = dict[str, str]

_COARSE = 16
"""Edge at which all candidates are compared, px; the best are compared at full size."""
_FINALISTS = 40


def _coarse(pixels: Pixels) -> Pixels:
    """(..., SIZE, SIZE, 3) to (..., _COARSE * _COARSE * 3)."""
    return _cells(pixels).reshape(*pixels.shape[:-3], -1)


def _cells(pixels: Pixels) -> Pixels:
    """(..., SIZE, SIZE, C) to means (..., _COARSE, _COARSE, C)."""
    k = SIZE // _COARSE
    *lead, _, _, channels = pixels.shape
    small: Pixels = pixels.reshape(*lead, _COARSE, k, _COARSE, k, channels).mean((-4, -2))
    return small


def _half(pixels: Pixels) -> Pixels:
    *lead, _, _, _ = pixels.shape
    small: Pixels = pixels.reshape(*lead, SIZE // 2, 2, SIZE // 2, 2, 3).mean((-4, -2))
    return small


class _Bank(ABC):
    """All pictures of one topic, small, and a way to see some of them in full."""

    def __init__(self, traits: list[Traits], coarse: Pixels) -> None:
        self.traits = traits
        self._coarse = coarse
        self._norms = (coarse**2).sum(-1)

    @abstractmethod
    def full(self, number: int) -> Pixels:
        """Picture `number` at full size, (SIZE, SIZE, 3)."""

    def nearest(self, pixels: Pixels) -> Traits:
        """Traits of the closest picture."""
        distance = self._norms - 2 * (self._coarse @ _coarse(pixels))
        finalists = np.argpartition(distance, min(_FINALISTS, len(distance) - 1))[:_FINALISTS]
        target = _half(pixels)
        # A pixel to the side is an accident, not another picture.
        shifted = [np.roll(target, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        errors = [
            min(float(((s - candidate) ** 2)[2:-2, 2:-2].mean()) for s in shifted)
            for candidate in (_half(self.full(int(i))) for i in finalists)
        ]
        return self.traits[int(finalists[int(np.argmin(errors))])]


class _Drawn(_Bank):
    """A topic of few pictures: all are drawn."""

    def __init__(self, topic: str) -> None:
        names = TOPICS[topic]
        traits = [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(TRAITS[name] for name in names))
        ]
        self._pictures = np.stack([np.asarray(draw(topic, t, None)) for t in traits])
        coarse = np.stack([_coarse(p.astype(np.float32)) for p in self._pictures])
        super().__init__(traits, coarse)

    def full(self, number: int) -> Pixels:
        picture: Pixels = self._pictures[number].astype(np.float32)
        return picture


class _Characters(_Bank):
    """Characters before scenes: cut out once, laid over every scene."""

    _OWN = ("kind", "colour", "headwear", "position", "pose")

    def __init__(self, style: str, weather: str) -> None:
        self._weather = weather
        scenes = TRAITS["scene"]
        self._backs = np.stack([backdrop(scene, style) for scene in scenes])
        self._figures = _cut_outs(style)
        traits, rows = [], []
        backs = _cells(self._backs)
        for own, (figure, cover) in zip(_owns(self._OWN), self._figures, strict=True):
            # A cover averaged over a cell times the scene's average is close enough to choose by.
            solid = _cells(np.divide(cover, 255, dtype=np.float32))
            small = _cells(figure.astype(np.float32))
            rows.append((small + (1 - solid) * backs).reshape(len(scenes), -1))
            traits += [{**own, "scene": s, "style": style, "weather": weather} for s in scenes]
        coarse = np.concatenate(rows)
        if weather == "sandstorm":
            coarse = in_dust(coarse.reshape(len(coarse), -1, 3)).reshape(len(coarse), -1)
        super().__init__(traits, coarse.astype(np.float32))

    def full(self, number: int) -> Pixels:
        figure, cover = self._figures[number // len(self._backs)]
        back = self._backs[number % len(self._backs)]
        picture: Pixels = figure.astype(np.float32) + (1 - cover.astype(np.float32) / 255) * back
        return in_dust(picture) if self._weather == "sandstorm" else picture


def _owns(names: Sequence[str]) -> list[Traits]:
    values = itertools.product(*(TRAITS[name] for name in names))
    return [dict(zip(names, v, strict=True)) for v in values]


@cache
def _cut_outs(style: str) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    found = []
    for own in _owns(_Characters._OWN):
        figure, cover = cut_out({**own, "style": style})
        found.append((figure.round().astype(np.uint8), (cover * 255).round().astype(np.uint8)))
    return found


@cache
def _bank(topic: str, style: str = "", weather: str = "") -> _Bank:
    return _Characters(style, weather) if topic == "character" else _Drawn(topic)


def read(panel: Image.Image, topic: str, *, style: str = "flat", weather: str = "clear") -> Traits:
    """All traits of a panel.

    Args:
        panel: any size; scaled to SIZE x SIZE.
        topic: what it shows.
        style, weather: how a character is drawn; taken as known, not read.
    """
    if panel.size != (SIZE, SIZE):
        panel = panel.resize((SIZE, SIZE), Image.Resampling.BOX)
    pixels = np.asarray(panel.convert("RGB")).astype(np.float32)
    bank = _bank(topic, style, weather) if topic == "character" else _bank(topic)
    return bank.nearest(pixels)


# -- scores -------------------------------------------------------------------------------------


def stated_right(
    said: Sequence[Mapping[str, str]], found: Sequence[Mapping[str, str]]
) -> dict[str, list[bool]]:
    """For every trait: True for each panel that shows the value it was asked for."""
    right: dict[str, list[bool]] = {}
    for asked, seen in zip(said, found, strict=True):
        for trait, value in asked.items():
            if trait in seen:
                right.setdefault(trait, []).append(seen[trait] == value)
    return right


def agreement(found: Sequence[Mapping[str, str]], traits: Collection[str]) -> dict[str, bool]:
    """For each of the traits, and "all" of them: True if every panel shows the same value."""
    same = {t: len({panel[t] for panel in found}) == 1 for t in traits}
    return {**same, "all": all(same.values())}


def diversity(found: Sequence[Mapping[str, str]], traits: Collection[str]) -> float:
    """Mean share of the traits in which two of the panels differ; 0 if all are alike.

    Args:
        found: one panel from each of several sets made from one prompt with different seeds.
    """
    pairs = list(combinations(found, 2))
    return float(np.mean([[a[t] != b[t] for t in traits] for a, b in pairs]))
