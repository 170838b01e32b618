"""Many pictures looked at, several at a time; what cannot be read is named and left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iclora.errors import IcloraError
from iclora.progress import Progress
from iclora.sets.collect.likeness import Seer
from iclora.sets.collect.picture import Look, Picture, look_at
from iclora.sets.listing import Problem

__all__ = ["Looks"]

_BATCH = 64
_TOGETHER = 16
"""Pictures that a model sees in one pass; they are in memory whole."""


class Looks:
    """The looks of pictures, each taken once.

    Args:
        tell: told of pictures that cannot be read.
        progress: told of every batch.
        seer: a model that sees how alike pictures are; without one their colours tell.
    """

    def __init__(
        self, tell: Callable[[Problem], None], progress: Progress, seer: Seer | None = None
    ) -> None:
        self._tell, self._progress, self.seer = tell, progress, seer
        self._seen: dict[str, Look | None] = {}

    def know(self, picture: Picture, look: Look) -> None:
        """Take over the look of a picture that was seen before it was written."""
        self._seen.setdefault(picture.origin.name, look)

    def of(self, picture: Picture) -> Look | None:
        """The look of one picture; None if it cannot be read."""
        return self.of_all([picture])[0]

    def of_all(self, pictures: Sequence[Picture]) -> list[Look | None]:
        """The looks of some pictures, None for those that cannot be read. Raises: Cancelled."""
        new = [p for p in pictures if p.origin.name not in self._seen]
        # Pillow decodes without holding the interpreter's lock.
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for start in range(0, len(new), _BATCH):
                batch = new[start : start + _BATCH]
                for picture, seen in zip(batch, pool.map(_look, batch), strict=True):
                    if isinstance(seen, IcloraError):
                        self._tell(Problem(picture.origin.name, seen.problem, seen.advice))
                    self._seen[picture.origin.name] = seen if isinstance(seen, Look) else None
                if len(new) > 1:
                    self._progress("looking at pictures", start + len(batch), len(new))
        return [self._seen[picture.origin.name] for picture in pictures]

    def embedded(self, pictures: Sequence[Picture]) -> list[NDArray[np.float32] | None]:
        """What the model sees in some pictures, a row of length 1 each; None for those that cannot
        be read.

        Raises: Cancelled.
        """
        assert self.seer is not None
        rows: list[NDArray[np.float32] | None] = [None] * len(pictures)
        for start in range(0, len(pictures), _TOGETHER):
            opened: dict[int, Image.Image] = {}
            for number, picture in enumerate(pictures[start : start + _TOGETHER], start):
                try:
                    opened[number] = picture.open()
                except IcloraError as error:
                    self._tell(Problem(picture.origin.name, error.problem, error.advice))
            seen = self.seer.embed(list(opened.values())) if opened else ()
            for number, row in zip(opened, seen, strict=True):
                rows[number] = row
            done = min(start + _TOGETHER, len(pictures))
            self._progress("comparing pictures", done, len(pictures))
        return rows


def _look(picture: Picture) -> Look | IcloraError:
    try:
        return look_at(picture)
    except IcloraError as error:
        return error
