"""Arms measured on toyland's held-out sets, by `iclora.evaluate` and the judge."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from iclora.evaluate.figures import Table, measure
from iclora.evaluate.making import make_sets, read_costs, read_sets
from iclora.evaluate.setup import Arm, Case, Setup, set_up
from iclora.models.base import DiffusionModel
from iclora.progress import Progress
from iclora.settings import SampleSettings
from iclora.toyland.metric import Toyland
from iclora.toyland.tasks import Task, draw_set

__all__ = ["given_cases", "means", "measure_arms", "pictures", "prompt_cases"]

_TOGETHER = 24
"""Sets made in one batch: twice as fast as one by one."""


def prompt_cases(task: Task, prompts: int, seeds: int) -> list[Case]:
    """Prompts that leave an identity held out of tuning unsaid, each with several seeds."""
    cases = []
    for number in range(prompts):
        _, caption = draw_set(task, random.Random(f"prompt {task.recipe} {number}"), unseen=True)
        name = f"prompt {number + 1}"
        cases += [Case(name, caption.text, 1000 * number + seed) for seed in range(seeds)]
    return cases


def given_cases(task: Task, count: int) -> list[Case]:
    """Sets to complete from a true first panel of an identity held out of tuning."""
    cases = []
    for number in range(count):
        rng = random.Random(f"known {task.recipe} {number}")
        canvas, caption = draw_set(task, rng, unseen=True)
        first = {1: canvas.panels[0].render()}
        cases.append(Case(f"set {number + 1}", caption.text, number, first))
    return cases


def measure_arms(
    model: DiffusionModel,
    task: Task,
    arms: Sequence[Arm],
    cases: Sequence[Case],
    out: Path,
    settings: SampleSettings | None = None,
    progress: Progress | None = None,
) -> tuple[Setup, Table]:
    """Make what is missing of the arms' sets under `out`, and let the judge read all of them.

    Raises: SettingsError if `out` holds sets of another measurement.
    """
    setup = set_up(model, task.small_recipe, arms, cases, out, settings)
    make_sets(model, setup, together=_TOGETHER, progress=progress)
    sets = {arm.name: partial(read_sets, setup, arm) for arm in arms}
    costs = {arm.name: read_costs(setup, arm) for arm in arms}
    return setup, measure([Toyland()], cases, sets, costs, "peak memory of the process", progress)


def means(table: Table, arm: str, *begins: str) -> dict[str, float]:
    """An arm's figures without their intervals, 0 to 1, by name.

    Args:
        begins: only figures whose names begin with one of these, such as "carried".
    """
    found = {}
    for row in table.rows.values():
        name = row.name.removeprefix("toyland ")
        estimate = row.estimate(arm) if name != row.name and name.startswith(begins or "") else None
        if estimate:
            found[name] = round(estimate.mean, 4)
    return found


def pictures(setup: Setup, arm: Arm) -> list[Image.Image]:
    """The composites of an arm's sets, in the order of the cases."""
    return [made.composite for made in read_sets(setup, arm)]
