"""The best of several sets."""

from __future__ import annotations

from collections.abc import Iterable

from iclora.errors import ConfigError
from iclora.evaluate.making import to_made
from iclora.evaluate.metric import Metric
from iclora.recipe import Recipe
from iclora.request import GeneratedSet

__all__ = ["best_of"]


def best_of(
    candidates: Iterable[GeneratedSet], metric: Metric, recipe: Recipe
) -> tuple[GeneratedSet, list[float | None]]:
    """The set that the metric's main figure puts first; the earlier one of equals.

    Candidates may be made while they are asked for: one is in memory beside the best so far.

    Returns: it, and the score of every candidate, None where it could not be scored.
    Raises: ConfigError if none could be.
    """
    best: GeneratedSet | None = None
    scores: list[float | None] = []
    highest = float("-inf")
    for made in candidates:
        (figures,) = metric.of_sets([to_made(made, recipe)])
        score = figures.get(metric.main)
        scores.append(score)
        if score is not None and score > highest:
            best, highest = made, score
    if best is None:
        raise ConfigError(
            f"{metric.source} gave none of {len(scores)} sets its {metric.main}",
            "Prompts need markers for it, or the judge gave no answers; use another --score.",
        )
    return best, scores
