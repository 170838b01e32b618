"""The best of several sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from iclora.errors import SettingsError
from iclora.making.request import GeneratedSet

__all__ = ["best_of"]


def best_of(
    candidates: Iterable[GeneratedSet], score: Callable[[GeneratedSet], float | None], source: str
) -> tuple[GeneratedSet, list[float | None]]:
    """The set with the highest score; the earlier one of equals.

    Candidates may be made while they are asked for: one is in memory beside the best so far.

    Args:
        score: of one set; None if it could not be scored.
        source: who scores, for the error.
    Returns: the set, and the score of every candidate.
    Raises: SettingsError if no candidate could be scored.
    """
    best: GeneratedSet | None = None
    scores: list[float | None] = []
    highest = float("-inf")
    for made in candidates:
        found = score(made)
        scores.append(found)
        if found is not None and found > highest:
            best, highest = made, found
    if best is None:
        raise SettingsError(
            f"{source} scored none of {len(scores)} sets",
            "Prompts need markers for it, or the judge gave no answers; use another `score`.",
        )
    return best, scores
