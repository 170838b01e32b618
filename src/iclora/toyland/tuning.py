"""An adapter tuned on toyland's sets, as `iclora train` does it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from iclora.adapter import Adapter
from iclora.files import work_folder
from iclora.models.base import DiffusionModel
from iclora.progress import Progress
from iclora.sets.compose import compose_dataset
from iclora.sets.dataset import open_dataset
from iclora.settings import TrainSettings
from iclora.toyland.tasks import TUNING, Task, write_sets
from iclora.train.run import train

__all__ = ["tune", "tuning_config"]


def tuning_config(base: str, task: Task, data: Path, out: Path, **settings: Any) -> TrainSettings:
    """Settings that fit toyland, where they differ from the paper's; `settings` win."""
    values = {**TUNING, "resolutions": (task.resolution,), "preview_every": 0, "save_every": 1000}
    return TrainSettings(base=base, data=str(data), out=str(out), **{**values, **settings})


def tune(
    model: DiffusionModel,
    task: Task,
    folder: Path,
    *,
    sets: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> tuple[Adapter, float]:
    """Draw sets of a task, compose them, and tune an adapter on them.

    Args:
        folder: where sets, composites and run go. Sets and composites that are there already, in
            folder/sets and folder/data, are taken as they are; a run that was stopped goes on.
        progress: hears of what is encoded and of every optimizer step.
        settings: of `TrainSettings`, over the defaults that fit toyland.
    Returns: the adapter and the seconds its training took, encoding included.
    """
    if not (folder / "sets").exists():
        with work_folder(folder / "sets") as work:
            write_sets(task, work, sets, seed)
    if not (folder / "data").exists():
        compose_dataset(open_dataset(folder / "sets"), folder / "data")
    config = tuning_config(model.name, task, folder / "data", folder / "run", seed=seed, **settings)
    began = time.monotonic()
    result = train(config, model, progress=progress)
    # Training left its own layers in the denoiser.
    model.release("denoiser")
    return Adapter.load(result.adapter), time.monotonic() - began
