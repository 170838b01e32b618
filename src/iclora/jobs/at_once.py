"""What can be known of settings before torch is imported."""

from __future__ import annotations

from pathlib import Path

from iclora.errors import CaptionError, DatasetError, SettingsError
from iclora.evaluate.metrics.registry import check_metric
from iclora.files import check_folder
from iclora.making.request import Request
from iclora.making.words import Story, plan_windows, read_prompts
from iclora.progress import Console
from iclora.sets.dataset import Problem, open_dataset
from iclora.sets.images import open_given
from iclora.sets.recipe import load_recipe
from iclora.settings import (
    CompleteSettings,
    EvaluateSettings,
    ExtendSettings,
    GenerateSettings,
    RerollSettings,
)
from iclora.vlm.registry import check_captioner

__all__ = ["check_extend", "check_reroll", "check_sets", "check_words"]


def check_sets(settings: GenerateSettings | EvaluateSettings, console: Console) -> None:
    """Check what `generate`, `complete` and `evaluate` are told. Raises: IcloraError."""
    check_folder(settings.out, "out")
    prompts = list(settings.prompt)
    if settings.prompts:
        read = read_prompts(settings.prompts)
        prompts += read.lines
        for note in read.notes:
            console.warn(note)
    for text in settings.knowledge if isinstance(settings, EvaluateSettings) else ():
        for note in read_prompts(text.rpartition("=")[2], "knowledge").notes:
            console.warn(note)
    if isinstance(settings, GenerateSettings):
        _check_generate(settings, prompts)
    else:
        _check_evaluate(settings)
    if settings.recipe:
        recipe = load_recipe(settings.recipe)
        for prompt in prompts:
            recipe.prompt(prompt)


def _check_generate(settings: GenerateSettings, prompts: list[str]) -> None:
    settings.check_decided()
    if settings.score:
        check_metric(settings.score)
    if settings.idea and settings.captioner:
        check_captioner(settings.captioner)
    if settings.request:
        Request.read(settings.request)
    elif isinstance(settings, CompleteSettings):
        open_given(settings.given, settings.background)
    if not settings.request and not prompts and not settings.idea:
        raise SettingsError(
            "there is no prompt", "Set `prompt`, `prompts` or `idea`.", setting="prompt"
        )


def _check_evaluate(settings: EvaluateSettings) -> None:
    for name in settings.metric:
        check_metric(name)
    settings.check_data()
    if settings.data:
        check_words(settings.data, settings.recipe, others=False)


def check_words(path: str, recipe: str | None, *, others: bool = True) -> None:
    """Check the words of a dataset; its pictures are not looked at.

    Training and evaluation check all of it, but with a base, which may first be downloaded.

    Args:
        others: False if only words count, and not what else is wrong in the folder.
    Raises: DatasetError with everything that is wrong; RecipeError.
    """
    dataset = open_dataset(path, recipe)
    wrong = [p for p in dataset.problems if p.severity == "error" and others]
    for image_set in dataset.sets:
        try:
            dataset.recipe.parse(image_set.caption())
        except (CaptionError, DatasetError) as error:
            wrong.append(Problem(image_set.name, error.problem, error.advice, caption=True))
    dataset.refuse(wrong)


def check_reroll(settings: RerollSettings) -> None:
    """Check what `reroll` is told. Raises: IcloraError."""
    check_folder(settings.out, "out")
    Request.read(Path(settings.set, "request.json"))


def check_extend(settings: ExtendSettings, console: Console) -> None:
    """Check what `extend` is told. Raises: IcloraError."""
    check_folder(settings.out, "out")
    story = Story.read(settings.story)
    for note in story.notes:
        console.warn(note)
    given = open_given(settings.given, settings.background)
    if settings.recipe:
        panels = load_recipe(settings.recipe).canvas.panels
        plan_windows(story, panels, settings.anchor, settings.fresh, given)
