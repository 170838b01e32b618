"""What every source has to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iclora.progress import Progress
from iclora.sets.collect.looks import Looks
from iclora.sets.collect.provenance import Pool
from iclora.sets.listing import Problem
from iclora.sets.recipe import Recipe
from iclora.settings import Grouping, Paging

__all__ = ["Wanted"]


@dataclass(frozen=True)
class Wanted:
    """What is collected, and where to put and say things."""

    recipe: Recipe
    by: Grouping
    """How pictures of a folder become sets."""
    pages: Paging
    """What is taken of decks."""
    looks: Looks
    tell: Callable[[Problem], None]
    """Told of everything that is refused, left out or guessed."""
    note: Callable[[str], None]
    """Told what came of a source."""
    pool: Pool
    progress: Progress

    @property
    def panels(self) -> int:
        return self.recipe.canvas.panels
