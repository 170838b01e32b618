"""The whole of an evaluation: sets made, measured, and shown on a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from iclora.errors import SettingsError
from iclora.evaluate.figures import Table, measure
from iclora.evaluate.making import make_sets, read_costs, read_sets
from iclora.evaluate.metrics.base import Metric
from iclora.evaluate.metrics.pixels import Pixels
from iclora.evaluate.report import write_report
from iclora.evaluate.setup import Setup
from iclora.files.locks import LOCK, alone
from iclora.making.session import Session
from iclora.models.base import PARTS, DiffusionModel
from iclora.progress import Progress

__all__ = ["evaluate"]

_FEW = 20
"""Prompts below which a percentile bootstrap that draws them is too sure of itself."""


def evaluate(
    model: DiffusionModel,
    setup: Setup,
    metrics: Sequence[Metric] = (),
    *,
    together: int = 1,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _: None,
    session: Session | None = None,
    make: Callable[[Setup, Progress | None], None] | None = None,
) -> Table:
    """Make what is missing of a setup's sets, measure all of them and write the report.

    One that was stopped goes on where it was: sets that are there are not made again, figures are
    computed from the sets on disk.

    Args:
        metrics: beside those of bare pixels, seconds and memory.
        together: sets in one batch.
        warn: told of sets that are damaged, and made again.
        session: makes the sets; by default a new one.
        make: makes them elsewhere; by default they are made here.
    Raises: SettingsError, also if another process is at it; StorageError; VisionModelError if a
        judge cannot go on.
    """
    for metric in metrics:
        for recipe in setup.recipes:
            metric.check(recipe)
    with alone(setup.out / LOCK, setup.out, partial(SettingsError, setting="out")):
        if make:
            make(setup, progress)
        # What is missing or damaged now, whoever made the rest.
        make_sets(model, setup, together=together, progress=progress, warn=warn, session=session)
        return _measure(model, setup, metrics, progress)


def _measure(
    model: DiffusionModel, setup: Setup, metrics: Sequence[Metric], progress: Progress | None
) -> Table:
    facts = _facts(model, setup)
    if metrics:
        # Nothing is made any more; their models may need the room.
        model.release(*PARTS)
    on_gpu = model.device.type == "cuda"
    table = measure(
        [*metrics, Pixels()],
        setup.cases,
        {arm.name: partial(read_sets, setup, arm) for arm in setup.arms},
        {arm.name: read_costs(setup, arm) for arm in setup.arms},
        "peak memory on the GPU" if on_gpu else "peak resident memory of the process so far",
        progress,
    )
    table.notes += [*_doubts(setup), *setup.notes]
    write_report(setup, table, facts)
    return table


def _facts(model: DiffusionModel, setup: Setup) -> dict[str, Any]:
    requests = setup.requests[setup.arms[0].name]
    first = requests[0]
    seeds = list(dict.fromkeys(case.seed for case in setup.cases))
    return {
        "base": model.name,
        "recipe": ", ".join(recipe.name for recipe in setup.recipes),
        "canvas": ", ".join(dict.fromkeys("{}x{}".format(*r.layout.size) for r in requests)),
        "steps": first.steps,
        "guidance": first.guidance,
        "seeds": f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}",
        "device": model.device.type,
        "dtype": first.dtype,
    }


def _doubts(setup: Setup) -> list[str]:
    """What is too few to be trusted."""
    prompts = len({case.name for case in setup.cases})
    doubts = []
    if prompts == len(setup.cases):
        doubts.append(
            "one seed per prompt shows no diversity, and consistency alone rewards collapse: set "
            "`seeds` to 2 or more"
        )
    if prompts < _FEW:
        doubts.append(
            f"intervals over {prompts} prompts are narrower than what is known: use {_FEW} or more"
            if prompts > 1
            else "a single prompt says nothing of others"
        )
    return doubts
