"""The contract every metric meets: made sets in, figures out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import numpy as np
from PIL import Image

from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe

__all__ = ["Figures", "Made", "Metric", "made_pairs", "spread"]

Figures = dict[str, float]
"""What was measured, by the figure's name."""


@dataclass(frozen=True)
class Made:
    """A made set as a metric sees it."""

    recipe: Recipe
    """What kind of set it is to be."""
    layout: Layout
    composite: Image.Image
    panels: tuple[Image.Image, ...]
    words: tuple[str, ...]
    """Each panel's own text; empty if the prompt has no markers."""
    given: Mapping[int, Image.Image] = field(default_factory=dict)
    """Pictures of the panels that were given, by number counted from 1."""

    @property
    def own(self) -> list[int]:
        """Indices, from 0, of the panels that the base made."""
        return [n for n in range(len(self.panels)) if n + 1 not in self.given]


class Metric(ABC):
    """Turns sets into figures. To add one: see `registry`.

    Args:
        source: the model or rule behind it, for the report.
    """

    name: ClassVar[str]
    """A short one, which the names of its figures begin with."""
    main: ClassVar[str]
    """The figure by which the best of several sets is chosen; higher is better."""
    figures: ClassVar[Mapping[str, str]]
    """What each figure means, by name; higher is better unless it says so."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.notes: list[str] = []
        """What a reader of its figures should know; complete once it has measured."""

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe whose sets it does not know. Raises: SettingsError."""
        del recipe

    @abstractmethod
    def of_sets(self, sets: Iterable[Made]) -> Iterator[Figures]:
        """Figures of each set alone, in order; one that could not be measured is left out.

        Sets are read from disk as they are asked for: take one at a time, or a few.
        """

    def across_seeds(self, sets: Sequence[Made]) -> Figures:
        """Figures of two or more sets that differ in their seed alone; none by default."""
        del sets
        return {}

    def beside(self, pairs: Iterable[tuple[Made, Made]]) -> Iterator[Figures]:
        """Figures of each set beside the first arm's of the same words and noise, in order.

        None by default. Measured for prompts from outside a task.
        """
        for _ in pairs:
            yield {}


def made_pairs(made: Made) -> list[tuple[int, int]]:
    """Pairs of panels, from 0, at least one of which the base made."""
    every = combinations(range(len(made.panels)), 2)
    return [(a, b) for a, b in every if a in made.own or b in made.own]


def spread(sets: Sequence[Made], unlike: Callable[[int, int, int], float]) -> float:
    """Mean unlikeness of the same panel in two of the sets, over all made panels and pairs.

    Args:
        unlike: of (set, other set, panel), from 0.
    """
    found = [
        unlike(a, b, panel) for a, b in combinations(range(len(sets)), 2) for panel in sets[a].own
    ]
    return float(np.mean(found))
