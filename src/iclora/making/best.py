"""The best of several sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from iclora.errors import SettingsError
from iclora.making.made import GeneratedSet
from iclora.making.session import Ask, Session

__all__ = ["Best", "best_of"]


@dataclass(frozen=True)
class Best:
    """The best of the sets that were made for one wish."""

    made: GeneratedSet
    scores: tuple[float | None, ...]
    """Of every candidate, in the order of the asks; None if one could not be scored."""


def best_of(
    session: Session,
    asks: Sequence[Ask],
    count: int,
    score: Callable[[GeneratedSet], float | None],
    source: str,
    together: int = 1,
) -> Iterator[tuple[int, Best]]:
    """Make every ask and keep, of each `count` neighbours, the set with the highest score.

    Of equals the earlier ask's is kept. One set is in memory beside the best so far.

    Args:
        asks: `count` of them for each wish, one wish after another.
        score: of one set; None if it could not be scored.
        source: who scores, for the error.
    Yields: the number of a wish, from 0, and its best set.
    Raises: SettingsError if no candidate of a wish could be scored; as `Session.make`.
    """
    best: dict[int, tuple[float, int, GeneratedSet]] = {}
    scores: dict[int, dict[int, float | None]] = {}
    for number, made in session.make(asks, together):
        wish = number // count
        found = score(made)
        scores.setdefault(wish, {})[number] = found
        if found is not None and (found, -number) > best.get(wish, (float("-inf"), 0))[:2]:
            best[wish] = (found, -number, made)
        # Or it would be in memory while the next one is painted.
        del made
        if len(scores[wish]) == min(count, len(asks) - wish * count):
            if wish not in best:
                raise SettingsError(
                    f"{source} scored none of {count} sets",
                    "Prompts need markers for it, or the judge gave no answers; use another "
                    "`score`.",
                    setting="score",
                )
            marks = scores.pop(wish)
            yield wish, Best(best.pop(wish)[2], tuple(marks[n] for n in sorted(marks)))
