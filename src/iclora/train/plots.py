"""Plots of a run: the loss of every step, and the measures on held-out sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iclora.files import replacing
from iclora.train.validation import LEVELS, best_step

__all__ = ["plot_loss", "plot_validation"]


def plot_loss(path: Path, steps: Sequence[int], losses: Sequence[float]) -> None:
    """Write a PNG of the loss per step and its running mean. Raises: StorageError."""
    from matplotlib.figure import Figure

    smooth, mean = [], losses[0]
    for loss in losses:
        mean += (loss - mean) * 0.05
        smooth.append(mean)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#c9d3e3", linewidth=0.8, label="each step")
    axes.plot(steps, smooth, color="#27548a", linewidth=1.6, label="running mean")
    axes.set(xlabel="step", ylabel="loss (MSE of the velocity)")
    _finish(axes)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def plot_validation(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a PNG: loss on held-out and on trained sets; at each level; of each panel.

    Args:
        rows: those of validation.jsonl.
    Raises: StorageError.
    """
    from matplotlib.figure import Figure

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
            start = first[key][i] or math.nan
            axes.plot(steps, [row["held out"][key][i] / start for row in rows], label=name)
        axes.set_title(f"held out, {key[3:]}s, relative to the start", fontsize=10)
    for axes in (left, middle, right):
        axes.set_xlabel("step")
        _finish(axes)
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel("loss (MSE of the velocity)")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _finish(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
