"""The loop over rows: their order, the time that is left, what is kept, what is written."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iclora.files import check_folder
from iclora.jobs.bench.book import Book, Outcome
from iclora.jobs.bench.machine import PACKAGES, describe, installed, scripts
from iclora.jobs.bench.processes import Ending, Runner, last_lines, read_result, where_it_hung
from iclora.jobs.bench.rows import ROWS, Row, Seen, chosen, left_out
from iclora.progress import Console
from iclora.settings import BenchSettings

__all__ = ["OPENING", "Supervisor", "bench"]

OPENING = 120.0
"""Seconds in which a process must have opened the device: one that hangs costs no row's limit."""

_RESERVE = 3.0
"""Seconds that are kept for ending and writing."""

_LOG = 20_000
"""Bytes of each row's log that are kept."""


def bench(
    settings: BenchSettings,
    console: Console,
    command: str,
    child: Sequence[str],
    rows: Sequence[Row] = ROWS,
) -> Book:
    """Measure what this machine can; see `iclora.jobs.bench`.

    Args:
        command: as it was typed, to write down.
        child: what Python is told to run as a row's process.
        rows: what there is; the first looks at the device.
    Returns: what was measured, as it lies in `out`.
    Raises: SettingsError, StorageError; KeyboardInterrupt, what was measured being written.
    """
    began = time.monotonic()
    picked = chosen(settings.rows, rows)
    check_folder(settings.out, "out")
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    about = describe(settings.commit)
    about |= {"command": command, "began": _now(), "minutes": settings.minutes, "card": {}}
    book = Book(folder, about, settings.keep)
    if book.note:
        console.warn(book.note)
    ends = None if settings.minutes is None else began + 60 * settings.minutes
    with tempfile.TemporaryDirectory(prefix="iclora-bench-", ignore_cleanup_errors=True) as work:
        own = Supervisor(book, console, child, rows[0], settings, Path(work), began, ends)
        try:
            own.run(picked)
        finally:
            own.close()
    return book


@dataclass
class Supervisor:
    """Runs rows one after the other."""

    book: Book
    console: Console
    child: Sequence[str]
    card: Row
    """The row that looks at the device, run first whatever was chosen."""
    settings: BenchSettings
    work: Path
    """A folder for what is between."""
    began: float
    ends: float | None
    """On the monotonic clock; None for no limit."""
    running: Runner | None = None
    ready: Runner | None = None
    """The next row's process, importing."""
    seen: Seen = field(default_factory=lambda: Seen(False))
    silent: int = 0
    """Processes in a row that could not open the card."""
    started: int = 0

    def run(self, rows: Sequence[Row]) -> None:
        """Look at the device, then run rows in their order."""
        self._look()
        rest = [row for row in rows if row != self.card]
        for number, row in enumerate(rest):
            if row.name in self.book.outcomes:
                self.console.say(f"{row.name}: kept")
                continue
            why, status = left_out(row, self.seen), "left out"
            if why is None:
                why, status = self._not_begun(row), "not begun"
            if why is None:
                self._one(row, more=number + 1 < len(rest))
            else:
                self._add(Outcome(row.name, row.about, status, why=why))  # type: ignore[arg-type]

    def close(self) -> None:
        """End every process that is left, and write down when."""
        for runner in (self.running, self.ready):
            if runner is not None:
                runner.end()
        self._write()

    # -- what is there --------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at the device, and set what this machine has."""
        if self.card.name not in self.book.outcomes:
            self._one(self.card, more=True)
        found: dict[str, Any] = self.book.about.get("card") or {}
        packages = frozenset(PACKAGES)
        there = bool(found.get("cuda"))
        self.seen = Seen(
            there,
            float(found.get("free GB") or 0),
            shutil.disk_usage(self.work).free / 1e9,
            installed(packages),
            scripts(),
            *(() if there else (self._no_card(found),)),
        )
        if there:
            self.silent = 0

    def _no_card(self, found: dict[str, Any]) -> str:
        if self.settings.device == "cpu":
            return "`device` is cpu"
        if not self.book.about["cards"]:
            return "this machine has none that its driver shows"
        if found:
            return f"torch {self.book.about.get('torch')} here cannot use it"
        return "it could not be opened"

    def _not_begun(self, row: Row) -> str | None:
        if self.silent >= 2 and row.on != "cpu":
            return "the card no longer answers: two processes could not open it"
        if self.ends is not None:
            left = self.ends - time.monotonic() - _RESERVE
            if left < row.takes:
                return f"{max(left, 0):.0f} s were left, and it takes about {row.takes}"
        return None

    # -- one row --------------------------------------------------------------------------------

    def _one(self, row: Row, more: bool) -> None:
        """Run one row's process and take down how it ended."""
        began = time.monotonic()
        limit = row.limit * self.settings.patience
        until = math.inf
        if self.ends is not None:
            # The first row may be begun with no time left.
            until = max(self.ends - _RESERVE, began + 1)
            limit = min(limit, until - began)
        self.console.say(f"{row.name}: {row.about} (at most {limit:.0f} s)")
        result, folder = self.work / f"{row.name}.json", self.work / row.name
        folder.mkdir()
        runner = self.running = self.ready or self._start()
        self.ready = None
        device = "cuda" if self.seen.card else "cpu"
        if row == self.card and self.settings.device != "cpu":
            device = "auto"  # It finds out.
        runner.give(
            {
                "call": row.call,
                "told": dict(row.told),
                "device": device,
                "folder": str(folder),
                "result": str(result),
                "parent": os.getpid(),
            }
        )
        if more and _spare_cores():
            # It imports while this row measures, on a core that this one leaves idle.
            self.ready = self._start()
        ending = runner.watch(result, limit, OPENING * self.settings.patience, until)
        self.running = None
        outcome = self._outcome(row, runner, read_result(result), ending, limit)
        outcome.seconds = round(time.monotonic() - began, 1)
        self._keep_log(row, runner)
        shutil.rmtree(folder, ignore_errors=True)
        self._add(outcome)

    def _outcome(
        self, row: Row, runner: Runner, said: dict[str, Any], ending: Ending, limit: float
    ) -> Outcome:
        outcome = Outcome(row.name, row.about, "measured", figures=said.get("figures", []))
        if said.get("machine"):
            self.book.about["card"] = said["machine"]
        opened = said.get("stage") in ("running", "done")
        self.silent = 0 if opened else self.silent + 1
        tail = last_lines(runner.log)
        if ending == "ended" and said.get("stage") == "done" and runner.process.returncode == 0:
            return outcome
        outcome.status = "failed"
        if ending in ("late", "unopened", "unkillable"):
            outcome.status = "ended"
            outcome.why = f"it was ended after {limit:.0f} s"
            if ending == "unopened":
                patience = OPENING * self.settings.patience
                outcome.why = f"it did not open the device in {patience:.0f} s"
            if ending == "unkillable":
                outcome.why += "; the system could not end its process, which may hold the card"
            outcome.log = where_it_hung(runner.log)
        elif said.get("error"):
            outcome.why = str(said["error"])
        else:
            memory = " (the system may have had no more memory)"
            by = runner.ended_by
            outcome.why = f"its process ended by {by}{memory * (by == 'SIGKILL')}"
            outcome.log = tail
        return outcome

    def _start(self) -> Runner:
        self.started += 1
        device = self.settings.device
        return Runner.start(self.work / f"process-{self.started}.log", self.child, device)

    def _keep_log(self, row: Row, runner: Runner) -> None:
        """Add the end of a process's log to bench.log."""
        with suppress(OSError), (self.book.folder / "bench.log").open("ab") as log:
            with runner.log.open("rb") as own:
                own.seek(max(0, own.seek(0, os.SEEK_END) - _LOG))
                log.write(f"== {row.name}\n".encode() + own.read() + b"\n")
            runner.log.unlink()

    def _add(self, outcome: Outcome) -> None:
        outcome.date = _now()
        self.book.about["took"] = round(time.monotonic() - self.began, 1)
        self.book.add(outcome)
        state = outcome.status + (f": {outcome.why}" if outcome.why else "")
        if outcome.status in ("measured", "failed", "ended"):
            state = f"{outcome.seconds:.0f} s, {state}"
        self.console.say(f"{outcome.row}: {state}")

    def _write(self) -> None:
        self.book.about["took"] = round(time.monotonic() - self.began, 1)
        self.book.write()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _spare_cores() -> bool:
    return (os.cpu_count() or 1) >= 4
