"""What keeps one worker running: it starts the process, hears it, and starts it again."""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from iclora.errors import IcloraError
from iclora.serve.children import Child, ended_by
from iclora.serve.engine import Fit, Order, Outcome, Report, WorkerDied, adapters_of
from iclora.serve.training import Left, StartTrainee, Training, at_work

__all__ = ["How", "Keeper", "Start", "told"]

Start = Callable[[dict[str, str], Path], Child]
"""Starts a worker with an environment and a log."""

_LONGEST = 30.0
"""Most seconds between the end of a worker and its next start."""
_GONE = 600.0
"""Seconds that a job waits for a worker which went away after it was given the job."""
_TELLS = 5.0
"""Seconds that a worker has to tell if an adapter fits; a client waits for it."""
_LOG = 10 * 2**20
"""Bytes of a log that is begun again."""


@dataclass(frozen=True)
class How:
    """What a worker is started with."""

    device: str
    first: dict[str, Any]
    """The first line it is told."""
    environment: dict[str, str]
    log: Path
    patience: float
    start: Start
    start_training: StartTrainee


@dataclass
class _Running:
    """A job that a worker was given, with those beside it."""

    order: Order
    said: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    cancelled: set[str] = field(default_factory=set)
    deadline: threading.Timer | None = None

    @property
    def left(self) -> set[str]:
        """Its jobs that were not cancelled."""
        return {order.job for order in self.order.all} - self.cancelled


class Keeper:
    """Keeps one worker running, in a thread of its own."""

    def __init__(self, how: How) -> None:
        self.child: Child | None = None
        self.loaded: str | None = None
        self.failures = 0
        """Ends in a row before it was ready."""
        self._how = how
        self._problem: str | None = "is starting"
        self._state = threading.Condition()
        self._running: _Running | None = None
        self._training: Training | None = None
        self._trains = ""
        """The job of the run that is followed."""
        self._up = False
        self._by: str | None = None
        """What ended it, as it was said."""
        self._leaving = False
        self._asked: dict[str, queue.Queue[Fit]] = {}
        """Who waits to hear if an adapter fits, by what was asked."""
        self._alone = threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        """Begin to keep it."""
        self._thread.start()

    def not_ready(self) -> str | None:
        """None once it holds its base, else why not yet."""
        return self._problem

    def able(self) -> bool:
        """True if it takes a job now: it runs, and holds what it should."""
        with self._state:
            return self._up and self._problem is None

    def wait(self) -> bool:
        """Wait until it runs. Returns: False if it never will again."""
        with self._state:
            self._state.wait_for(lambda: self._up or self._leaving)
            return not self._leaving

    # -- the process ------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Start the process, listen until it ends, and start it again."""
        while not self._leaving:
            try:
                ended = self._live()
            except (OSError, IcloraError) as error:
                ended = f"not being startable: {error}"
            with self._state:
                self.failures = 0 if self._up else self.failures + 1
                self._up, self.child, self.loaded = False, None, None
                self._problem = f"was ended by {ended}; its log is {self._how.log}"
                if self._running:
                    self._running.said.put({"say": "died", "by": ended})
                for asked in self._asked.values():
                    asked.put(Fit(known=False))
                if self.failures:
                    # Nothing is gained by a process that ends at once, again and again.
                    pause = min(_LONGEST, 0.1 * 2 ** min(self.failures, 9))
                    self._state.wait_for(lambda: self._leaving, pause)

    def _live(self) -> str:
        """One process from its start to its end. Returns: what ended it."""
        with suppress(OSError):
            if self._how.log.stat().st_size > _LOG:
                self._how.log.unlink()
        child = self._how.start(self._how.environment, self._how.log)
        with self._state:
            self.child, self._by = child, None
            self._state.notify_all()
            leaving = self._leaving
        if leaving:
            _end(child)
        # A run may still be at work there, and need the memory.
        busy = self._training is not None or at_work(self._how.log.parent, self._how.device)
        self._send(child, {**self._how.first, "base": None} if busy else self._how.first)
        with child.answers:
            for line in child.answers:
                self._hear(told(line))
        status = child.wait()
        with suppress(OSError):
            child.commands.close()
        return self._by or ended_by(status)

    def _hear(self, said: dict[str, Any]) -> None:
        with self._state:
            if said["say"] == "fit":
                if asked := self._asked.get(said["number"]):
                    asked.put(Fit(said["known"], said["problem"]))
            elif said["say"] == "ready":
                self._up, self._problem, self.failures = True, said["problem"], 0
                self._state.notify_all()
            elif said["say"] == "waits":
                self._problem = said["why"]
            elif said["say"] == "ended":
                self._by = said["by"]
            elif self._running and said.get("job") == self._running.order.job:
                if said["say"] == "outcome":
                    # Here, not where the job is followed: another process may be up by then.
                    self.loaded = adapters_of(self._running.order.input)
                    if not said["sound"]:  # It ends itself; the next job waits for another.
                        self._up, self._problem = False, "is starting again after a fault"
                self._running.said.put(said)

    @staticmethod
    def _send(child: Child, what: dict[str, Any]) -> None:
        # If it has ended, whoever listens to it hears so.
        with suppress(OSError, ValueError):
            child.commands.write(json.dumps(what).encode() + b"\n")
            child.commands.flush()

    # -- jobs -------------------------------------------------------------------------------------

    def run(self, order: Order, report: Callable[[Report], None]) -> Outcome:
        if order.kind == "train":
            return self._train(order, report)
        running = _Running(order)
        with self._alone:
            with self._state:
                self._state.wait_for(lambda: self._up or self._leaving, _GONE)
                if self._leaving:
                    raise WorkerDied("the server's end")
                if not self._up or not self.child:
                    raise WorkerDied(f"not being there: it {self._problem}")
                self._running = running
                child = self.child
            self._send(child, {"do": "run", "order": asdict(order)})
            try:
                return self._follow(running, report)
            finally:
                with self._state:
                    self._running = None
                    if running.deadline:
                        running.deadline.cancel()

    def fit(self, base: str, adapter: str) -> Fit:
        """Ask if a base takes an adapter; a job goes on meanwhile."""
        asked: queue.Queue[Fit] = queue.Queue()
        number, until = secrets.token_hex(8), time.monotonic() + _TELLS
        with self._state:
            self._state.wait_for(lambda: self.child or self._leaving, _TELLS)
            child = self.child
            if child is None or self._leaving:
                return Fit(known=False)
            self._asked[number] = asked
        self._send(child, {"do": "fit", "number": number, "base": base, "adapter": adapter})
        try:
            return asked.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return Fit(known=False)
        finally:
            with self._state:
                del self._asked[number]

    def _train(self, order: Order, report: Callable[[Report], None]) -> Outcome:
        training = Training(
            self._how.log.parent, order, self._how.device, start=self._how.start_training
        )
        with self._alone:
            with self._state:
                if self._leaving:
                    raise WorkerDied("the server's end")
                self._training, self._trains = training, order.job
                if self.child:
                    self._send(self.child, {"do": "free"})
            try:
                return training.follow(report)
            except Left:
                raise WorkerDied("the server's end") from None
            finally:
                with self._state:
                    self._training, self._trains = None, ""

    def _follow(self, running: _Running, report: Callable[[Report], None]) -> Outcome:
        while True:
            said = running.said.get()
            if said["say"] == "report":
                report(said["report"])
            elif said["say"] == "outcome":
                return Outcome.read(said["outcome"])
            elif not running.left:
                ended = [Outcome("cancelled") for _ in running.order.all]
                return replace(ended[0], beside=tuple(ended[1:]))
            else:
                raise WorkerDied(said["by"])

    def end_run(self, job: str) -> None:
        with self._state:
            training = self._training if self._trains == job else None
        if training:
            training.stop(now=True)

    def cancel(self, job: str) -> None:
        with self._state:
            training = self._training if self._trains == job else None
        if training:
            training.stop()
            return
        with self._state:
            running, child = self._running, self.child
            if not running or not child or job not in running.left:
                return
            running.cancelled.add(job)
            if not running.left:
                late = (running, child)
                running.deadline = threading.Timer(self._how.patience, self._give_up, late)
                running.deadline.daemon = True
                running.deadline.start()
        self._send(child, {"do": "cancel", "job": job})

    def _give_up(self, running: _Running, child: Child) -> None:
        with self._state:
            if self._running is running and self.child is child:
                _end(child)

    # -- the end ----------------------------------------------------------------------------------

    def leave(self) -> None:
        with self._state:
            self._leaving = True
            self._state.notify_all()
            child, training = self.child, self._training
        if training:
            training.leave()
        if child:  # The end of its commands is the end of a worker.
            with suppress(OSError, ValueError):
                child.commands.close()

    def join(self) -> None:
        if not self._thread.ident:
            return
        until = time.monotonic() + 5
        self._thread.join(5)
        child = self.child
        if self._thread.is_alive() and child:
            _end(child)
            self._thread.join(max(1, until - time.monotonic()))


def told(line: bytes) -> dict[str, Any]:
    """What a worker says in a line; that it says None in one that is not its own.

    What an installation prints when Python starts comes before the worker can see to it.
    """
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) and "say" in found else {"say": None}


def _end(child: Child) -> None:
    with suppress(OSError):
        os.kill(child.pid, signal.SIGKILL)
