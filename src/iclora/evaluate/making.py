"""The sets of all arms: kept on disk, never made twice, with what each cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from PIL import Image

from iclora.evaluate.metrics.base import Made, Metric
from iclora.evaluate.setup import Arm, Plan, is_made
from iclora.files import append_line
from iclora.making.made import Cost, GeneratedSet
from iclora.making.session import Ask, Session
from iclora.models.base import DiffusionModel
from iclora.sets.recipe import Recipe

__all__ = ["Cost", "make_sets", "read_sets", "scorer", "to_made"]

_TIMES = "times.jsonl"


def make_sets(
    model: DiffusionModel,
    planned: Plan,
    *,
    together: int = 1,
    on_set: Callable[[Arm, int, int], None] | None = None,
) -> None:
    """Make every set of the plan that is not there yet.

    Args:
        together: sets in one batch, where canvas and known panels are alike.
        on_set: called with the arm, how many sets of the plan are there, and of how many.
    """
    missing = {
        arm.name: [n for n in range(len(planned.wishes)) if not is_made(planned, arm, n)]
        for arm in planned.arms
    }
    total = len(planned.arms) * len(planned.wishes)
    done = total - sum(map(len, missing.values()))
    if done == total:
        return
    pairs = [(arm, n) for arm in planned.arms for n in missing[arm.name]]
    asks = [
        Ask(planned.requests[arm.name][n], planned.wishes[n].known, adapter=arm.adapter)
        for arm, n in pairs
    ]
    for at, made in Session(model).make(asks, together):
        arm, number = pairs[at]
        folder = made.save(planned.folder(arm, number))
        assert made.cost, "a session says what a set cost"
        line = json.dumps({"set": folder.name, **vars(made.cost)})
        append_line(folder.parent / _TIMES, line)
        done += 1
        if on_set:
            on_set(arm, done, total)


def read_sets(planned: Plan, arm: Arm) -> tuple[list[Made], dict[str, Cost]]:
    """The sets of an arm in the order of the wishes, and what each cost, by the wish's key.

    Sets whose cost was lost to a kill have none.

    Raises: SettingsError, ImageError if a set is missing or damaged.
    """
    found = []
    for number, wish in enumerate(planned.wishes):
        made = GeneratedSet.load(planned.folder(arm, number))
        found.append(to_made(made, planned.recipe, wish.known))
    return found, _costs(planned, arm)


def to_made(
    made: GeneratedSet, recipe: Recipe, known: Mapping[int, Image.Image] | None = None
) -> Made:
    """A set as metrics see it.

    Args:
        known: the pictures that were given; by default the panels the request says were.
    """
    if known is None:
        known = {n: made.panels[n - 1] for n in made.request.given}
    words: tuple[str, ...] = ()
    if all(marker in made.request.prompt for marker in recipe.markers):
        words = recipe.parse(made.request.prompt).words
    return Made(recipe, made.request.layout, made.composite, made.panels, words, known)


def _costs(planned: Plan, arm: Arm) -> dict[str, Cost]:
    try:
        lines = (planned.out / arm.folder / _TIMES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    costs = {}
    for line in lines:
        try:
            row = json.loads(line)
            wish = planned.wishes[int(row["set"]) - 1]
            costs[wish.key] = Cost(float(row["seconds"]), int(row["memory"]))
        except (ValueError, KeyError, TypeError, IndexError):
            # Cut short by a kill, or of a longer list of wishes.
            continue
    return costs


def scorer(metric: Metric, recipe: Recipe) -> Callable[[GeneratedSet], float | None]:
    """The metric's main figure of one set; None where it has none. For `making.best.best_of`."""

    def score(made: GeneratedSet) -> float | None:
        (figures,) = metric.of_sets([to_made(made, recipe)])
        return figures.get(metric.main)

    return score
