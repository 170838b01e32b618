"""The process that trains: `python -m iclora.serve.trainee RECORD`.

It has a session of its own and outlives whoever started it. What it is told lies in the record, and
what it says in files beside it, so that any server that comes later can follow it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iclora.files import append_line, write_text
from iclora.progress import Cancelled
from iclora.serve.children import own_device
from iclora.serve.engine import Outcome, Report
from iclora.serve.faults import problem_of
from iclora.serve.records import Record
from iclora.serve.worker import JobConsole
from iclora.settings import RunSettings, settings_of

__all__ = ["be_trainee"]


def be_trainee(place: Path) -> int:
    """Train what a record says, and write down how it ended. Returns: the exit status."""
    record = Record.read(place)
    files = record.files

    def report(said: Report) -> None:
        if said["type"] == "progress":
            write_text(files.progress, json.dumps(said))
        else:
            append_line(files.notes, json.dumps(said))

    console = JobConsole(record.folder, report)
    outcome = _outcome(record, console)
    write_text(files.outcome, json.dumps(asdict(outcome)))
    return 0 if outcome.status == "succeeded" else 1


def _outcome(record: Record, console: JobConsole) -> Outcome:
    from iclora.jobs.opening import Opener
    from iclora.jobs.training import train
    from iclora.train.resuming import resumed

    try:
        settings = _settings(record, console, resumed)
        _, result = train(settings, console, Opener())
    except Cancelled:
        return Outcome("cancelled")
    except Exception as error:
        found = problem_of(error, RunSettings)
        return Outcome(
            "failed", error={n: text and console.shown(text) for n, text in found.items()}
        )
    said: dict[str, Any] = {"step": result.step, "best": result.best}
    if not result.finished:
        return Outcome("cancelled", said)
    return Outcome("succeeded", said | {"made": str(result.made)})


def _settings(record: Record, console: JobConsole, resumed: Any) -> RunSettings:
    """What the record says; a run that is there already goes on."""
    folder = record.input.get("resume")
    if folder is None and Path(record.folder, "config.toml").is_file():
        folder = record.folder
    if folder is None:
        return settings_of(RunSettings, {**own_device(record.input), "out": record.folder})
    changes = {n: v for n, v in record.input.items() if n != "resume" and "resume" in record.input}
    found: RunSettings = resumed(folder, changes, console.warn)
    # The command line may have trained it on a GPU of another number.
    return found.model_copy(update=own_device({"device": found.device}))


if __name__ == "__main__":
    sys.exit(be_trainee(Path(sys.argv[1])))
