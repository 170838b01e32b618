"""The verb that measures: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iclora.cli.data import show_problems
from iclora.cli.making import check_at_once, open_base, open_metric
from iclora.errors import SettingsError
from iclora.progress import Cancelled, Console
from iclora.settings import CompleteSettings, EvaluateSettings, settings_of, verb

if TYPE_CHECKING:
    from iclora.evaluate.setup import Arm, Case
    from iclora.sets.recipe import Recipe

__all__ = ["evaluate"]


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings, console: Console) -> None:
    """Measure what a base and adapters make of the same prompts and seeds, side by side."""
    check_at_once(settings, console)
    from iclora.evaluate.knowledge import STRENGTHS, at_strengths
    from iclora.evaluate.report import as_text
    from iclora.evaluate.run import evaluate as run_evaluation
    from iclora.evaluate.setup import arms_of, set_up
    from iclora.making.asks import base_of, machine_for

    arms = arms_of(settings.adapter, settings.mode or (None,))
    base = base_of(settings.base, *(arm.adapter for arm in arms))
    if strengths := settings.strengths or (STRENGTHS if settings.knowledge else ()):
        arms = at_strengths(arms, strengths)
    recipe, cases = _from_outside(settings) if settings.knowledge else _cases(settings, arms)
    metrics = [
        open_metric(name, settings.model_device, settings.api, recipe) for name in settings.metric
    ]
    model = open_base(base, machine_for(settings))
    setup = set_up(model, recipe, arms, cases, Path(settings.out), settings)
    for note in setup.notes:
        console.warn(note)
    console.say(f"{len(cases)} sets by each of: {'; '.join(arm.name for arm in arms)}")
    with console.progress() as progress:
        try:
            table = run_evaluation(
                model,
                setup,
                metrics,
                together=settings.together,
                progress=progress,
                warn=console.warn,
            )
        except (KeyboardInterrupt, Cancelled):
            console.say("sets that were made are kept; the same command goes on with the rest")
            raise
    for note in table.notes:
        if note not in setup.notes:
            console.warn(note)
    console.say(
        f"\n{as_text(setup, table)}\n\nwrote {setup.out / 'report.html'}; open it in a browser"
    )


def _from_outside(settings: EvaluateSettings) -> tuple[Recipe, list[Case]]:
    """The cases of prompts from outside the adapters' task, and the first one's recipe."""
    from iclora.evaluate.knowledge import cases_from_outside, read_outside

    prompts = read_outside(settings.knowledge, settings.size)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    return next(iter(prompts.values()))[0], cases_from_outside(prompts, seeds)


def _cases(settings: EvaluateSettings, arms: list[Arm]) -> tuple[Recipe, list[Case]]:
    """The cases that every arm is asked for, and their recipe. Raises: IcloraError."""
    from iclora.evaluate.setup import cases_of_data, cases_of_prompts
    from iclora.making.request import recipe_of
    from iclora.making.words import read_prompts
    from iclora.sets.dataset import open_dataset
    from iclora.sets.images import open_given

    seeds = range(settings.seed, settings.seed + settings.seeds)
    prompts = [
        *settings.prompt,
        *(read_prompts(settings.prompts).lines if settings.prompts else ()),
    ]
    if settings.data:
        if prompts:
            raise SettingsError(
                "`data` brings its own prompts", "Leave `prompt` and `prompts` out.", "data"
            )
        files = [text for text in settings.given if not text.isdigit()]
        if files:
            raise SettingsError(
                f'a file is given beside `data`: "{files[0]}"', "Name the panel alone.", "given"
            )
        dataset = open_dataset(settings.data, settings.recipe, settings.background)
        show_problems(dataset.problems)
        numbers = sorted({int(text) for text in settings.given})
        return dataset.recipe, cases_of_data(dataset, numbers, seeds)
    if not prompts:
        raise SettingsError("there is no prompt", "Set `prompts` or `data`.", "prompt")
    trained = next((a.adapter for a in arms if a.adapter and a.adapter.info), None)
    recipe = recipe_of(settings.recipe, trained)
    files_of = settings_of(CompleteSettings, {"given": settings.given}).given
    return recipe, cases_of_prompts(prompts, list(seeds), open_given(files_of, settings.background))
