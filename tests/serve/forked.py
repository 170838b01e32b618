"""Workers of `LocalEngine` that are forked where torch is imported already."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from iclora.serve.children import Child
from iclora.serve.worker import be_worker
from tests import processes


class Heard:
    """The commands of a worker, of which a test hears before the worker does."""

    def __init__(self, child: Child, hear: Callable[[dict[str, Any]], None]) -> None:
        self._write, self._hear = child.commands.write, hear
        self.flush, self.close = child.commands.flush, child.commands.close

    def write(self, line: bytes) -> None:
        self._hear(json.loads(line))
        self._write(line)


def heard(child: Child, hear: Callable[[dict[str, Any]], None]) -> Child:
    """A worker; `hear` is called with each command before it is handed on."""
    return replace(child, commands=Heard(child, hear))


def start_held(environment: dict[str, str], log: Path) -> Child:
    """Start a worker that stands still, once it paints, while a file "hold" is beside its log."""
    return start(environment, log, _work_held)


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


def stand_still(stage: str) -> None:
    """Let jobs of this process stand still in their work of a name while there is a file "hold".

    What a test does meanwhile comes before their end, however late it does it.
    """
    from iclora.serve.worker import JobConsole

    told = JobConsole.progressed

    def held(self, event):
        told(self, event)
        while event.what == stage and Path("hold").exists():
            time.sleep(0.01)

    JobConsole.progressed = held


def _work_held(commands, answers) -> int:
    stand_still("painting")
    return be_one(commands, answers)


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
