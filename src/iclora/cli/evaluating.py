"""The verb that measures: evaluate."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from iclora.jobs.at_once import check_sets
from iclora.jobs.opening import Opener
from iclora.progress import Console
from iclora.settings import EvaluateSettings, verb

if TYPE_CHECKING:
    from iclora.jobs.evaluating import MakeAll

__all__ = ["evaluate"]


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings, console: Console) -> None:
    """Measure what a base and adapters make of the same prompts and seeds, side by side."""
    check_sets(settings, console)
    from iclora.evaluate.report import as_text
    from iclora.jobs.evaluating import evaluate as run_evaluation

    make: MakeAll | None = None
    if settings.workers > 1 or settings.engine == "ray":
        from iclora.serve.sharing import share_evaluation

        make = partial(share_evaluation, settings, console)
    setup, table = run_evaluation(settings, console, Opener(), make)
    console.say(
        f"\n{as_text(setup, table)}\n\nwrote {setup.out / 'report.html'}; open it in a browser"
    )
