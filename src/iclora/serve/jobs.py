"""Jobs, and why one is refused."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from iclora.errors import IcloraError, RunError
from iclora.serve.engine import Problem

__all__ = ["ENDED", "STATUSES", "Busy", "Full", "Job", "NewJob", "NoSuchJob", "job_of"]

STATUSES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Full(RunError):
    """Too many jobs wait already."""

    def __init__(self, problem: str, retry_after: int) -> None:
        super().__init__(problem, f"Ask again in {retry_after} s.")
        self.retry_after = retry_after


class Busy(RunError):
    """What is asked for does not go with what runs."""


class NoSuchJob(IcloraError):
    """An id that names no job of this client's."""

    def __init__(self, job: str) -> None:
        super().__init__(f'there is no job "{job[:80]}"', "List the jobs; ids are never reused.")


@dataclass(frozen=True)
class NewJob:
    """A job that is to be acknowledged."""

    id: str
    kind: str
    input: dict[str, Any]
    """As the client wrote it, seeds filled in."""
    settings: dict[str, Any]
    """The verb's, with paths of this machine."""
    folder: str
    client: str = ""
    """Name of the key it came with; empty for the server's own token."""
    priority: int = 0
    tag: str = ""
    exact: bool = False
    """True if it must run alone, whatever could share its batch."""
    adapter: str = ""
    """What a worker would have loaded for it."""


@dataclass(frozen=True)
class Job(NewJob):
    """A job of the queue."""

    status: str = "queued"
    place: float = 0.0
    attempt: int = 0
    owner: str = ""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    result: dict[str, Any] | None = None
    error: Problem | None = None
    progress: dict[str, Any] | None = field(default=None, compare=False)


def job_of(row: sqlite3.Row) -> Job:
    """The job of a row of the table `jobs`."""
    values: dict[str, Any] = dict(zip(row.keys(), row, strict=True))
    del values["passed"]
    for name in ("input", "settings", "result", "error"):
        if values[name] is not None:
            # Values are not kept for another time: no other job has this one's words.
            values[name] = from_json(values[name], cache_strings="keys")
    return Job(**values | {"exact": bool(values["exact"])})
