"""From sets to figures of arms: means, intervals, and differences to the first arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

    def add(self, figure: str, meaning: str, arm: str, key: str, group: str, value: float) -> None:
        """Enter one value."""
        row = self.rows.setdefault(figure, Row(figure, meaning))
        row.values.setdefault(arm, {})[key] = value
        row.groups[key] = group

    def to_json(self, first: str) -> dict[str, Any]:
        """Estimates, differences to the first arm, and every single value."""
        found: dict[str, Any] = {}
        for row in self.rows.values():
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

    Sets are read again for every metric, so that few are in memory at once.

    Args:
        sets: by arm, what reads them from the first on, one per case.
        costs: by arm, of cases by their key.
        memory: what the costs' memory is, such as "peak memory of the process".
    Raises: SettingsError if a metric cannot go on.
    """
    table = Table()
    for label, metric in _labels(metrics).items():
        table.sources[label] = metric.source
        for count, (arm, read) in enumerate(sets.items(), 1):
            for key, group, figures in _figures(metric, cases, read()):
                for name, value in figures.items():
                    meaning = metric.figures.get(name, "")
                    table.add(f"{label} {name}", meaning, arm, key, group, value)
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


def _labels(metrics: Sequence[Metric]) -> dict[str, Metric]:
    """Metrics by their names; the second of a name gets a number."""
    found: dict[str, Metric] = {}
    for metric in metrics:
        twins = sum(other.name == metric.name for other in found.values())
        found[f"{metric.name}-{twins + 1}" if twins else metric.name] = metric
    return found
