"""Arms side by side: evaluate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from iclora.errors import SettingsError
from iclora.evaluate.figures import Table
from iclora.evaluate.knowledge import STRENGTHS, at_strengths, cases_from_outside, read_outside
from iclora.evaluate.making import make_sets
from iclora.evaluate.metrics.base import Metric
from iclora.evaluate.run import evaluate as run_evaluation
from iclora.evaluate.setup import Arm, Case, Setup, arms_of, cases_of_data, cases_of_prompts, set_up
from iclora.jobs.opening import Opener
from iclora.making.asks import base_of, machine_for
from iclora.making.preparing import recipe_of
from iclora.making.words import read_prompts
from iclora.models.base import DiffusionModel
from iclora.progress import Cancelled, Console, Progress
from iclora.sets.dataset import open_dataset
from iclora.sets.images import open_given
from iclora.sets.recipe import Recipe
from iclora.settings import CompleteSettings, EvaluateSettings, settings_of

__all__ = ["MakeAll", "evaluate", "make_some"]

MakeAll = Callable[[Setup, Progress | None], None]
"""Makes every set of a setup that is not there yet."""


def evaluate(
    settings: EvaluateSettings, console: Console, opener: Opener, make: MakeAll | None = None
) -> tuple[Setup, Table]:
    """Make, measure and report what `evaluate` is told to.

    Args:
        make: makes the sets; by default they are made here.
    Raises: IcloraError, Cancelled.
    """
    model, setup, metrics = _plan(settings, console, opener)
    for note in setup.notes:
        console.warn(note)
    arms = "; ".join(arm.name for arm in setup.arms)
    console.say(f"{len(setup.cases)} sets by each of: {arms}")
    with console.progress() as progress:
        try:
            table = run_evaluation(
                model,
                setup,
                metrics,
                together=settings.together,
                progress=progress,
                warn=console.warn,
                session=opener.session(model, progress),
                make=make,
            )
        except (KeyboardInterrupt, Cancelled):
            console.say("sets that were made are kept; the same command goes on with the rest")
            raise
    for note in table.notes:
        if note not in setup.notes:
            console.warn(note)
    return setup, table


def make_some(
    settings: EvaluateSettings, console: Console, opener: Opener, only: Collection[tuple[str, int]]
) -> None:
    """Make some of the sets of an evaluation, which others measure.

    Args:
        only: the sets, by the name of their arm and the number of their case, from 0.
    Raises: IcloraError, Cancelled.
    """
    model, setup, _ = _plan(settings.model_copy(update={"metric": ()}), console, opener)
    with console.progress() as progress:
        session = opener.session(model, progress)
        together = settings.together
        make_sets(
            model,
            setup,
            together=together,
            warn=console.warn,
            session=session,
            only=only,
            wrote=lambda folder: console.show(folder / "composite.png"),
        )


def _plan(
    settings: EvaluateSettings, console: Console, opener: Opener
) -> tuple[DiffusionModel, Setup, Sequence[Metric]]:
    arms = arms_of(settings.adapter, settings.mode or (None,), opener.adapter)
    base = base_of(settings.base, *(arm.adapter for arm in arms))
    if strengths := settings.strengths or (STRENGTHS if settings.knowledge else ()):
        arms = at_strengths(arms, strengths)
    outside = settings.knowledge
    recipe, cases = _from_outside(settings) if outside else _cases(settings, arms, console)
    metrics = [
        opener.metric(name, settings.model_device, settings.api, recipe) for name in settings.metric
    ]
    model = opener.base(base, machine_for(settings))
    return model, set_up(model, recipe, arms, cases, Path(settings.out), settings), metrics


def _from_outside(settings: EvaluateSettings) -> tuple[Recipe, list[Case]]:
    """The cases of prompts from outside the adapters' task, and the first one's recipe."""
    prompts = read_outside(settings.knowledge, settings.size)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    return next(iter(prompts.values()))[0], cases_from_outside(prompts, seeds)


def _cases(
    settings: EvaluateSettings, arms: Sequence[Arm], console: Console
) -> tuple[Recipe, list[Case]]:
    """The cases that every arm is asked for, and their recipe. Raises: IcloraError."""
    seeds = range(settings.seed, settings.seed + settings.seeds)
    prompts = [
        *settings.prompt,
        *(read_prompts(settings.prompts).lines if settings.prompts else ()),
    ]
    if settings.data:
        settings.check_data()
        dataset = open_dataset(settings.data, settings.recipe, settings.background)
        for problem in dataset.problems:
            console.tell(problem.severity, str(problem))
        numbers = sorted({int(text) for text in settings.given})
        return dataset.recipe, cases_of_data(dataset, numbers, seeds)
    if not prompts:
        raise SettingsError("there is no prompt", "Set `prompts` or `data`.", "prompt")
    trained = next((a.adapter for a in arms if a.adapter and a.adapter.info), None)
    recipe = recipe_of(settings.recipe, trained)
    files_of = settings_of(CompleteSettings, {"given": settings.given}).given
    return recipe, cases_of_prompts(prompts, list(seeds), open_given(files_of, settings.background))
