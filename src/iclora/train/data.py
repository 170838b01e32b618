"""The sets of a run, checked: all of them, those trained on, and those held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from iclora.errors import DatasetError, RunError, SettingsError
from iclora.files import check_folder
from iclora.models.base import DiffusionModel
from iclora.sets.check import TrainingSet, accept, check_dataset
from iclora.sets.dataset import Dataset, open_dataset
from iclora.settings import TrainSettings
from iclora.train.validation import hold_out

__all__ = ["RunData", "check_base", "check_place", "find_data", "unread_by_base"]


@dataclass(frozen=True)
class RunData:
    """The sets of a run, with the canvases of its resolutions."""

    dataset: Dataset
    sets: list[TrainingSet]
    """All sets of the dataset, in order."""
    trained: list[TrainingSet]
    held: list[TrainingSet]
    """Sets to measure on: some of the dataset, or those of `validation`."""


def check_base(settings: TrainSettings, model: DiffusionModel) -> None:
    """Refuse a base that training spoils.

    Raises: SettingsError for a base that was distilled to few steps, unless it is asked for.
    """
    sampling = model.sampling
    if sampling.fixed_steps and not settings.distilled:
        raise SettingsError(
            f"{model.name} was distilled to {sampling.steps} steps, which training undoes: what it "
            "paints turns grey and blurred",
            "Train on the base it was distilled from; such adapters run on it. To train on it all "
            "the same, set `distilled`.",
            setting="base",
        )


def check_place(settings: TrainSettings) -> None:
    """Refuse a folder that cannot be written, or lies in the dataset.

    Raises: StorageError, RunError.
    """
    check_folder(settings.out, "out")
    out, data = Path(settings.out).resolve(), Path(settings.data).resolve()
    if out != data and data.is_dir() and out.is_relative_to(data):
        raise RunError(
            f"{settings.out} lies inside the dataset {settings.data}: previews and plots would be "
            "taken for its pictures when the run is resumed",
            "Choose another `out`; the folder of a run that is there can be moved.",
            setting="out",
        )


def unread_by_base(settings: TrainSettings, model: DiffusionModel) -> list[str]:
    """What to say of settings that a base does not read."""
    # A run's own file sets all of them.
    changed = settings.guidance != TrainSettings.model_fields["guidance"].default
    if not changed or model.sampling.guided == "embedded":
        return []
    return [f"{model.name} has no embedding of guidance: `guidance` has no effect in training"]


def find_data(
    settings: TrainSettings, model: DiffusionModel, warn: Callable[[str], None] | None = None
) -> RunData:
    """Check all sets of a run, and choose those to measure on.

    Args:
        model: counts the captions' tokens; its weights are not needed.
        warn: told of everything that is odd about the sets, and of settings that the base does not
            read.
    Raises: DatasetError with every problem.
    """
    for note in unread_by_base(settings, model):
        if warn:
            warn(note)
    dataset = open_dataset(settings.data, settings.recipe)
    sets = _check(dataset, model, settings, warn)
    if settings.validation is None:
        trained, held = hold_out(sets, settings.held_out, settings.seed)
        if not trained:
            raise DatasetError(
                f"{settings.data} has {len(sets)} sets and all of them would be held out",
                "Add sets, or hold out fewer by `held_out`.",
                setting="held_out",
            )
        return RunData(dataset, sets, trained, held)
    further = open_dataset(settings.validation, settings.recipe)
    if further.recipe.markers != dataset.recipe.markers:
        raise DatasetError(
            f"{settings.validation} holds sets of {further.recipe.name}, {settings.data} of "
            f"{dataset.recipe.name}",
            "Measure on sets of the same recipe.",
            setting="validation",
        )
    held = _check(further, model, settings, warn)
    shared = {each.scene for each in sets if each.scene} & {each.scene for each in held}
    if shared and warn:
        warn(
            f"{len(shared)} scenes are trained on and measured on, {min(shared)} among them: the "
            "measure says less about sets that were never seen"
        )
    return RunData(dataset, sets, sets, held)


def _check(
    dataset: Dataset,
    model: DiffusionModel,
    settings: TrainSettings,
    warn: Callable[[str], None] | None,
) -> list[TrainingSet]:
    reports = check_dataset(
        dataset,
        count_tokens=model.count_tokens,
        limit=model.max_text_tokens,
        text=settings.text,
        unknown=model.unknown_letters,
        resolutions=settings.resolutions,
        upscale=settings.upscale,
        grid=model.grid,
    )
    return accept(dataset, reports, warn)
