"""The verb that measures: evaluate."""

from __future__ import annotations

from iclora.jobs.at_once import check_sets
from iclora.jobs.opening import Opener
from iclora.progress import Console
from iclora.settings import EvaluateSettings, verb

__all__ = ["evaluate"]


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings, console: Console) -> None:
    """Measure what a base and adapters make of the same prompts and seeds, side by side."""
    check_sets(settings, console)
    from iclora.evaluate.report import as_text
    from iclora.jobs.evaluating import evaluate as run_evaluation

    setup, table = run_evaluation(settings, console, Opener())
    console.say(
        f"\n{as_text(setup, table)}\n\nwrote {setup.out / 'report.html'}; open it in a browser"
    )
