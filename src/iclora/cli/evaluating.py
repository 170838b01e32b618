"""The verb that measures: evaluate."""

from __future__ import annotations

from argparse import Namespace as Words
from pathlib import Path
from typing import TYPE_CHECKING

from iclora.cli.data import show_problems
from iclora.cli.making import _load, _pairs, _read_lines, _words, load_metric_of
from iclora.errors import SettingsError
from iclora.progress import Console
from iclora.settings import EvaluateSettings, verb

if TYPE_CHECKING:
    from iclora.evaluate.setup import Arm, Wish
    from iclora.sets.recipe import Recipe

__all__ = ["evaluate"]


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings, console: Console) -> None:
    """Measure what a base and adapters make of the same prompts and seeds, side by side."""
    words = _words(settings)
    from iclora.evaluate.report import as_text
    from iclora.evaluate.run import evaluate as run_evaluation
    from iclora.evaluate.setup import arms_of, plan

    arms = arms_of(words.adapter or (), words.mode or (None,))
    infos = [arm.adapter.info for arm in arms if arm.adapter and arm.adapter.info]
    base = words.base or next((info.base for info in infos), None)
    if base is None:
        raise SettingsError(
            "no base is given", "Pass --base, such as black-forest-labs/FLUX.1-dev."
        )
    recipe, wishes = _evaluation_wishes(words, arms)
    metrics = [load_metric_of(name, words, recipe) for name in words.metric or ()]
    model = _load(base, words)
    names = ("steps", "guidance", "strength", "boost", "resample", "resample_from")
    how = {name: getattr(words, name) for name in names if getattr(words, name) is not None}
    planned = plan(model, recipe, arms, wishes, Path(words.out), size=words.size, **how)
    for note in planned.notes:
        console.warn(note)
    console.say(f"{len(wishes)} sets by each of: {'; '.join(arm.name for arm in arms)}")
    with console.progress() as bar:
        try:
            table = run_evaluation(model, planned, metrics, together=words.together or 1, bar=bar)
        except KeyboardInterrupt:
            console.say("sets that were made are kept; the same command goes on with the rest")
            raise
    for note in table.notes:
        if note not in planned.notes:
            console.warn(note)
    console.say(
        f"\n{as_text(planned, table)}\n\nwrote {planned.out / 'report.html'}; open it in a browser"
    )


def _evaluation_wishes(words: Words, arms: list[Arm]) -> tuple[Recipe, list[Wish]]:
    """What every arm is asked for, and of which recipe."""
    from iclora.evaluate.setup import wishes_of_data, wishes_of_prompts
    from iclora.sets.dataset import open_dataset
    from iclora.sets.images import open_image
    from iclora.sets.recipe import load_recipe

    first = words.seed or 0
    seeds = range(first, first + (words.seeds or 1))
    prompts = list(words.prompt or ())
    if words.prompts:
        prompts += [line for line in _read_lines(words.prompts) if line]
    if words.data:
        if prompts:
            raise SettingsError(
                "--data brings its own prompts", "Leave --prompt and --prompts out."
            )
        numbers = [text for text in words.known or () if not text.isdigit()]
        if numbers:
            raise SettingsError(
                f'--known "{numbers[0]}" beside --data', "Name the panel alone: --known 1."
            )
        dataset = open_dataset(words.data, words.recipe)
        show_problems(dataset.problems)
        known = sorted({int(text) for text in words.known or ()})
        return dataset.recipe, wishes_of_data(dataset, known, seeds)
    if not prompts:
        raise SettingsError("there is no prompt", "Pass --prompts FILE, or --data SETS.")
    infos = [arm.adapter.info for arm in arms if arm.adapter and arm.adapter.info]
    recipe = load_recipe(words.recipe) if words.recipe else infos[0].recipe if infos else None
    if recipe is None:
        raise SettingsError("no recipe is known", "Pass --recipe, such as film-storyboard.")
    given = {n: open_image(Path(file)) for n, file in _pairs(words.known, "--known")}
    return recipe, wishes_of_prompts(prompts, list(seeds), given)
