"""From sets to figures of arms: means, intervals, and differences to the first arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iclora.evaluate.intervals import Estimate, bootstrap, compare
from iclora.evaluate.making import Cost
from iclora.evaluate.metrics.base import Made, Metric
from iclora.evaluate.setup import Wish

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
    wishes: Sequence[Wish],
    sets: Mapping[str, Sequence[Made]],
    costs: Mapping[str, Mapping[str, Cost]],
    memory: str,
    on_arm: Callable[[str, int, int], None] | None = None,
) -> Table:
    """Measure every set of every arm.

    Args:
        sets: by arm, one per wish.
        memory: what the costs' memory is, such as "peak memory of the process".
        on_arm: called with the metric's name, how many arms it has measured, and of how many.
    Raises: SettingsError if a metric cannot go on.
    """
    table = Table()
    asked: dict[str, list[int]] = {}
    for number, wish in enumerate(wishes):
        asked.setdefault(wish.asked, []).append(number)
    for label, metric in _labels(metrics).items():
        table.sources[label] = metric.source

        def add(
            arm: str,
            key: str,
            group: str,
            figures: Mapping[str, float],
            label: str = label,
            metric: Metric = metric,
        ) -> None:
            for name, value in figures.items():
                meaning = metric.figures.get(name, "")
                table.add(f"{label} {name}", meaning, arm, key, group, value)

        for count, (arm, made) in enumerate(sets.items(), 1):
            for wish, figures in zip(wishes, metric.of_sets(made), strict=True):
                add(arm, wish.key, wish.asked, figures)
            for group, numbers in asked.items():
                if len(numbers) > 1:
                    figures = metric.across_seeds([made[n] for n in numbers])
                    add(arm, group, group, figures)
            if on_arm:
                on_arm(label, count, len(sets))
        table.notes += [note for note in metric.notes if note not in table.notes]
    for arm, paid in costs.items():
        for wish in wishes:
            if wish.key in paid:
                cost = paid[wish.key]
                table.add("seconds", "per set", arm, wish.key, wish.asked, cost.seconds)
        most = max((cost.memory for cost in paid.values()), default=0)
        if most:
            table.add("memory", f"{memory}, GiB", arm, "all", "all", most / 2**30)
    return table


def _labels(metrics: Sequence[Metric]) -> dict[str, Metric]:
    """Metrics by their names; the second of a name gets a number."""
    found: dict[str, Metric] = {}
    for metric in metrics:
        twins = sum(other.name == metric.name for other in found.values())
        found[f"{metric.name}-{twins + 1}" if twins else metric.name] = metric
    return found
