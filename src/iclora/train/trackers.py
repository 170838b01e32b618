"""Losses shown elsewhere while a run goes on: TensorBoard, W&B, trackio."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclora.errors import RunError
from iclora.settings import TrainSettings

__all__ = ["Track", "find_trackers", "tracking"]

Track = Callable[[dict[str, float], int], None]
"""Sends numbers by name, and the step they belong to, to every tracker."""


def find_trackers(settings: TrainSettings) -> list[str]:
    """The trackers of a run that are installed.

    TensorBoard is left out if it is not: it is the default, and optional.

    Raises: RunError naming another that is not installed.
    """
    there = {name: importlib.util.find_spec(name) is not None for name in settings.trackers}
    missing = [name for name, found in there.items() if not found and name != "tensorboard"]
    if missing:
        raise RunError(
            f"{', '.join(missing)} is not installed",
            f"pip install {' '.join(missing)}.",
            setting="trackers",
        )
    return [name for name, found in there.items() if found]


@contextmanager
def tracking(settings: TrainSettings, folder: Path, step: int, main: bool) -> Iterator[Track]:
    """Open the trackers that `find_trackers` finds, through accelerate.

    Args:
        folder: of the run; TensorBoard's files go into it.
        step: of the run so far; what TensorBoard shows of later steps is replaced.
        main: False opens none; of several processes the first one reports.
    Raises: RunError naming a tracker that is not installed.
    """
    names = find_trackers(settings)
    if not names or not main:
        yield lambda _values, _step: None
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    trackers: list[Any] = [
        LOGGER_TYPE_TO_CLASS[name]("tensorboard", logging_dir=folder, purge_step=step + 1)
        if name == "tensorboard"
        else LOGGER_TYPE_TO_CLASS[name]("iclora", name=folder.name)
        for name in names
    ]
    for tracker in trackers:
        tracker.start()

    def track(values: dict[str, float], step: int) -> None:
        for tracker in trackers:
            tracker.log(values, step=step)

    try:
        yield track
    finally:
        for tracker in trackers:
            tracker.finish()
