"""Training as a process of its own, which goes on when the server or a worker ends.

What is said of a run is read from its files and its process, never from a wish: it is stopped when
it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from iclora.errors import IcloraError, RunError
from iclora.serve.children import environment_of
from iclora.serve.engine import Order, Outcome, Report
from iclora.serve.records import Record, place_of
from iclora.serve.runs import is_written, state_of

__all__ = ["PATIENCE", "Left", "StartTrainee", "Training", "at_work", "find", "start_trainee"]

PATIENCE = 600.0
"""Seconds that a run has to end after its current step: a checkpoint of a large base takes long."""

StartTrainee = Callable[[Path, Mapping[str, str], Path], int]
"""Starts the process of a record, with an environment and a log. Returns: its number."""

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes that this one started and must ask for the end of, whoever follows them."""


class Left(Exception):
    """Whoever followed a run goes, and the run stays."""


def start_trainee(place: Path, environment: Mapping[str, str], log: Path) -> int:
    """Start `iclora.serve.trainee` in a session of its own."""
    with log.open("ab") as said:
        process = subprocess.Popen(  # noqa: S603 (our own module and a path of ours)
            [sys.executable, "-P", "-m", "iclora.serve.trainee", str(place)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=dict(environment),
            start_new_session=True,
        )
    _children[process.pid] = process
    return process.pid


def find(logs: Path, folder: str) -> Record | None:
    """The record of a run, if a server has one."""
    place = place_of(logs, folder)
    try:
        return Record.read(place) if place.is_file() else None
    except RunError:
        return None


def at_work(logs: Path, device: str) -> bool:
    """True if a run that a server started computes on a device."""
    for place in logs.glob("train-*.json"):
        with suppress(RunError):
            record = Record.read(place) if place.name.count(".") == 1 else None
            if record and record.device == device and record.lives:
                return True
    return False


class Training:
    """One run that is trained for an order: started, or found at work and followed.

    Args:
        logs: folder of records.
        device: where it computes.
        patience: seconds to end after the current step once it is told to stop.
    """

    def __init__(
        self,
        logs: Path,
        order: Order,
        device: str,
        patience: float = PATIENCE,
        start: StartTrainee = start_trainee,
    ) -> None:
        self._order, self._patience, self._start = order, patience, start
        self._logs, self._device = logs, device
        self._lock = threading.Lock()
        self._record: Record | None = None
        self._asked: float | None = None
        self._leaving = threading.Event()

    @property
    def pid(self) -> int | None:
        """The number of its process."""
        return self._record.pid if self._record else None

    def follow(self, report: Callable[[Report], None]) -> Outcome:
        """Start the run if it is not at work, and report until its process has ended.

        Returns: cancelled with where it stands if it was stopped.
        Raises: Left once `leave` was called; RunError if somebody else trains into the folder.
        """
        with self._lock:
            if (past := self._past()) is not None:
                return past
            record = self._record = self._found() or self._begun()
            if self._asked is not None:
                self._signal(signal.SIGTERM)
        seen = _Seen(record, report)
        while not self.ended(record):
            if self._leaving.wait(0.1):
                raise Left
            seen.look()
            if self._asked is not None and time.monotonic() - self._asked > self._patience:
                self.stop(now=True)
        # The last threads of a process that was killed hold its files a moment longer.
        until = time.monotonic() + 10
        while is_written(Path(record.folder)) and time.monotonic() < until:
            time.sleep(0.02)
        seen.look()
        return self._ended(record)

    def stop(self, *, now: bool = False) -> None:
        """Tell it to end after its current step with a checkpoint, or end it now.

        What was trained since the last checkpoint is lost if it ends now.
        """
        with self._lock:
            first, self._asked = self._asked is None, self._asked or time.monotonic()
            if now:
                self._signal(signal.SIGKILL)
            elif first:
                self._signal(signal.SIGTERM)

    def leave(self) -> None:
        """Stop following; the run goes on."""
        self._leaving.set()

    # -- its process ------------------------------------------------------------------------------

    def _past(self) -> Outcome | None:
        """How it ended while nobody followed it."""
        record = find(self._logs, self._order.folder)
        if not record or record.lives or record.job != self._order.job:
            return None
        return _in_its_words(record)

    def _found(self) -> Record | None:
        record = find(self._logs, self._order.folder)
        if record and record.lives:
            return record
        if is_written(Path(self._order.folder)):
            raise RunError(
                f"another process trains into {self._order.folder}", "Stop it where it was started."
            )
        return None

    def _begun(self) -> Record:
        order = self._order
        self._logs.mkdir(parents=True, exist_ok=True)
        record = Record.of(self._logs, order, self._device)
        for old in (record.files.progress, record.files.notes, record.files.outcome):
            old.unlink(missing_ok=True)
        record.write()
        trackers = frozenset({"WANDB_API_KEY", "CLEARML_API_SECRET_KEY", "MLFLOW_TRACKING_TOKEN"})
        environment = environment_of(self._device, keep=trackers)
        pid = self._start(Path(record.place), environment, record.files.log)
        record = record.at(pid)
        record.write()
        return record

    @staticmethod
    def ended(record: Record) -> bool:
        """True once its process is gone; asks for its end if it is a child of this one."""
        process = _children.get(record.pid)
        if process is not None and process.poll() is not None:
            del _children[record.pid]
        return process is None and not record.lives

    def _signal(self, number: signal.Signals) -> None:
        record = self._record
        if record and record.lives:
            # A kill is for all that it started itself; it sees to them when it is told to stop.
            send = os.killpg if number == signal.SIGKILL else os.kill
            with suppress(OSError):
                send(record.pid, number)

    def _ended(self, record: Record) -> Outcome:
        """How it ended: in its own words, else as its folder says."""
        if (said := _in_its_words(record)) is not None:
            return said
        state = state_of(Path(record.folder))
        if self._asked is not None:
            return Outcome("cancelled", {"step": state["step"]})
        raise _Killed(record, int(state["step"]))


def _in_its_words(record: Record) -> Outcome | None:
    with suppress(OSError, ValueError, TypeError):
        return Outcome(**json.loads(record.files.outcome.read_bytes()))
    return None


class _Killed(IcloraError):
    """A run whose process ended without a word."""

    def __init__(self, record: Record, step: int) -> None:
        super().__init__(
            f"the process that trained was killed after step {step}; its log is {record.files.log}",
            "Look for too little memory, and resume the run.",
        )


class _Seen:
    """What was reported of a run already."""

    def __init__(self, record: Record, report: Callable[[Report], None]) -> None:
        self._record, self._report = record, report
        self._progress: dict[str, Any] | None = None
        self._notes = 0
        self._previews = self._drawn()

    def _drawn(self) -> set[Path]:
        """The grids; the pictures in them also lie there one by one."""
        found = Path(self._record.folder, "previews").glob("step-*.png")
        return {path for path in found if path.stem.count("-") == 1}

    def look(self) -> None:
        """Report what is new."""
        files = self._record.files
        with suppress(OSError, ValueError):
            said = json.loads(files.progress.read_bytes())
            if said != self._progress:
                self._progress = said
                self._report(said)
        with suppress(OSError, ValueError):
            lines = files.notes.read_bytes().splitlines()
            for line in lines[self._notes :]:
                self._report(json.loads(line))
                self._notes += 1
        for picture in sorted(self._drawn() - self._previews):
            self._previews.add(picture)
            self._report({"type": "preview", "path": str(picture)})
