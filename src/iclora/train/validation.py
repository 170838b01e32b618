"""Held-out sets: whether an adapter learns the task or the sets, seen while it trains.

Sets nobody trains on are measured with noise and levels that are the same at every step, beside
as many sets that are trained on: the gap between the two is what was learnt by heart. (The loss
of the steps themselves cannot show it: a level drawn anew each time moves it more than learning.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from iclora.files import append_line, digest, replacing
from iclora.models import flow
from iclora.models.base import DiffusionModel
from iclora.sets.layout import token_mask
from iclora.train.cache import EncodedSet

__all__ = ["LEVELS", "Measured", "Validation", "hold_out"]

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Noise levels that are measured."""


@dataclass(frozen=True)
class Measured:
    """The velocity's mean square error on some sets.

    Attributes:
        by_level: at each of `LEVELS`. by_panel: of each panel, in order.
    """

    loss: float
    by_level: tuple[float, ...]
    by_panel: tuple[float, ...]


def hold_out(sets: Sequence[EncodedSet], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Choose a share of the sets, at least one, to measure on.

    The choice follows from a set's name alone: sets that are added later move no other.

    Returns: numbers of the sets to train on, and of those held out.
    """
    count = max(1, round(share * len(sets))) if share > 0 else 0
    order = sorted(range(len(sets)), key=lambda i: digest("held out", str(seed), sets[i].name))
    held = set(order[:count])
    return [i for i in range(len(sets)) if i not in held], sorted(held)


@torch.no_grad()
def measure(
    model: DiffusionModel, sets: Sequence[EncodedSet], seed: int, guidance: float
) -> Measured:
    """Loss of the base with what it carries now, on each set's smallest canvas."""
    rows = []
    for entry in sets:
        x0, layout = entry.latents(0).to(model.device), entry.layouts[0]
        size = layout.size
        masks = [
            torch.from_numpy(token_mask(layout, [i], model.grid)).flatten().to(model.device)
            for i in range(layout.panels)
        ]
        text = [entry.text()]
        for level in LEVELS:
            rng = flow.generator("validation", seed, entry.name, str(level))
            eps = torch.randn(x0.shape, generator=rng).to(model.device)
            sigma = torch.tensor([level], device=model.device).to(model.dtype).float()
            z = flow.add_noise(x0[None], eps[None], sigma)
            v = model.velocity(z, sigma, text, size, guidance)[0]
            error = (v - (eps - x0)).square().mean(-1)
            rows.append(torch.stack([error.mean(), *(error[mask].mean() for mask in masks)]))
    table = torch.stack(rows).view(len(sets), len(LEVELS), -1).double().cpu()
    return Measured(
        round(float(table[:, :, 0].mean()), 6),
        tuple(round(float(x), 6) for x in table[:, :, 0].mean(0)),
        tuple(round(float(x), 6) for x in table[:, :, 1:].mean((0, 1))),
    )


@dataclass(frozen=True)
class Validation:
    """Held-out sets of a run, and the file their measures go to.

    Attributes:
        trained: as many sets that are trained on, to compare with.
    """

    path: Path
    held: tuple[EncodedSet, ...]
    trained: tuple[EncodedSet, ...]
    seed: int
    guidance: float

    def take(self, model: DiffusionModel, step: int, write: bool = True) -> Measured:
        """Measure both, and write it down where it is asked for. Raises: StorageError."""
        held = measure(model, self.held, self.seed, self.guidance)
        trained = measure(model, self.trained, self.seed, self.guidance)
        row = {"step": step, "held out": asdict(held), "trained": asdict(trained)}
        if write:
            append_line(self.path, json.dumps(row))
        return held


def best_step(rows: Sequence[dict[str, Any]]) -> int | None:
    """The step with the least loss on held-out sets, the base alone (step 0) left out."""
    found = [(row["held out"]["loss"], row["step"]) for row in rows if row["step"]]
    return min(found)[1] if found else None


def plot_validation(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A PNG: loss on held-out and on trained sets; at each level; of each panel."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, colour in (("trained", "#9aa8bd"), ("held out", "#27548a")):
        left.plot(steps, [row[name]["loss"] for row in rows], color=colour, label=name)
    best = best_step(rows)
    if best is not None:
        left.axvline(best, color="#c4442a", linewidth=0.8, label=f"best, step {best}")
    left.set_title("same noise at every step", fontsize=10)
    first = rows[0]["held out"]
    panels = [f"panel {i + 1}" for i in range(len(first["by_panel"]))]
    levels = [f"sigma {level}" for level in LEVELS]
    for axes, key, names in ((middle, "by_level", levels), (right, "by_panel", panels)):
        for i, name in enumerate(names):
            # Relative to the first measure: levels differ tenfold among themselves.
            axes.plot(steps, [row["held out"][key][i] / first[key][i] for row in rows], label=name)
        axes.set_title(f"held out, {key[3:]}s, relative to the start", fontsize=10)
    for axes in (left, middle, right):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel("loss (MSE of the velocity)")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
