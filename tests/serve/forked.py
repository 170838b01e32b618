"""Workers of `LocalEngine` that are forked where torch is imported already."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

from iclora.serve.children import Child
from iclora.serve.worker import be_worker
from tests import processes


def start(environment: dict[str, str], log: Path) -> Child:
    """Start a worker as `start_worker` does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    theirs, commands = multiprocessing.Pipe(duplex=False)
    answers, said = multiprocessing.Pipe(duplex=False)
    process = processes.start(_work, log.parent, log, environment, theirs, said)
    for end in (theirs, said):
        end.close()

    def wait() -> int:
        process.join()
        return process.exitcode

    opened = (
        os.fdopen(os.dup(end.fileno()), way) for end, way in ((commands, "wb"), (answers, "rb"))
    )
    found = Child(process.pid, *opened, wait)
    for end in (commands, answers):
        end.close()
    return found


def _work(commands, answers) -> int:
    return be_worker(os.fdopen(commands.fileno(), "rb"), os.fdopen(answers.fileno(), "wb"))
