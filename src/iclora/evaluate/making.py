"""The sets of all arms: kept on disk, never made twice, with what each cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from PIL import Image

from iclora.evaluate.metrics.base import Made, Metric
from iclora.evaluate.setup import Arm, Setup
from iclora.files import append_line, clear_leftovers
from iclora.making.made import Cost, GeneratedSet
from iclora.making.session import Ask, Session
from iclora.models.base import DiffusionModel
from iclora.progress import Progress
from iclora.sets.recipe import Recipe

__all__ = ["make_sets", "read_costs", "read_sets", "scorer", "to_made"]

_TIMES = "times.jsonl"


def make_sets(
    model: DiffusionModel,
    setup: Setup,
    *,
    together: int = 1,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _: None,
    session: Session | None = None,
    only: Collection[tuple[str, int]] | None = None,
    wrote: Callable[[Path], None] = lambda _: None,
) -> None:
    """Make every set of the setup that is not there yet, or is damaged.

    Args:
        together: sets in one batch, if canvas and given panels are alike.
        progress: hears of every set that is there, beside what a session reports.
        warn: told of damaged sets.
        session: makes them; by default a new one that reports to `progress`.
        only: make no others than these, by the name of their arm and their case, from 0.
        wrote: told of every set's folder.
    """
    for folder in (setup.out, *(setup.out / arm.folder for arm in setup.arms)):
        clear_leftovers(folder)
    wanted = [
        (arm, number)
        for arm in setup.arms
        for number in range(len(setup.cases))
        if only is None or (arm.name, number) in only
    ]
    missing = [(arm, number) for arm, number in wanted if setup.kept(arm, number, warn) is None]
    asks = [
        Ask(setup.requests[arm.name][number], setup.cases[number].given, adapter=arm.adapter)
        for arm, number in missing
    ]
    total = len(wanted)
    done = total - len(missing)
    session = session or Session(model, progress)
    for at, made in session.make(asks, together) if asks else ():
        arm, number = missing[at]
        folder = made.save(setup.folder(arm, number))
        assert made.cost, "a session says what a set cost"
        append_line(folder.parent / _TIMES, json.dumps({"set": folder.name, **vars(made.cost)}))
        wrote(folder)
        done += 1
        if progress:
            progress("making", done, total, arm.name)


def read_sets(setup: Setup, arm: Arm) -> Iterator[Made]:
    """The sets of an arm in the order of the cases, each read when it is asked for.

    Raises: SettingsError, ImageError if a set is missing or damaged.
    """
    for number, case in enumerate(setup.cases):
        made = GeneratedSet.load(setup.folder(arm, number))
        yield to_made(made, setup.recipe_of(case), case.given)


def to_made(
    made: GeneratedSet, recipe: Recipe, given: Mapping[int, Image.Image] | None = None
) -> Made:
    """A set as metrics see it.

    Args:
        given: the pictures that were given; by default the panels the request says were.
    """
    if given is None:
        given = {n: made.panels[n - 1] for n in made.request.given}
    texts: tuple[str, ...] = ()
    if not recipe.markers:
        texts = (made.request.prompt,)
    elif all(marker in made.request.prompt for marker in recipe.markers):
        texts = recipe.parse(made.request.prompt).words
    return Made(recipe, made.request.layout, made.composite, made.panels, texts, given)


def read_costs(setup: Setup, arm: Arm) -> dict[str, Cost]:
    """What each set of an arm cost, by the case's key; costs lost to a kill are left out."""
    try:
        lines = (setup.out / arm.folder / _TIMES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    costs = {}
    for line in lines:
        try:
            row = json.loads(line)
            case = setup.cases[int(row["set"]) - 1]
            costs[case.key] = Cost(float(row["seconds"]), int(row["memory"]))
        except (ValueError, KeyError, TypeError, IndexError):
            # Cut short by a kill, or of a longer list of cases.
            continue
    return costs


def scorer(metric: Metric, recipe: Recipe) -> Callable[[GeneratedSet], float | None]:
    """The metric's main figure of one set; None if it has none. For `making.best.best_of`."""

    def score(made: GeneratedSet) -> float | None:
        (figures,) = metric.of_sets([to_made(made, recipe)])
        return figures.get(metric.main)

    return score
