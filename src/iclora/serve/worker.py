"""The process that holds a base and does one job at a time: `python -m iclora.serve.worker`.

It is told lines of JSON on its stdin, and answers in such lines on its stdout:

    {"do": "start", "base", "machine", "warm"}   first; loads the base, if one is named
    {"do": "run", "order"}, {"do": "cancel", "job"}
    {"do": "fit", "number", "base", "adapter"}   asks if a base takes an adapter, also during a job
    {"do": "free"}                          let go of the base: its device is needed
    {"say": "ready", "problem"}             problem: None, or why the base cannot be held
    {"say": "report", "job", "report"}, {"say": "outcome", "job", "outcome"}
    {"say": "fit", "number", "known", "problem"}

When its stdin ends, so does it, at once: whoever started it is gone, and everything it writes is
whole or absent.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from iclora.errors import AdapterError, IcloraError
from iclora.jobs.memory import out_of_memory
from iclora.progress import Cancelled, Event, Progress
from iclora.serve.children import own_pipes
from iclora.serve.engine import Order, Outcome, Report
from iclora.serve.faults import problem_of

__all__ = ["JobConsole", "be_worker", "main"]

_OFTEN = 0.2
"""Least seconds between two reports of the same work."""


def main() -> int:
    """Be a worker of the process at the other ends of stdin and stdout."""
    return be_worker(*own_pipes())


def be_worker(commands: BinaryIO, answers: BinaryIO) -> int:
    """Do what lines of `commands` say until they end. Returns: the exit status."""
    worker = _Worker(answers)
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=worker.listen, args=(commands, orders), daemon=True).start()
    worker.start(orders.get())
    while True:
        told = orders.get()
        if told["do"] == "free":
            worker.free()
        elif not worker.run(Order.read(told["order"])):
            return 1


class JobConsole:
    """Where a job speaks: everything becomes a report.

    Args:
        folder: of the job; people are shown names inside it, not where it lies.
        report: takes the reports.
    """

    def __init__(self, folder: str, report: Callable[[Report], None]) -> None:
        self.work = Progress(self.progressed)
        self._folder = folder
        self._report = report
        self._began: dict[str, tuple[float, int]] = {}
        self._last = 0.0
        self._stage = ""

    def say(self, text: str) -> None:
        # What was made is the job's result, and was shown.
        if not text.startswith(("wrote ", "kept ")):
            self.warn(text)

    def warn(self, text: str) -> None:
        self._report({"type": "note", "text": self.shown(text)})

    def tell(self, role: str, text: str) -> None:
        self.warn(f"{role}: {text}")

    def show(self, picture: Path) -> None:
        self._report({"type": "preview", "path": str(picture)})

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        yield self.work

    def shown(self, text: str) -> str:
        """A text without the place of the job's folder."""
        return text.replace(f"{self._folder}{os.sep}", "").replace(self._folder, "the folder")

    def progressed(self, event: Event) -> None:
        """Report how far the work is, not too often."""
        now = time.monotonic()
        began, first = self._began.get(event.what, (now, event.done))
        if event.done < first:  # The same work on the next thing.
            began, first = now, event.done
        self._began[event.what] = began, first
        if now - self._last < _OFTEN and event.done < event.total and event.what == self._stage:
            return
        self._last, self._stage = now, event.what
        each = (now - began) / (event.done - first) if event.done > first else None
        left = None if each is None else round(each * (event.total - event.done), 1)
        how_far = {"stage": event.what, "done": event.done, "total": event.total, "eta_s": left}
        self._report({"type": "progress", **how_far})


class _Worker:
    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._writing = threading.Lock()
        self._at_work: dict[str, Progress] = {}
        """Of each job that is at work."""
        self._whole = Progress()
        """Of the batch that they share."""
        self._cancelled: set[str] = set()
        """Jobs whose cancelling came before they began."""
        self._lock = threading.Lock()
        self._opened = threading.Event()

    def answer(self, say: str, **what: Any) -> None:
        """Write one line."""
        line = json.dumps({"say": say, **what}).encode() + b"\n"
        with self._writing:
            try:
                self._answers.write(line)
                self._answers.flush()
            except (BrokenPipeError, ValueError):
                os._exit(1)

    def listen(self, commands: BinaryIO, orders: queue.Queue[dict[str, Any]]) -> None:
        """Pass orders on, cancel, and end with the commands."""
        for line in commands:
            told = json.loads(line)
            if told["do"] == "cancel":
                self._cancel(told["job"])
            elif told["do"] == "fit":
                # Reading a file takes a while; a cancel must not wait for it.
                threading.Thread(target=self._tell_fit, args=(told,), daemon=True).start()
            else:
                orders.put(told)
        os._exit(0)

    def _cancel(self, job: str) -> None:
        with self._lock:
            if job not in self._at_work:
                self._cancelled.add(job)
                return
            self._at_work[job].cancel()
            # A batch goes on for those that still want it.
            if all(work.cancelled for work in self._at_work.values()):
                self._whole.cancel()

    def _tell_fit(self, told: dict[str, Any]) -> None:
        """Say if a base takes an adapter; of a base that is not at hand, or of a fault, nothing."""
        self._opened.wait()
        known, problem = True, None
        try:
            self._opener.check_fit(told["base"], told["adapter"])
        except AdapterError as error:
            problem = problem_of(error)
        except Exception as error:
            print(f"not known if {told['adapter']} fits: {error}", file=sys.stderr)
            known = False
        self.answer("fit", number=told["number"], known=known, problem=problem)

    def start(self, told: dict[str, Any]) -> None:
        """Import what is heavy, and load the base if one is named."""
        from iclora.serve.warm import Warm

        self._opener = Warm()
        self._opened.set()
        problem = None
        if told["base"]:
            try:
                self._hold(told["base"], told["machine"], told["warm"])
            except Exception as error:
                problem = problem_of(error)["problem"]
        self.answer("ready", problem=problem)

    def _hold(self, base: str, machine: dict[str, Any], adapters: list[str]) -> None:
        from iclora.making.sampling import load_vae
        from iclora.settings import MakingMachine

        self._opener.rules(base)  # So that adapters can be asked about while it loads.
        model = self._opener.base(base, MakingMachine(**machine))
        model.denoiser  # noqa: B018 (loads it)
        load_vae(model)
        if model.device.type == "cpu":  # Elsewhere they are never loaded beside the denoiser.
            model.encode_text("a picture")
        for note in self._opener.paint_once(model, adapters):
            print(note, file=sys.stderr)

    def free(self) -> None:
        """Let go of the base; the next job loads it again."""
        self._opener.release()

    def run(self, order: Order) -> bool:
        """Do one job, and those beside it, and answer.

        Returns: False if this process should not go on.
        """
        consoles = [self._console(order, each) for each in order.all]
        with self._lock:
            self._whole = _of_all(consoles)
            self._at_work = {o.job: c.work for o, c in zip(order.all, consoles, strict=True)}
            cancelled, self._cancelled = self._cancelled, set()
        for job in cancelled & self._at_work.keys():
            self._cancel(job)
        ended = self._outcomes(order, consoles)
        with self._lock:
            self._at_work = {}
        outcome = replace(ended[0][0], beside=tuple(each for each, _ in ended[1:]))
        sound = all(sound for _, sound in ended)
        self.answer("outcome", job=order.job, outcome=asdict(outcome), sound=sound)
        return sound

    def _console(self, first: Order, order: Order) -> JobConsole:
        own = {} if order is first else {"job": order.job}
        return JobConsole(
            order.folder, lambda said: self.answer("report", job=first.job, report=said | own)
        )

    def _outcomes(self, order: Order, consoles: Sequence[JobConsole]) -> list[tuple[Outcome, bool]]:
        """How each job ended, and whether this process can go on after it."""
        from iclora.serve.work import work, work_together

        found: dict[int, Any] = {}
        if order.beside:
            try:
                made = work_together(order.all, consoles, self._opener, self._whole)
                found = dict(enumerate(made))
            except (Exception, Cancelled):  # Whose it is shows where each is made by itself.
                traceback.print_exc()
        for number, (each, console) in enumerate(zip(order.all, consoles, strict=True)):
            if number not in found:
                try:
                    found[number] = work(each, console, self._opener)
                except (Exception, Cancelled) as error:
                    found[number] = error
        return [
            self._ended(each, console, found[number])
            for number, (each, console) in enumerate(zip(order.all, consoles, strict=True))
        ]

    def _ended(self, order: Order, console: JobConsole, found: Any) -> tuple[Outcome, bool]:
        """The outcome of a job from its result or error, and whether this process can go on."""
        from iclora.serve.work import KINDS

        if isinstance(found, Cancelled):
            return Outcome("cancelled"), True
        if not isinstance(found, Exception):
            return Outcome("succeeded", found), True
        said = problem_of(found, KINDS[order.kind][0] if order.kind in KINDS else None)
        shown = {name: text and console.shown(text) for name, text in said.items()}
        if shown["code"] == "OutOfMemory":
            self._opener.release()
        sound = isinstance(found, IcloraError) or out_of_memory(found)
        return Outcome("failed", error=shown), sound


def _of_all(consoles: Sequence[JobConsole]) -> Progress:
    """One progress, of which every job of a batch hears."""

    def hear(event: Event) -> None:
        for console in consoles:
            console.progressed(event)

    return Progress(hear)


if __name__ == "__main__":
    sys.exit(main())
