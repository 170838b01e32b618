"""Threads that take jobs from the queue and hand them to the engine, one for each worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iclora.errors import IcloraError
from iclora.serve.catalog import Catalog
from iclora.serve.engine import Engine, Order, Outcome, Problem, Report, WorkerDied
from iclora.serve.events import Bus
from iclora.serve.index import Sets
from iclora.serve.jobs import Job
from iclora.serve.metrics import Metrics
from iclora.serve.queue import Queue

__all__ = ["Dispatcher"]

_log = logging.getLogger("iclora.serve")
_MOST_NOTES = 100
_MAKING = frozenset({"generate", "complete", "reroll"})
"""Kinds whose job has succeeded only if there are sets in its folder."""


class Dispatcher:
    """Brings jobs to workers, and their reports and ends back.

    Args:
        metrics: count what workers do.
    """

    def __init__(
        self, queue: Queue, engine: Engine, bus: Bus, sets: Sets, catalog: Catalog, metrics: Metrics
    ) -> None:
        self._queue, self._engine, self._bus, self._sets = queue, engine, bus, sets
        self._catalog, self._metrics = catalog, metrics
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._running: dict[str, str] = {}
        """Worker by job."""
        self._ends = threading.Lock()
        """Held while a job leaves `_running`, or is cancelled there."""
        self._notes: dict[str, list[str]] = {}
        self._cancelled: set[str] = set()

    def start(self) -> None:
        """Start the engine, take back what a process before was running, begin to work."""
        runs = self._queue.take_over(self._engine.workers)
        self._queue.recover()
        self._engine.start()
        for worker in self._engine.workers:
            own = [job for name, job in runs if name == worker]
            thread = threading.Thread(target=self._serve, args=(worker, own), name=f"jobs-{worker}")
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the workers; what they were doing is queued again as if it had not been tried."""
        self._stopping.set()
        with self._queue.changed:
            self._queue.changed.notify_all()
        self._engine.stop()
        for thread in self._threads:
            thread.join(timeout=60)

    def cancel(self, job: str, *, now: bool = False) -> None:
        """Tell the worker that has a job, if one has it, to end it.

        Args:
            now: end a training run without a checkpoint.
        """
        with self._ends:  # One that has ended may be tried again, and is not cancelled then.
            worker = self._running.get(job)
            if worker is not None:
                self._cancelled.add(job)
        if worker is not None:
            self._engine.cancel(worker, job)
            if now:
                self._engine.end_run(worker, job)

    def _serve(self, worker: str, runs: Sequence[Job]) -> None:
        for run in runs:  # They are at work, whatever this worker has loaded.
            self._run(worker, [run], begun=True)
        while not self._stopping.is_set():
            # A job is not given to a worker that may be gone for long, as with its machine.
            able = self._engine.able(worker)
            try:
                job = self._queue.claim(worker, self._engine.loaded(worker)) if able else None
            except IcloraError as error:  # A full disk, which somebody may make room on.
                _log.error("no job can be claimed: %s", error)
                self._stopping.wait(5)
                continue
            if job is not None:
                self._run(worker, [job, *self._beside(worker, job)])
                continue
            with self._queue.changed:
                if not self._stopping.is_set():
                    # Loading is asked about again; a job wakes this up at once.
                    self._queue.changed.wait(1.0 if able else 0.05)

    def _beside(self, worker: str, job: Job) -> list[Job]:
        most = self._engine.together - 1
        try:
            return self._queue.claim_beside(job, worker, most) if most else []
        except IcloraError as error:  # A full disk: the job runs alone.
            _log.error("no further job can be claimed: %s", error)
            return []

    def _run(self, worker: str, jobs: Sequence[Job], *, begun: bool = False) -> None:
        """Have a job done, or several in one batch, and write down how each ended.

        Args:
            begun: another process has begun it, so it is followed even if it was cancelled since.
        """
        open_ = {job.id: job for job in jobs}
        self._running |= dict.fromkeys(open_, worker)
        try:
            for job in jobs:
                cancelled = self._queue.get(job.id).status == "cancelling"
                if cancelled and begun:
                    self._cancelled.add(job.id)
                elif cancelled:
                    self._finish(open_.pop(job.id), Outcome("cancelled"))
            if open_:
                outcome = self._do(worker, list(open_.values()))
                for job, own in zip(list(open_.values()), outcome.all, strict=True):
                    self._finish(open_.pop(job.id), own)
        except WorkerDied as died:
            self._died(worker, list(open_.values()), died.signal)
        except Exception as error:
            for job in open_.values():
                _log.exception("job %s failed", job.id)
                self._finish(job, Outcome("failed", error=_problem(error)))
        finally:
            for job in jobs:
                with self._ends:
                    self._running.pop(job.id, None)
                    self._cancelled.discard(job.id)
                self._notes.pop(job.id, None)
                self._metrics.forget(job.id)
                self._bus.forget(job.id)

    def _do(self, worker: str, jobs: Sequence[Job]) -> Outcome:
        """Have the engine run jobs. Raises: WorkerDied."""
        warm = self._engine.loaded(worker)
        if warm is not None and warm != jobs[0].adapter:
            self._metrics.swaps.inc()
        if jobs[0].kind in _MAKING:
            self._metrics.batch.observe(len(jobs))
        first, *others = [Order(j.id, j.kind, j.settings, j.folder, j.attempt) for j in jobs]
        of = {job.id: job for job in jobs}

        def report(said: Report) -> None:
            self._report(worker, of[said.pop("job", first.job)], said)

        return self._engine.run(worker, replace(first, beside=tuple(others)), report)

    def _died(self, worker: str, jobs: Sequence[Job], signal: str) -> None:
        """The worker has ended with these jobs: they are queued again."""
        if self._stopping.is_set():
            for job in jobs:
                if job.kind != "train":  # A run goes on, and the next server with it.
                    self._ending(self._queue.release, job)
            return
        self._metrics.restarts.inc()
        for job in jobs:
            _log.warning("job %s: worker %s was ended by %s", job.id, worker, signal)
            self._ending(self._queue.give_back, job, signal)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        result = outcome.result
        if outcome.status == "succeeded":
            made = self._sets.made_by(Path(job.folder))
            told = {"notes": self._notes.get(job.id, []), **(outcome.result or {})}
            result = {**told, "sets": made}
            if job.kind in _MAKING and not made:
                outcome = Outcome("failed", error=_NOTHING)
        folder, catalog = Path(job.folder), self._catalog
        result = _without_places(result, folder, catalog)
        error = _without_places(outcome.error, folder, catalog)
        done = Outcome(outcome.status, result, error)
        ended = self._ending(self._queue.finish, job, done)
        if ended:
            for made_set in (ended.result or {}).get("sets", ()):
                self._bus.tell("set", {"id": made_set, "job": job.id}, job.client, job.id)

    def _ending(self, how: Callable[..., Job | None], *values: Any) -> Job | None:
        """Write an end down; on a full disk, wait for room rather than lose it."""
        while True:
            try:
                return how(*values)
            except IcloraError as error:
                _log.error("the end of a job cannot be written: %s", error)
                if self._stopping.wait(2):
                    return None

    def _report(self, worker: str, job: Job, report: Report) -> None:
        kind, folder, catalog = report.get("type"), Path(job.folder), self._catalog
        if job.id in self._cancelled:  # It may not have had the job when it was told.
            self._engine.cancel(worker, job.id)
        told = _without_places({k: v for k, v in report.items() if k != "type"}, folder, catalog)
        if kind == "note" and len(notes := self._notes.setdefault(job.id, [])) < _MOST_NOTES:
            notes.append(str(told.get("text")))
        if kind == "progress":
            self._metrics.stepped(job.id, report)
        if kind in ("progress", "preview", "note"):
            self._bus.tell(kind, {**told, "job": job.id, "at": time.time()}, job.client, job.id)


def _without_places(value: Any, folder: Path, catalog: Catalog) -> Any:
    """What a worker says, with ids and names in place of where things lie on this machine.

    Args:
        folder: the job's: files in it go by their names there, itself by its id.
    """
    if isinstance(value, dict):
        return {key: _without_places(item, folder, catalog) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(item, folder, catalog) for item in value]
    if not isinstance(value, str):
        return value
    if value == str(folder) and folder.is_relative_to(catalog.folder):
        return "~".join(folder.relative_to(catalog.folder).parts)
    return catalog.hide(value.replace(f"{folder}/", ""))


_NOTHING: Problem = {
    "code": "InternalError",
    "problem": "the worker said that it was done, and there is no set in the job's folder",
    "advice": "Look into the server's log, then retry the job.",
    "setting": None,
}


def _problem(error: Exception) -> Problem:
    if isinstance(error, IcloraError):
        return {
            "code": type(error).__name__,
            "problem": error.problem,
            "advice": error.advice,
            "setting": error.setting,
        }
    return {
        "code": "InternalError",
        "problem": "something went wrong that should not",
        "advice": "Look for the job's id in the server's log, and report it.",
        "setting": None,
    }
