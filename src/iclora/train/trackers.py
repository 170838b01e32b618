"""A run shown elsewhere while it goes on: losses, rate, previews and settings.

TensorBoard, W&B and trackio, through accelerate.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from iclora.errors import RunError
from iclora.settings import TrainSettings

__all__ = ["Tracking", "find_trackers", "tracking"]


@dataclass(frozen=True)
class Tracking:
    """The trackers of a run that are open; of several processes only the first has any."""

    trackers: Sequence[Any] = ()
    """accelerate's."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers by name, and the step they belong to."""
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Send a picture, such as a grid of previews."""
        for tracker in self.trackers:
            if tracker.name == "tensorboard":
                import numpy as np

                # accelerate takes arrays of several pictures here; flushed, or the last waits.
                array = np.asarray(picture.convert("RGB"))[None]
                tracker.log_images({name: array}, step=step, dataformats="NHWC")
                tracker.tracker.flush()
            elif tracker.name == "wandb":
                tracker.log_images({name: [picture]}, step=step)
            elif tracker.name == "trackio":
                image = import_module("trackio").Image(picture)
                tracker.log({name: image}, step=step)

    def settings(self, values: Mapping[str, Any], step: int) -> None:
        """Send what the run was told, by name; for trackers to list and compare runs by."""
        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in values.items()}
        for tracker in self.trackers:
            if tracker.name == "tensorboard":
                _settings_of_tensorboard(tracker.tracker, plain, step)
            else:
                tracker.store_init_configuration(plain)


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
def tracking(settings: TrainSettings, folder: Path, step: int, main: bool) -> Iterator[Tracking]:
    """Open the trackers that `find_trackers` finds.

    Args:
        folder: of the run; TensorBoard's files go into it.
        step: of the run so far; what TensorBoard shows of later steps is replaced.
        main: False opens none; of several processes the first one reports.
    Raises: RunError naming a tracker that is not installed.
    """
    names = find_trackers(settings)
    if not names or not main:
        yield Tracking()
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    later = step + 1 if step else 0  # The base alone is measured again.
    trackers: list[Any] = [
        LOGGER_TYPE_TO_CLASS[name]("tensorboard", logging_dir=folder, purge_step=later)
        if name == "tensorboard"
        else LOGGER_TYPE_TO_CLASS[name]("iclora", name=folder.name)
        for name in names
    ]
    for tracker in trackers:
        tracker.start()
    try:
        yield Tracking(trackers)
    finally:
        for tracker in trackers:
            tracker.finish()


def _settings_of_tensorboard(writer: Any, values: Mapping[str, Any], step: int) -> None:
    """A table in its text tab, and columns in its tab of hyperparameters.

    The writer's own `add_hparams`, and accelerate's, would put them into a run of their own.
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", global_step=step)
    columns = import_module("torch.utils.tensorboard.summary").hparams(dict(values), {})
    for summary in columns:
        writer.file_writer.add_summary(summary)
    writer.flush()
