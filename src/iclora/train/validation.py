"""Held-out sets: they show, while an adapter trains, whether it learns the task or the sets.

Sets that are not trained on are measured with noise and levels that are the same at every step,
beside as many sets that are trained on: the gap between the two is overfitting. (The loss of the
steps themselves cannot show it: its level is drawn at each step, and moves it more than learning.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from iclora.files import append_line, digest
from iclora.models import flow
from iclora.models.base import DiffusionModel, Panels
from iclora.sets.layout import token_mask
from iclora.settings import TrainSettings
from iclora.train.cache import EncodedSet

__all__ = ["LEVELS", "Measured", "Validation", "best_step", "hold_out", "measure"]

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Noise levels that are measured."""


@dataclass(frozen=True)
class Measured:
    """The velocity's mean squared error on some sets."""

    loss: float
    by_level: tuple[float, ...]
    """At each of `LEVELS`."""
    by_panel: tuple[float, ...]
    """Of each panel, in order."""


class Named(Protocol):
    """Anything with the name of a set."""

    @property
    def name(self) -> str: ...

    @property
    def scene(self) -> str: ...


N = TypeVar("N", bound=Named)


def hold_out(sets: Sequence[N], share: float, seed: int) -> tuple[list[N], list[N]]:
    """Choose a share of the sets, at least one, to measure on.

    The choice follows from a set's name alone: sets that are added later move no other. Sets of one
    scene, as `collect` notes them, go together, since they show the same people and places.

    Returns: the sets to train on, and those held out, each in their old order.
    """
    count = max(1, round(share * len(sets))) if share > 0 else 0
    order = sorted(range(len(sets)), key=lambda i: digest("held out", str(seed), sets[i].name))
    held: set[int] = set()
    for i in order:
        if len(held) < count:
            held |= {
                j for j, other in enumerate(sets) if j == i or sets[i].scene == other.scene != ""
            }
    kept = [entry for i, entry in enumerate(sets) if i not in held]
    return kept, [sets[i] for i in sorted(held)]


@torch.no_grad()
def measure(
    model: DiffusionModel, sets: Sequence[EncodedSet], seed: int, guidance: float
) -> Measured:
    """Measure the loss of the base, with the LoRA it carries now, on each set's smallest canvas."""
    rows = []
    for entry in sets:
        x0, layout = entry.latents(0).to(model.device), entry.layouts[0]
        size = layout.size
        masks = [
            torch.from_numpy(token_mask(layout, [i], model.grid)).flatten().to(model.device)
            for i in range(layout.panels)
        ]
        text, lengths = model.as_one(entry.texts())
        panels = Panels.of(layout, lengths, model.grid)
        for level in LEVELS:
            rng = flow.generator("validation", seed, entry.name, str(level))
            eps = torch.randn(x0.shape, generator=rng).to(model.device)
            sigma = torch.tensor([level], device=model.device).to(model.dtype).float()
            z = flow.add_noise(x0[None], eps[None], sigma)
            v = model.velocity(z, sigma, [text], size, guidance, panels=panels)[0]
            error = (v - (eps - x0)).square().mean(-1)
            rows.append(torch.stack([error.mean(), *(error[mask].mean() for mask in masks)]))
    # To the CPU first: MPS has no float64.
    table = torch.stack(rows).view(len(sets), len(LEVELS), -1).cpu().double()
    return Measured(
        round(float(table[:, :, 0].mean()), 6),
        tuple(round(float(x), 6) for x in table[:, :, 0].mean(0)),
        tuple(round(float(x), 6) for x in table[:, :, 1:].mean((0, 1))),
    )


@dataclass(frozen=True)
class Validation:
    """Held-out sets of a run, and the file their measures go to."""

    path: Path
    held: tuple[EncodedSet, ...]
    trained: tuple[EncodedSet, ...]
    """As many sets that are trained on, to compare with."""
    seed: int
    guidance: float

    @classmethod
    def of(
        cls,
        settings: TrainSettings,
        held: Sequence[EncodedSet],
        trained: Sequence[EncodedSet],
        path: Path,
    ) -> Validation | None:
        """Set up the measuring of a run; None if no sets are held out.

        The sets to compare with are chosen by a hash of their names, as the held-out ones are: the
        first ones in order may all be alike.
        """
        if not held:
            return None
        seed = settings.seed
        order = sorted(trained, key=lambda entry: digest("compared", str(seed), entry.name))
        return cls(path, tuple(held), tuple(order[: len(held)]), seed, settings.guidance)

    def take(self, model: DiffusionModel, step: int, write: bool = True) -> Measured:
        """Measure held-out and trained sets.

        Args:
            write: True adds the measures to the file.
        Returns: the measure on the held-out sets.
        Raises: StorageError.
        """
        held = measure(model, self.held, self.seed, self.guidance)
        trained = measure(model, self.trained, self.seed, self.guidance)
        row = {"step": step, "held out": asdict(held), "trained": asdict(trained)}
        if write:
            append_line(self.path, json.dumps(row))
        return held


def best_step(rows: Sequence[dict[str, Any]]) -> int | None:
    """Return the step with the lowest loss on held-out sets, the base alone (step 0) left out.

    A loss that is no number is no step's.
    """
    losses = [(row["held out"]["loss"], row["step"]) for row in rows if row["step"]]
    found = [each for each in losses if math.isfinite(each[0])]
    return min(found)[1] if found else None
