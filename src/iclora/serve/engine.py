"""What runs jobs, as the web process sees it.

The web process never imports torch. It knows workers by their names and hands each one order at a
time; orders, reports and outcomes are JSON, since they cross to another process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from iclora.errors import IcloraError
from iclora.settings import split_strength

__all__ = ["Engine", "Fit", "Order", "Outcome", "Problem", "Report", "WorkerDied", "adapters_of"]

Report = dict[str, Any]
"""{"type": "progress", "stage", "done", "total", "eta_s"}, {"type": "preview", "path"} or
{"type": "note", "text"}; of a job that shares a batch with "job"."""

Problem = dict[str, str | None]
"""{"code", "problem", "advice", "setting"}: the class of an IcloraError and what it says."""


@dataclass(frozen=True)
class Fit:
    """If a base takes an adapter."""

    known: bool
    """False if nobody could tell in time."""
    problem: Problem | None = None
    """Why it does not."""


@dataclass(frozen=True)
class Order:
    """A job, handed to a worker."""

    job: str
    kind: str
    """A verb, such as "generate"."""
    input: dict[str, Any]
    """The verb's settings: paths are the server's own, seeds are fixed. What is not among them has
    its default, since some settings mean something else once they are set."""
    folder: str
    """The verb's `out`, absolute, for this job alone: its sets become FOLDER/0001 and on. It was
    fixed when the job was acknowledged, so a second attempt finds a finished set instead of making
    another."""
    attempt: int
    """From 1."""
    beside: tuple[Order, ...] = ()
    """Further jobs that are to share its batch."""

    @property
    def all(self) -> tuple[Order, ...]:
        """Every job of the batch, this one first."""
        return (self, *self.beside)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Order:
        """An order from its JSON."""
        return cls(**{**told, "beside": tuple(map(cls.read, told.get("beside", ())))})


def adapters_of(settings: Mapping[str, Any]) -> str:
    """The adapters that a job needs, as one word; their strengths do not matter.

    Args:
        settings: an order's `input`.
    """
    named = settings.get("adapter") or ()
    files = [named] if isinstance(named, str) else named
    return "+".join(split_strength(file)[0] for file in files)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: Literal["succeeded", "failed", "cancelled"]
    result: dict[str, Any] | None = None
    error: Problem | None = None
    beside: tuple[Outcome, ...] = ()
    """Those of the jobs beside it, in the order's order."""

    @property
    def all(self) -> tuple[Outcome, ...]:
        """Those of every job of the batch, this one first."""
        return (self, *self.beside)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Outcome:
        """An outcome from its JSON."""
        return cls(**{**told, "beside": tuple(map(cls.read, told.get("beside", ())))})


class WorkerDied(IcloraError):
    """A worker ended while it had a job; the job gets another attempt.

    Args:
        signal: what ended it, such as "SIGKILL", or "exit status 1".
    """

    def __init__(self, signal: str) -> None:
        super().__init__(
            f"the worker was ended by {signal}",
            "The job is tried again; if it ends so each time, look for too little memory.",
        )
        self.signal = signal


class Engine(Protocol):
    """Workers that each hold a base and take one job at a time."""

    workers: Sequence[str]
    """Their names."""
    together: int
    """Most jobs of one order."""

    def start(self) -> None:
        """Start every worker; they load their base meanwhile."""

    def ready(self) -> str | None:
        """None once every worker holds its base, else why not yet."""

    def able(self, worker: str) -> bool:
        """True if a worker takes a job now: it runs and holds its base."""

    def loaded(self, worker: str) -> str | None:
        """The adapters that are warm in a worker, as `adapters_of` says them; None before a job."""

    def fit(self, base: str, adapter: str) -> Fit:
        """Ask a worker if a base takes an adapter's file; it may be at work meanwhile."""

    def run(self, worker: str, order: Order, report: Callable[[Report], None]) -> Outcome:
        """Run one job, and those beside it, and wait for the end.

        Args:
            report: called with what it does, from this thread or another.
        Raises: WorkerDied if the worker ended meanwhile.
        """

    def cancel(self, worker: str, job: str) -> None:
        """End a job between two steps; after 30 s the worker is ended and started again.

        One that shares a batch ends with it, unless all of the batch are cancelled.
        """

    def end_run(self, worker: str, job: str) -> None:
        """End a training run now; what was trained since its last checkpoint is lost."""

    def stop(self) -> None:
        """End every worker; training runs go on."""
