"""Tuning sets whose captions a captioner writes from pixels, held against the truth."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from iclora.models import DiffusionModel
from iclora.progress import Progress
from iclora.sets.dataset import open_dataset
from iclora.toyland.tasks import Task, draw_tuning_set, write_sets
from iclora.toyland.wording import traits_said
from iclora.toyland.world import Canvas
from iclora.vlm import VisionModel
from iclora.vlm.caption import caption_dataset

__all__ = ["Captioned", "caption_sets", "said_right"]


def said_right(task: Task, canvas: Canvas, panels: tuple[str, ...]) -> Iterator[bool]:
    """True or False for each trait that a panel's words state of it."""
    for panel, words in zip(canvas.panels, panels, strict=True):
        for trait, value in traits_said(words, task.topic).items():
            yield panel.traits[trait] == value


@dataclass(frozen=True)
class Captioned:
    """What became of tuning sets that were captioned from their pixels."""

    drawn: int
    whole: int
    """Sets with a caption; the others are left out."""
    true: float
    """Share of what the captions state of their panels that is true, 0 to 1."""


def caption_sets(
    task: Task,
    folder: Path,
    count: int,
    seed: int,
    captioner: VisionModel,
    model: DiffusionModel,
    progress: Progress | None = None,
) -> Captioned:
    """Draw tuning sets and let a captioner write their captions, as `iclora caption` does.

    Args:
        folder: where the dataset goes.
        model: the base that will be tuned; it counts the tokens.
    Raises: VisionModelError if it cannot go on.
    """
    write_sets(task, folder, count, seed, captions=False)
    summary = caption_dataset(
        open_dataset(folder),
        captioner,
        count_tokens=model.count_tokens,
        limit=model.max_text_tokens,
        progress=progress,
    )
    for outcome in summary.failed:
        shutil.rmtree(folder / outcome.name)
    right: list[bool] = []
    for image_set in open_dataset(folder).sets:
        canvas, _ = draw_tuning_set(task, seed, int(image_set.name) - 1)
        panels = task.small_recipe.parse(image_set.caption()).words
        right += said_right(task, canvas, panels)
    return Captioned(count, len(summary.written), sum(right) / max(1, len(right)))
