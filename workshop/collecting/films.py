"""Toyland films with known truth: cuts, fades, dissolves, flashes, whips, letterboxes.

    python -m workshop.collecting.films FOLDER --films 6

Each film gets a NAME.json: shots (first frame, frame behind the last, scene), transitions (first
frame, frame behind the last, kind) and the box of the picture inside its bars.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.toyland.drawing.characters import draw_character
from iclora.toyland.world import draw_traits

__all__ = ["Film", "Shot", "Transition", "make_film", "write_film"]

Pixels = NDArray[np.float32]
_FPS = 24


@dataclass(frozen=True)
class Shot:
    first: int
    end: int
    scene: int
    calm: bool
    """False if its camera whips or a light flashes."""


@dataclass(frozen=True)
class Transition:
    first: int
    """First frame that is neither shot's alone; of a cut, the first of the new shot."""
    end: int
    kind: str
    """cut, fade (through black) or dissolve."""


@dataclass
class Film:
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    """Left, top, width and height of the picture inside its bars, px."""
    shots: list[Shot] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)


class _Camera:
    """A shot: a still of toyland, seen through a window that moves."""

    def __init__(
        self, traits: dict[str, str], seed: int, rng: random.Random, length: int, side: int
    ) -> None:
        picture = draw_character(traits, random.Random(seed))
        self._picture = picture.resize((side, side), Image.Resampling.BICUBIC)
        self.length = length
        zoom = rng.uniform(0.62, 0.95)
        self._side, self._span = side, zoom * side
        room_x, room_y = side - self._span, side - self._span * 9 / 16
        self._from = rng.uniform(0, room_x), rng.uniform(0.2, 0.6) * room_y
        drift = rng.choice((0.0, 0.15, 0.4))
        self._to = (
            self._from[0] + drift * (rng.uniform(0, room_x) - self._from[0]),
            self._from[1] + drift * (rng.uniform(0, room_y) - self._from[1]),
        )
        self.whips = rng.random() < 0.12
        self.flash = rng.randrange(8, length - 8) if rng.random() < 0.12 else None
        self._rng = np.random.default_rng(seed)

    def _whipped(self, number: float) -> bool:
        return abs(number - self.length / 2) < 5

    def _seen(self, number: float, size: tuple[int, int]) -> Pixels:
        share = number / max(1, self.length - 1)
        left = self._from[0] + share * (self._to[0] - self._from[0])
        if self.whips:  # At once from one side to the other, within 8 frames of its middle.
            turn = min(1.0, max(0.0, (number - self.length / 2) / 8 + 0.5))
            left = turn * (self._side - self._span)
        top = self._from[1] + share * (self._to[1] - self._from[1])
        box = (left, top, left + self._span, top + self._span * size[1] / size[0])
        seen = self._picture.resize(size, Image.Resampling.BILINEAR, box=box)
        pixels: Pixels = np.asarray(seen, dtype=np.float32)
        return pixels

    def frame(self, number: int, size: tuple[int, int]) -> Pixels:
        """(height, width, 3) in 0 to 255."""
        speed = np.linspace(-0.5, 0.5, 5) if self.whips and self._whipped(number) else (0.0,)
        pixels: Pixels = np.mean([self._seen(number + part, size) for part in speed], axis=0)
        if self.flash is not None and 0 <= number - self.flash < 2:
            pixels = 255 - 0.15 * (255 - pixels)
        noise = self._rng.normal(0, 2.5, (size[1] // 2, size[0] // 2)).astype(np.float32)
        noisy: Pixels = pixels + noise.repeat(2, axis=0).repeat(2, axis=1)[..., None]
        return noisy


def make_film(
    seed: int, size: tuple[int, int] = (480, 270), scenes: int = 6, letterbox: float = 0.0
) -> tuple[Film, Iterator[Pixels]]:
    """A film's truth, complete once its frames were taken, and its frames (height, width, 3).

    Args:
        letterbox: share of the height that black bars take at top and bottom, each.
    """
    rng = random.Random(f"film {seed}")
    bar = round(size[1] * letterbox / 2) * 2
    inner = size[0], size[1] - 2 * bar
    film = Film(size, (0, bar, *inner))
    cameras: list[tuple[_Camera, int]] = []
    for scene in range(scenes):
        traits = draw_traits(rng, "character") | {"style": "flat", "weather": "clear"}
        for _ in range(rng.choice((3, 3, 4, 6))):
            own = traits | {k: draw_traits(rng, "character")[k] for k in ("position", "pose")}
            length = rng.randrange(36, 90)
            # A small film must not take as long as a large one.
            side = 1024 if size[0] > 320 else 2 * size[0]
            camera = _Camera(own, rng.randrange(2**31), rng, length, side)
            cameras.append((camera, scene))
    return film, _frames(film, cameras, rng, inner, bar)


def _frames(
    film: Film,
    cameras: list[tuple[_Camera, int]],
    rng: random.Random,
    inner: tuple[int, int],
    bar: int,
) -> Iterator[Pixels]:
    at, first, begun = 0, 0, 0
    black = np.zeros((inner[1], inner[0], 3), dtype=np.float32)
    for number, (camera, scene) in enumerate(cameras):
        following = cameras[number + 1] if number + 1 < len(cameras) else None
        kind = "cut"
        if following is not None and following[1] != scene:
            kind = rng.choice(("cut", "fade", "dissolve"))
        half = rng.choice((6, 9, 12)) if kind != "cut" and following is not None else 0
        plain = camera.length - half
        for own in range(begun, plain):
            yield _barred(camera.frame(own, inner), bar)
            at += 1
        calm = not camera.whips and camera.flash is None
        film.shots.append(Shot(first, at, scene, calm))
        if following is None:
            return
        begun, start = 0, at
        if kind == "fade":
            hold = rng.choice((0, 4, 10))
            for step in range(half):
                share = (step + 1) / (half + 1)
                yield _barred((1 - share) * camera.frame(plain + step, inner), bar)
            for _ in range(hold):
                yield _barred(black, bar)
            for step in range(half):
                share = (step + 1) / (half + 1)
                yield _barred(share * following[0].frame(step, inner), bar)
            at, begun = at + 2 * half + hold, half
        elif kind == "dissolve":
            for step in range(half):
                share = (step + 1) / (half + 1)
                mixed = (1 - share) * camera.frame(plain + step, inner)
                yield _barred(mixed + share * following[0].frame(step, inner), bar)
            at, begun = at + half, half
        film.transitions.append(Transition(start, max(at, start + 1), kind))
        first = at


def _barred(pixels: Pixels, bar: int) -> Pixels:
    return np.pad(pixels, ((bar, bar), (0, 0), (0, 0))) if bar else pixels


def write_film(
    path: Path, seed: int, size: tuple[int, int] = (480, 270), scenes: int = 6, letterbox: float = 0
) -> Film:
    """Encode a film, its truth in a .json beside it."""
    film, frames = make_film(seed, size, scenes, letterbox)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(_FPS))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for pixels in frames:
            rgb = pixels.round().clip(0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    path.with_suffix(".json").write_text(json.dumps(asdict(film)), encoding="utf-8")
    return film


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=6)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(args.films):
        bars = (0.0, 0.12, 0.0, 0.13)[seed % 4]
        write_film(args.folder / f"film-{seed}.mp4", seed, letterbox=bars)


if __name__ == "__main__":
    main()
