"""What is known on disk of processes that train.

LOGS/train-ID.json             what it is told, its process and device
LOGS/train-ID.log              what it and its libraries print
LOGS/train-ID.progress.json    how far it is
LOGS/train-ID.notes.jsonl      notes, one a line
LOGS/train-ID.outcome.json     how it ended, in its own words; absent if it was killed

A process is known by its number and the time of its start, for numbers come again.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from iclora.errors import RunError
from iclora.files import digest, write_text
from iclora.files.documents import read_json
from iclora.serve.engine import Order

__all__ = ["Files", "Record", "alive", "place_of", "started_at"]


@dataclass(frozen=True)
class Files:
    """The files beside a record."""

    record: Path

    def _named(self, end: str) -> Path:
        return self.record.with_name(f"{self.record.stem}.{end}")

    @property
    def log(self) -> Path:
        return self._named("log")

    @property
    def progress(self) -> Path:
        return self._named("progress.json")

    @property
    def notes(self) -> Path:
        return self._named("notes.jsonl")

    @property
    def outcome(self) -> Path:
        return self._named("outcome.json")


@dataclass(frozen=True)
class Record:
    """A process that trains."""

    place: str
    job: str
    """What it was started for."""
    folder: str
    """The run's, absolute."""
    input: dict[str, Any]
    """The verb's settings."""
    device: str
    pid: int = 0
    """0 before it is started."""
    started: str = ""

    @classmethod
    def of(cls, logs: Path, order: Order, device: str) -> Record:
        """The record of an order's run, not written yet."""
        place = place_of(logs, order.folder)
        return cls(str(place), order.job, order.folder, order.input, device)

    @classmethod
    def read(cls, place: Path) -> Record:
        """Raises: RunError if it is damaged."""
        try:
            return cls(**read_json(place, RunError, "record"))
        except TypeError as error:
            raise RunError(f"{place} is no record of a run", "Start the run again.") from error

    @property
    def files(self) -> Files:
        return Files(Path(self.place))

    def write(self) -> None:
        write_text(Path(self.place), json.dumps(asdict(self)))

    def at(self, pid: int) -> Record:
        """The same with its process."""
        return replace(self, pid=pid, started=started_at(pid) or "")

    @property
    def lives(self) -> bool:
        """True while its process is there."""
        return self.pid > 0 and alive(self.pid, self.started)


def place_of(logs: Path, folder: str) -> Path:
    """Where the record of a run lies."""
    return logs / f"train-{digest(str(Path(folder).resolve()))[:16]}.json"


def alive(pid: int, started: str) -> bool:
    """True if the process of this number is the one that was started then."""
    return bool(started) and started_at(pid) == started


def started_at(pid: int) -> str | None:
    """When a process was started, as the system says it; None if it has ended."""
    with suppress(OSError, ValueError, IndexError):
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # Behind the name, which may hold anything: the state, and 19 fields on the time.
        fields = said.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"{fields[19]} since boot"
    if Path("/proc/self/stat").exists():
        return None
    try:  # macOS
        asked = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        found = subprocess.run(  # noqa: S603 (a number of ours)
            asked, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    state, _, when = found.stdout.strip().partition(" ")
    return when.strip() if when and not state.startswith("Z") else None
