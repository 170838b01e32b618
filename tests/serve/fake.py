"""An engine without torch: it writes sets of one colour, and ends as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image

from iclora.files import work_folder
from iclora.serve.engine import Fit, Outcome, WorkerDied, adapters_of
from iclora.sets.layout import Layout


class FakeEngine:
    """Makes a set in milliseconds; `hold` keeps jobs running until `go` is set."""

    def __init__(self, workers=("cpu",)):
        self.workers = list(workers)
        self.together = 1
        self.why = None
        self.gone = set()
        self.orders = []
        self.deaths = 0
        self.pace = 0.0
        self.failure = None
        self.fits = {}
        self.asked = []
        self.go = threading.Event()
        self.go.set()
        self.cancelled = set()
        self.ended_now = []
        self.stopped = False
        self._loaded = dict.fromkeys(self.workers)

    def hold(self):
        self.go.clear()

    def start(self):
        self.stopped = False

    def ready(self):
        return self.why

    def able(self, worker):
        return self.why is None and worker not in self.gone

    def fit(self, base, adapter):
        self.asked.append((base, Path(adapter).name))
        return self.fits.get(Path(adapter).name, Fit(known=True))

    def loaded(self, worker):
        return self._loaded[worker]

    def given(self, job, seconds=60.0):
        """The order of a job, once a worker has it: a moment after the job is said to run."""
        until = time.monotonic() + seconds
        while not (found := [order for order in self.orders if order.job == job]):
            assert time.monotonic() < until, "no worker was given it"
            time.sleep(0.002)
        return found[-1]

    def run(self, worker, order, report):
        ended = [self._run(worker, each, report) for each in order.all]
        return replace(ended[0], beside=tuple(ended[1:]))

    def _run(self, worker, order, report):
        self.orders.append(order)
        report({"type": "progress", "stage": "sampling", "done": 0, "total": 2, "eta_s": 1.0})
        while not self.go.wait(0.002):
            if order.job in self.cancelled:
                return Outcome("cancelled")
            if self.stopped:
                raise WorkerDied("SIGTERM")
        time.sleep(self.pace)
        if self.deaths > 0:
            self.deaths -= 1
            raise WorkerDied("SIGKILL")
        if self.failure:
            raise self.failure
        report({"type": "note", "text": "a note"})
        self._loaded[worker] = adapters_of(order.input)
        if order.kind in ("generate", "complete", "reroll"):
            for number in range(order.input.get("count", 1)):
                make_set(Path(order.folder) / f"{number + 1:04d}", order.input, number)
        if order.kind == "evaluate":
            Path(order.folder).mkdir(parents=True, exist_ok=True)
            (Path(order.folder) / "report.html").write_text("<b>report</b>", encoding="utf-8")
        return Outcome("succeeded", {"report": f"{order.folder}/report.html"})

    def cancel(self, worker, job):
        self.cancelled.add(job)

    def end_run(self, worker, job):
        self.ended_now.append(job)

    def stop(self):
        self.stopped = True


def make_set(folder: Path, settings: dict, number: int = 0) -> Path:
    """A made set of two panels, if it is not there."""
    if folder.exists():
        return folder
    seed = settings.get("seed", 0) + number
    request = {
        "base": "tiny", "base_fingerprint": "0", "device": "cpu", "dtype": "fp32",
        "prompt": (settings.get("prompt") or ["a prompt"])[0], "recipe": "none",
        "adapter": (settings.get("adapter") or [None])[0], "seeds": [seed, seed + 1],
        "layout": Layout.columns(2, 32, 16).to_json(), "steps": 1, "guidance": 1.0,
    }  # fmt: skip
    with work_folder(folder) as work:
        for name, width in (("composite", 32), ("panel-1", 16), ("panel-2", 16)):
            Image.new("RGB", (width, 16), (seed % 256, 9, 9)).save(work / f"{name}.png")
        (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
    return folder
