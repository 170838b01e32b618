"""What lies at a picture's four edges, in px, and how its lines are looked at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Edges", "Pixels", "away_from_ground", "ground", "is_drawn", "largest", "sampled"]

Pixels = NDArray[np.float32]
"""(height, width, 3), 0 to 255."""


class Edges(NamedTuple):
    """Widths of the bars at a picture's four edges, px."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    @property
    def told(self) -> str:
        """12 px top, 12 px bottom."""
        return ", ".join(f"{width} px {side}" for side, width in self._asdict().items() if width)

    def plus(self, other: Edges) -> Edges:
        """Both, one inside the other."""
        return Edges(*(a + b for a, b in zip(self, other, strict=True)))

    def within(self, pixels: Pixels) -> Pixels:
        """A picture without these edges."""
        height, width = pixels.shape[:2]
        return pixels[self.top : height - self.bottom, self.left : width - self.right]


def sampled(lines: Pixels) -> Pixels:
    """Some 200 samples across, which judge a line as well as all of them do."""
    return lines[:, :: max(1, lines.shape[1] // 200)]


def ground(lines: Pixels) -> Pixels:
    """The colours of a bar along its length, (width, 3): one colour, or one that runs to another.

    Args:
        lines: sampled ones of the bar.
    """
    mean = lines.mean(axis=0)
    way = np.linspace(-1, 1, len(mean), dtype=np.float32)[:, None]
    slope = (mean * way).sum(axis=0) / max(1e-6, float((way * way).sum()))
    return np.asarray(mean.mean(axis=0) + slope * way, dtype=np.float32)


def away_from_ground(lines: Pixels) -> Pixels:
    """How far each pixel of sampled lines is from its own line's `ground`, of the same shape."""
    way = np.linspace(-1, 1, lines.shape[1], dtype=np.float32)
    slope = np.einsum("lwc,w->lc", lines, way) / max(1e-6, float((way * way).sum()))
    level = lines.mean(axis=1)[:, None] + slope[:, None] * way[None, :, None]
    return np.asarray(np.abs(lines - level), dtype=np.float32)


def largest(differences: Pixels) -> Pixels:
    """The largest of each pixel's three differences, (height, width, 3) to (height, width)."""
    # A hundred times as fast as `max(axis=2)`, whose innermost loop would run over three numbers.
    red, green, blue = np.moveaxis(differences, 2, 0)
    found: Pixels = np.maximum(np.maximum(red, green), blue)
    return found


def is_drawn(pixels: Pixels) -> bool:
    """True if most of a picture is flat, as drawings and pages are and photos are not."""
    some = pixels[:: max(1, len(pixels) // 100)]
    flat = largest(np.abs(np.diff(some, axis=1))) < 2
    return bool(flat.mean() > 0.6)
