"""Figures for Prometheus. No id, prompt or key is in a label."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from iclora.serve.children import gpu_memory
from iclora.serve.events import Bus
from iclora.serve.jobs import Job
from iclora.serve.queue import Queue

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_STEPS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
_LONG = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900, 3600)


class Metrics:
    """The figures of one server; nothing of them is shared between two in one process."""

    def __init__(self, queue: Queue, bus: Bus, folder: Path) -> None:
        own = self._registry = CollectorRegistry()
        self.http = Histogram(
            "iclora_http_seconds",
            "Time of a request",
            ("route", "status"),
            buckets=_SECONDS,
            registry=own,
        )
        self._jobs = Counter("iclora_jobs", "Jobs that ended", ("kind", "status"), registry=own)
        self._job = Histogram(
            "iclora_job_seconds", "Time of a job", ("kind",), buckets=_LONG, registry=own
        )
        self._wait = Histogram(
            "iclora_queue_wait_seconds", "Time until a job was begun", buckets=_LONG, registry=own
        )
        self.restarts = Counter(
            "iclora_worker_restarts", "Workers that were ended by something else", registry=own
        )
        self.swaps = Counter(
            "iclora_adapter_swaps", "Jobs whose adapters were not those loaded", registry=own
        )
        self._step = Histogram(
            "iclora_step_seconds", "Time of a step", buckets=_STEPS, registry=own
        )
        self.batch = Histogram(
            "iclora_batch_size",
            "Jobs that made sets in one batch",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=own,
        )
        self._last: dict[str, tuple[str, int, float]] = {}
        self._registry.register(_Now(queue, bus, folder))

    def ended(self, job: Job) -> None:
        """Count a job that has ended, whoever ended it."""
        self._jobs.labels(job.kind, job.status).inc()
        if job.started is not None and job.ended is not None:
            self._job.labels(job.kind).observe(job.ended - job.started)
            self._wait.observe(max(0.0, job.started - job.created))

    def stepped(self, job: str, report: Mapping[str, Any]) -> None:
        """Measure a job's steps by its reports, which come every few steps."""
        stage, done, now = str(report.get("stage")), int(report.get("done", 0)), time.monotonic()
        before = self._last.get(job)
        self._last[job] = stage, done, now
        if before and before[0] == stage and done > before[1]:
            each = (now - before[2]) / (done - before[1])
            self._step.observe(each)

    def forget(self, job: str) -> None:
        """A job has ended."""
        self._last.pop(job, None)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)


class _Now(Collector):
    """Figures that are looked up when they are asked for."""

    def __init__(self, queue: Queue, bus: Bus, folder: Path) -> None:
        self._queue, self._folder = queue, folder
        self._streams: Callable[[], int] = lambda: bus.streams

    def collect(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("iclora_queue_depth", "Jobs that wait", labels=["kind"])
        for (kind, status), number in self._queue.counts().items():
            if status == "queued":
                depth.add_metric([kind], number)
        yield depth
        yield GaugeMetricFamily("iclora_event_streams", "Open streams", self._streams())
        free = shutil.disk_usage(self._folder).free
        yield GaugeMetricFamily("iclora_disk_free_bytes", "Free space for made sets", free)
        gpus = GaugeMetricFamily("iclora_gpu_memory_bytes", "Memory in use", labels=["gpu"])
        for gpu, used in gpu_memory().items():
            gpus.add_metric([gpu], used)
        yield gpus
        paused = float(self._queue.paused)
        yield GaugeMetricFamily("iclora_queue_paused", "1 if no job is begun", paused)

    def describe(self) -> Iterator[Metric]:
        return iter(())  # What it has depends on the queue, and is looked up later.
