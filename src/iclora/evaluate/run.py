"""The whole of an evaluation: sets made, measured, and shown on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iclora.evaluate.figures import Table, measure
from iclora.evaluate.making import make_sets, read_sets
from iclora.evaluate.metrics.base import Metric, Pixels
from iclora.evaluate.report import write_report
from iclora.evaluate.setup import Arm, Plan
from iclora.models.base import PARTS, DiffusionModel
from iclora.progress import Progress

__all__ = ["evaluate"]

_FEW = 20
"""Prompts below which a percentile bootstrap that draws them is too sure of itself."""


def evaluate(
    model: DiffusionModel,
    planned: Plan,
    metrics: Sequence[Metric],
    *,
    together: int = 1,
    bar: Progress,
) -> Table:
    """Make what is missing of a plan's sets, measure all of them and write the report.

    One that was stopped goes on where it was: sets that are there are not made again, figures are
    computed from the sets on disk.

    Args:
        metrics: beside those of bare pixels, seconds and memory.
        together: sets in one batch.
    Raises: SettingsError, StorageError; CaptionerError if a judge cannot go on.
    """
    for metric in metrics:
        metric.check(planned.recipe)

    def on_set(arm: Arm, done: int, total: int) -> None:
        bar("making", done, total, arm.name)

    make_sets(model, planned, together=together, on_set=on_set)
    facts = _facts(model, planned)
    # Nothing is made any more; the metrics' models may need the room.
    model.release(*PARTS)
    sets, costs = {}, {}
    for arm in planned.arms:
        sets[arm.name], costs[arm.name] = read_sets(planned, arm)
    on_gpu = model.device.type == "cuda"
    memory = "peak memory on the GPU" if on_gpu else "peak resident memory of the process so far"
    table = measure(
        [*metrics, Pixels()],
        planned.wishes,
        sets,
        costs,
        memory,
        on_arm=lambda name, done, total: bar(f"measuring {name}", done, total, ""),
    )
    table.notes += [*_doubts(planned), *planned.notes]
    write_report(planned, sets, table, facts)
    return table


def _facts(model: DiffusionModel, planned: Plan) -> dict[str, Any]:
    first = planned.requests[planned.arms[0].name][0]
    seeds = list(dict.fromkeys(wish.seed for wish in planned.wishes))
    return {
        "base": model.name,
        "recipe": planned.recipe.name,
        "canvas": f"{first.layout.width}x{first.layout.height}",
        "steps": first.steps,
        "guidance": first.guidance,
        "seeds": f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}",
        "device": model.device.type,
        "dtype": first.dtype,
    }


def _doubts(planned: Plan) -> list[str]:
    """What is too few to be trusted."""
    prompts = len({wish.asked for wish in planned.wishes})
    doubts = []
    if prompts == len(planned.wishes):
        doubts.append(
            "one seed per prompt shows no diversity, and consistency alone rewards collapse: use "
            "--seeds 2 or more"
        )
    if prompts < _FEW:
        doubts.append(
            f"intervals over {prompts} prompts are narrower than what is known: use {_FEW} or more"
            if prompts > 1
            else "a single prompt says nothing of others"
        )
    return doubts
