"""Workers of `LocalEngine` that are forked where torch is imported already."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

from iclora.serve.children import Child
from iclora.serve.worker import be_worker
from tests import processes


def start_late(environment: dict[str, str], log: Path) -> Child:
    """Start a worker that waits for a file "go" beside its log before it warms up."""
    return start(environment, log, _work_late)


def start(environment: dict[str, str], log: Path, work: Callable[..., int] | None = None) -> Child:
    """Start a worker as `start_worker` does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    theirs, commands = multiprocessing.Pipe(duplex=False)
    answers, said = multiprocessing.Pipe(duplex=False)
    process = processes.start(work or be_one, log.parent, log, environment, theirs, said)
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


def be_one(commands, answers) -> int:
    """Be a worker with these ends of its pipes."""
    return be_worker(os.fdopen(commands.fileno(), "rb"), os.fdopen(answers.fileno(), "wb"))


def _work_late(commands, answers) -> int:
    from iclora.serve.warm import Warm

    paint = Warm.paint_once

    def late(*how):
        while not Path("go").exists():
            time.sleep(0.01)
        yield from paint(*how)
        Path("painted").touch()

    Warm.paint_once = late
    return be_one(commands, answers)
