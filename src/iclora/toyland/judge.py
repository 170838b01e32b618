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


def _means(pixels: NDArray[np.float32 | np.uint8], k: int) -> Pixels:
    """Means of cells of k x k, (..., H, W, C) to (..., H / k, W / k, C)."""
    parts = [pixels[..., i::k, j::k, :] for i in range(k) for j in range(k)]
    total: Pixels = parts[0].astype(np.float32)
    for part in parts[1:]:
        total += part
    total /= k * k
    return total


def _coarse(pixels: NDArray[np.float32 | np.uint8]) -> Pixels:
    """(..., SIZE, SIZE, 3) to (..., _COARSE * _COARSE * 3)."""
    return _means(pixels, SIZE // _COARSE).reshape(*pixels.shape[:-3], -1)


class _Bank(ABC):
    """All pictures of one topic, small, and a way to see some of them in full."""

    def __init__(self, traits: list[Traits], coarse: Pixels) -> None:
        self.traits = traits
        self._coarse = coarse
        self._norms = (coarse**2).sum(-1)

    @abstractmethod
    def full(self, numbers: NDArray[np.intp]) -> Pixels:
        """These pictures at full size, (n, SIZE, SIZE, 3)."""

    def nearest(self, pixels: Pixels) -> Traits:
        """Traits of the closest picture."""
        distance = self._norms - 2 * (self._coarse @ _coarse(pixels))
        finalists = np.argpartition(distance, min(_FINALISTS, len(distance) - 1))[:_FINALISTS]
        target = _means(pixels, 2)
        # A pixel to the side is an accident, not another picture.
        shifted = np.stack(
            [np.roll(target, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        )
        pictures = _means(self.full(finalists), 2)[:, None]
        misses = (pictures - shifted)[:, :, 2:-2, 2:-2].reshape(len(finalists), len(shifted), -1)
        errors = np.square(misses).mean(-1).min(-1)
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
        super().__init__(traits, _coarse(self._pictures))

    def full(self, numbers: NDArray[np.intp]) -> Pixels:
        pictures: Pixels = self._pictures[numbers].astype(np.float32)
        return pictures


class _Characters(_Bank):
    """Characters before scenes: cut out once, laid over every scene."""

    _OWN = ("kind", "colour", "headwear", "position", "pose")

    def __init__(self, style: str, weather: str) -> None:
        self._weather = weather
        scenes = TRAITS["scene"]
        self._backs = np.stack([backdrop(scene, style) for scene in scenes])
        self._figures, self._covers = _cut_outs(style)
        # A cover averaged over a cell times the scene's average is close enough to choose by.
        k = SIZE // _COARSE
        open_: Pixels = 1 - np.divide(_means(self._covers, k)[:, None], 255, dtype=np.float32)
        coarse: Pixels = _means(self._figures, k)[:, None] + open_ * _means(self._backs, k)
        if weather == "sandstorm":
            coarse = in_dust(coarse)
        own = {"style": style, "weather": weather}
        traits = [{**o, "scene": s, **own} for o in _owns(self._OWN) for s in scenes]
        super().__init__(traits, coarse.reshape(len(traits), -1))

    def full(self, numbers: NDArray[np.intp]) -> Pixels:
        figures, backs = np.divmod(numbers, len(self._backs))
        open_: Pixels = 1 - np.divide(self._covers[figures], 255, dtype=np.float32)
        pictures: Pixels = self._figures[figures].astype(np.float32) + open_ * self._backs[backs]
        return in_dust(pictures) if self._weather == "sandstorm" else pictures


def _owns(names: Sequence[str]) -> list[Traits]:
    values = itertools.product(*(TRAITS[name] for name in names))
    return [dict(zip(names, v, strict=True)) for v in values]


@cache
def _cut_outs(style: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Figures (n, SIZE, SIZE, 3), and what they cover (n, SIZE, SIZE, 1), all 0 to 255."""
    found = [cut_out({**own, "style": style}) for own in _owns(_Characters._OWN)]
    figures = np.stack([figure.round().astype(np.uint8) for figure, _ in found])
    covers = np.stack([(cover * 255).round().astype(np.uint8) for _, cover in found])
    return figures, covers


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
