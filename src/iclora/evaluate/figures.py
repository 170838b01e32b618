"""From sets to figures of arms: means, intervals, and differences to the first arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from iclora.evaluate.intervals import Estimate, bootstrap, compare
from iclora.evaluate.metrics.base import Figures, Made, Metric
from iclora.evaluate.setup import Case
from iclora.making.made import Cost
from iclora.progress import Progress

__all__ = ["Row", "Table", "measure"]

Values = dict[str, float]
"""Of one figure and arm, by what was measured: a set's key, or a prompt."""


@dataclass
class Row:
    """One figure of all arms."""

    name: str
    meaning: str
    values: dict[str, Values] = field(default_factory=dict)
    """By arm."""
    groups: dict[str, str] = field(default_factory=dict)
    """Which prompt each key belongs to."""
    recipe: str = ""
    """The recipe whose sets alone it is of, where prompts are of several."""

    def estimate(self, arm: str) -> Estimate | None:
        """The arm's mean; None if nothing could be measured."""
        found = self.values.get(arm)
        if not found:
            return None
        return bootstrap(list(found.values()), groups=[self.groups[key] for key in found])

    def difference(self, arm: str, first: str) -> Estimate | None:
        """This arm less the first, over what both have."""
        return compare(self.values.get(first, {}), self.values.get(arm, {}), self.groups)


@dataclass
class Table:
    """All figures."""

    rows: dict[str, Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    """What stands behind each metric."""

    def add(
        self,
        figure: str,
        meaning: str,
        arm: str,
        key: str,
        group: str,
        value: float,
        recipe: str = "",
    ) -> None:
        """Enter one value; with a recipe, into that recipe's own row as well."""
        name = f"{figure}, {recipe}"
        for row in (Row(figure, meaning), Row(name, meaning, recipe=recipe))[: 1 + bool(recipe)]:
            kept = self.rows.setdefault(row.name, row)
            kept.values.setdefault(arm, {})[key] = value
            kept.groups[key] = group

    def ordered(self) -> list[Row]:
        """All rows, those of one recipe last."""
        names = list(dict.fromkeys(row.recipe for row in self.rows.values()))
        return sorted(
            self.rows.values(), key=lambda row: (row.recipe != "", names.index(row.recipe))
        )

    def to_json(self, first: str) -> dict[str, Any]:
        """Estimates, differences to the first arm, and every single value."""
        found: dict[str, Any] = {}
        for row in self.ordered():
            arms = {}
            for arm in row.values:
                mean = row.estimate(arm)
                less = None if arm == first else row.difference(arm, first)
                arms[arm] = {
                    **(vars(mean) if mean else {}),
                    "difference": None if less is None else vars(less),
                    "values": row.values[arm],
                }
            found[row.name] = {"meaning": row.meaning, "arms": arms}
        return found


def measure(
    metrics: Sequence[Metric],
    cases: Sequence[Case],
    sets: Mapping[str, Callable[[], Iterable[Made]]],
    costs: Mapping[str, Mapping[str, Cost]],
    memory: str,
    progress: Progress | None = None,
) -> Table:
    """Measure every set of every arm.

    Sets are read again for every metric, so that few are in memory at once. Those of prompts from
    outside a task are also set beside the first arm's, and their figures stand apart by recipe.

    Args:
        sets: by arm, what reads them from the first on, one per case.
        costs: by arm, of cases by their key.
        memory: what the costs' memory is, such as "peak memory of the process".
    Raises: SettingsError if a metric cannot go on.
    """
    table = Table()
    outside = any(case.recipe for case in cases)
    own = {case.name: case.recipe.name if case.recipe else "" for case in cases}
    recipes = own if len(set(own.values())) > 1 else {}
    first = next(iter(sets), "")
    for label, metric in _labels(metrics).items():
        table.sources[label] = metric.source
        for count, (arm, read) in enumerate(sets.items(), 1):
            found = _figures(metric, cases, read())
            if outside and arm != first:
                found = chain(found, _beside(metric, cases, read(), sets[first]()))
            for key, group, figures in found:
                for name, value in figures.items():
                    meaning = metric.figures.get(name, "")
                    of = recipes.get(group, "")
                    table.add(f"{label} {name}", meaning, arm, key, group, value, of)
            if progress:
                progress(f"measuring {label}", count, len(sets))
        table.notes += [note for note in metric.notes if note not in table.notes]
    for arm, paid in costs.items():
        for case in cases:
            if case.key in paid:
                seconds = paid[case.key].seconds
                table.add("seconds", "per set", arm, case.key, case.name, seconds)
        most = max((cost.memory for cost in paid.values()), default=0)
        if most:
            table.add("memory", f"{memory}, GiB", arm, "all", "all", most / 2**30)
    return table


def _figures(
    metric: Metric, cases: Sequence[Case], sets: Iterable[Made]
) -> Iterator[tuple[str, str, Figures]]:
    """Figures of each case and, once the last seed of a name was measured, of its seeds.

    Yields: what was measured (the case's key, or the name), the name, the figures.
    """
    held: dict[str, list[Made]] = {}
    left = Counter(case.name for case in cases)

    def passing() -> Iterator[Made]:
        for case, made in zip(cases, sets, strict=True):
            held.setdefault(case.name, []).append(made)
            # Nothing else may hold a set while the next ones are read.
            del made
            yield held[case.name][-1]

    for case, figures in zip(cases, metric.of_sets(passing()), strict=True):
        yield case.key, case.name, figures
        left[case.name] -= 1
        if not left[case.name]:
            seeds = held.pop(case.name)
            if len(seeds) > 1:
                yield case.name, case.name, metric.across_seeds(seeds)
            del seeds


def _beside(
    metric: Metric, cases: Sequence[Case], sets: Iterable[Made], first: Iterable[Made]
) -> Iterator[tuple[str, str, Figures]]:
    """Figures of each case beside the first arm's set of it."""
    pairs = zip(sets, first, strict=True)
    for case, figures in zip(cases, metric.beside(pairs), strict=True):
        yield case.key, case.name, figures


def _labels(metrics: Sequence[Metric]) -> dict[str, Metric]:
    """Metrics by their names; the second of a name gets a number."""
    found: dict[str, Metric] = {}
    for metric in metrics:
        twins = sum(other.name == metric.name for other in found.values())
        found[f"{metric.name}-{twins + 1}" if twins else metric.name] = metric
    return found
