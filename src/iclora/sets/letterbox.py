"""Letterboxes cut off single files, alike in all pictures of a size."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from iclora.sets.bars import is_bar
from iclora.sets.dataset import Dataset, ImageSet
from iclora.sets.edges import Edges
from iclora.sets.layout import Size
from iclora.sets.listing import Problem

__all__ = ["cut_note", "with_cuts"]

_NEAR = 3
"""px by which the widths of one bar differ in pictures that are compressed."""


def with_cuts(
    dataset: Dataset, found: Mapping[str, Sequence[tuple[Size, Edges]]]
) -> list[ImageSet]:
    """The sets of a dataset from which bars are to be cut, with their cuts.

    Stills of one film have one size and one letterbox. So where most pictures of a size agree, all
    of these are cut alike: also a dark one whose bar does not show, if its edge is of one colour.

    Args:
        found: for each set the sizes of its panels and the bars that lie opposite each other.
    """
    by_size: dict[Size, list[Edges]] = defaultdict(list)
    for panels in found.values():
        for size, bars in panels:
            by_size[size].append(bars)
    usual = {size: _agreed(bars) for size, bars in by_size.items()}
    cut = []
    for image_set in dataset.sets:
        panels = found.get(image_set.name, ())
        own = tuple(
            _cut_of(image_set, number, bars, usual[size])
            for number, (size, bars) in enumerate(panels)
        )
        if any(map(any, own)):
            cut.append(replace(image_set, cuts=own))
    return cut


def _agreed(bars: Sequence[Edges]) -> Edges:
    """The bars that at least half of some pictures have; none if they do not agree."""
    told = [each for each in bars if any(each)]
    if not told:
        return Edges()
    middle = [statistics.median(widths) for widths in zip(*told, strict=True)]
    near = [
        each for each in told if all(abs(a - b) <= _NEAR for a, b in zip(each, middle, strict=True))
    ]
    if 2 * len(near) < len(bars):
        return Edges()
    return Edges(*map(max, zip(*near, strict=True)))


def _cut_of(image_set: ImageSet, number: int, own: Edges, usual: Edges) -> Edges:
    if not any(usual):
        return own
    if any(own) and all(abs(a - b) <= _NEAR for a, b in zip(own, usual, strict=True)):
        return usual
    return usual if is_bar(image_set.panel(number), usual) else own


def cut_note(cut: Iterable[ImageSet]) -> Iterator[Problem]:
    """Say what is cut off, once for all panels that lose the same."""
    counts: Counter[Edges] = Counter()
    names: dict[Edges, list[str]] = defaultdict(list)
    for image_set in cut:
        for edges in filter(any, image_set.cuts):
            counts[edges] += 1
            if image_set.name not in names[edges]:
                names[edges].append(image_set.name)
    for edges, count in counts.items():
        rest = f" and {len(names[edges]) - 1} more sets" if len(names[edges]) > 1 else ""
        yield Problem(
            f"{names[edges][0]}{rest}",
            f"bars of one colour are cut off {count} panel{'s' * (count > 1)} ({edges.told})",
            "Look at them with `iclora review`; turn `cut_bars` off to keep them.",
            "warning",
        )
