"""Sets shared among processes here or on a Ray cluster, without a server: `workers` above 1.

Each process is a worker as a server's, and gets a share of the sets that are missing. What a
worker that died has not made is dealt to all of them again. Which set lies in which folder is fixed
before, so the folders are those that one process would have filled.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os import cpu_count
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from iclora.errors import IcloraError, RunError, SettingsError
from iclora.evaluate.setup import Setup
from iclora.files import clear_leftovers
from iclora.files.locks import alone
from iclora.jobs.making import plan
from iclora.jobs.opening import Opener
from iclora.models.registry import pick_device
from iclora.progress import Console, Progress
from iclora.serve.children import start_worker
from iclora.serve.engine import Order, Report, WorkerDied
from iclora.serve.keeper import Start
from iclora.serve.local import LocalEngine
from iclora.settings import CompleteSettings, EvaluateSettings, GenerateSettings, Settings

__all__ = ["crowded", "devices_for", "make_shared", "share_evaluation"]

T = TypeVar("T")

_ATTEMPTS = 3
"""Times that a share is begun of which nothing gets done."""
_QUIET = 20.0
"""Seconds without a word after which it is said what a worker waits for."""


def make_shared(
    settings: GenerateSettings, console: Console, start: Start = start_worker
) -> list[Path]:
    """Make what `generate` and `complete` are told to, by `workers` processes.

    Returns: the folders of all sets, in the order of the wishes.
    Raises: IcloraError.
    """
    planned = plan(settings, console, Opener())
    out = Path(settings.out)
    with alone(out / ".workers", out, partial(SettingsError, setting="out")):
        clear_leftovers(out)
        kept = {} if settings.request else planned.kept(console.warn)
        for folder in kept.values():
            console.say(f"kept {folder}: it is what would be made")
        missing = [number for number in planned.wishes if number not in kept]
        places = dict(zip(missing, _free(out, set(kept.values()), len(missing)), strict=True))
        kind = "complete" if isinstance(settings, CompleteSettings) else "generate"
        told = _told(settings, {"prompt": list(planned.prompts)} if planned.prompts else {})

        def order(share: Sequence[int]) -> Order:
            folders = {str(number): str(places[number]) for number in share}
            return Order("", kind, {**told, "share": {"places": folders}}, settings.out, 1)

        if missing:
            with console.progress() as progress:
                _Shares(
                    settings, console, progress, order, lambda n: places[n].exists(), start
                ).make(missing)
        for folder in places.values():
            console.say(f"wrote {folder}")
    return [(kept | places)[number] for number in sorted(planned.wishes)]


def share_evaluation(
    settings: EvaluateSettings,
    console: Console,
    setup: Setup,
    progress: Progress | None,
    start: Start = start_worker,
) -> None:
    """Make what is missing of an evaluation's sets, by `workers` processes. Raises: IcloraError."""
    arms = {arm.name: arm for arm in setup.arms}
    # One case after another, so that each worker has some of all arms.
    wanted = [(arm.name, number) for number in range(len(setup.cases)) for arm in setup.arms]
    missing = [
        (arm, number) for arm, number in wanted if not setup.kept(arms[arm], number, console.warn)
    ]
    told = _told(settings, {})
    told.pop("metric", None)

    def order(share: Sequence[tuple[str, int]]) -> Order:
        return Order("", "evaluate", {**told, "share": {"only": list(share)}}, settings.out, 1)

    def is_made(item: tuple[str, int]) -> bool:
        return setup.is_made(arms[item[0]], item[1])

    if missing:
        shares = _Shares(settings, console, progress or Progress(), order, is_made, start)
        shares.make(missing)


def devices_for(device: str, count: int) -> list[str]:
    """Devices for so many workers: a GPU each, or all of them on the CPU.

    Raises: SettingsError if there are not as many GPUs.
    """
    kind = pick_device(device).type
    if kind == "cpu":
        return [f"cpu:{number}" for number in range(count)]
    there = torch.cuda.device_count() if kind == "cuda" and ":" not in device else 1
    if count > there:
        which = device if ":" in device else "this machine"
        raise SettingsError(
            f"{count} workers need a GPU each, and {which} has {there}",
            f"Set `workers` to {there}, or `device` to cpu.",
            setting="workers",
        )
    return [device] if ":" in device else [f"cuda:{number}" for number in range(count)]


def crowded(workers: int, threads: int, cores: int) -> str:
    """What to know of CPU workers with more threads than there are cores."""
    text = f"{workers} workers of {threads} thread{'s' * (threads > 1)} wait for each other on "
    text += f"{cores} cores: "
    if threads == 1:
        return f"{text}set `workers` to {cores}"
    least = max(1, cores // workers)
    return (
        f"{text}set OMP_NUM_THREADS to {least} in the environment, which rounds sums otherwise "
        "than more threads do"
    )


def _check_dtype(settings: GenerateSettings | EvaluateSettings, kind: str) -> None:
    """Requests are made here and their sets elsewhere; both must mean the same numbers."""
    here = "cpu" if pick_device(settings.device).type == "cpu" else "gpu"
    if settings.dtype == "auto" and here != kind:
        raise SettingsError(
            f"replicas compute on a {kind.upper()} and this machine on a {here.upper()}, where "
            "`dtype` auto is another number format",
            "Set `dtype` to bf16 or fp32.",
            setting="dtype",
        )


def _free(out: Path, kept: set[Path], count: int) -> list[Path]:
    """The folders that the missing sets get: the free numbers after all sets of other commands."""
    names = [p.name for p in out.glob("[0-9]*") if p not in kept] if out.is_dir() else []
    number = max((int(name) for name in names if name.isdecimal() and len(name) < 10), default=0)
    found: list[Path] = []
    while len(found) < count:
        number += 1
        place = out / f"{number:04d}"
        if place not in kept:
            found.append(place)
    return found


def _told(settings: Settings, instead: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON for workers: what was set, without what is done once for all of them."""
    own = (
        {"workers", "out", "prompts", "idea", "captioner"}
        if "prompt" in instead
        else {"workers", "out"}
    )
    return settings.model_dump(mode="json", include=settings.model_fields_set - own) | instead


@dataclass
class _Share(Generic[T]):
    items: list[T]
    attempt: int = 1


class _Shares(Generic[T]):
    """Deals items to workers until all are made.

    Args:
        order: what a worker is told to make some of them.
        is_made: true of an item that lies on disk.
    """

    def __init__(
        self,
        settings: GenerateSettings | EvaluateSettings,
        console: Console,
        progress: Progress,
        order: Callable[[Sequence[T]], Order],
        is_made: Callable[[T], bool],
        start: Start,
    ) -> None:
        self._settings, self._console, self._progress = settings, console, progress
        self._order, self._is_made, self._start = order, is_made, start
        self._shares: queue.Queue[_Share[T] | None] = queue.Queue()
        self._said: queue.Queue[tuple[str, Any]] = queue.Queue()
        """What threads of workers say: a kind, and what is to be known of it."""

    def make(self, items: Sequence[T]) -> None:
        """Raises: IcloraError, KeyboardInterrupt, Cancelled; every worker has ended then."""
        count = min(self._settings.workers, len(items))
        # As many as one process would take, or sums round otherwise and pictures differ.
        threads = torch.get_num_threads()
        on_cluster = self._settings.engine == "ray"
        engine, logs = (self._on_cluster if on_cluster else self._here)(count, threads)
        engine.start()
        hands = [
            threading.Thread(target=self._hand, args=(engine, worker), daemon=True)
            for worker in engine.workers
        ]
        try:
            for hand in hands:
                hand.start()
            self._see_to(items, engine)
        except RunError as error:
            # Of a worker that died, or never began; all else says what is wrong by itself.
            if any(path.stat().st_size for path in logs.rglob("*.log")):
                kept = f"{error.advice} What the workers printed is in {logs}.".lstrip()
                raise RunError(error.problem, kept, error.setting) from None
            shutil.rmtree(logs, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(logs, ignore_errors=True)
            raise
        finally:
            engine.stop()
            for _ in hands:
                self._shares.put(None)
            for hand in hands:
                hand.join()
        shutil.rmtree(logs, ignore_errors=True)

    def _here(self, count: int, threads: int) -> tuple[LocalEngine, Path]:
        devices = devices_for(self._settings.device, count)
        cores = cpu_count() or 1
        if devices[0].startswith("cpu") and threads * count > cores > 1:
            self._console.warn(crowded(count, threads, cores))
        logs = Path(tempfile.mkdtemp(prefix="iclora-workers-"))
        return LocalEngine(devices, logs=logs, threads=threads, start=self._start), logs

    def _on_cluster(self, count: int, threads: int) -> tuple[LocalEngine, Path]:
        from iclora.serve.cluster.engine import engine_on
        from iclora.serve.cluster.front import Cluster

        # In a folder that all machines must see anyway.
        out = Path(self._settings.out).resolve()
        out.mkdir(parents=True, exist_ok=True)
        logs = Path(tempfile.mkdtemp(prefix=".workers-", dir=out))
        where = self._settings.cluster
        self._console.say(
            f"joining the Ray cluster at {where}" if where else "starting a Ray cluster here"
        )
        cluster = Cluster(where, logs)
        try:
            kind = cluster.kind(self._settings.device)
            workers = cluster.workers(kind, count, "workers")
            _check_dtype(self._settings, kind)
        except BaseException:
            cluster.close()
            shutil.rmtree(logs, ignore_errors=True)
            raise
        make = partial(LocalEngine, logs=logs, threads=threads)
        return engine_on(cluster, kind, workers, make), logs

    def _deal(self, items: Sequence[T], among: int, attempt: int = 1) -> int:
        shares = [list(items[at::among]) for at in range(min(among, len(items)))]
        for share in shares:
            self._shares.put(_Share(share, attempt))
        return len(shares)

    def _see_to(self, items: Sequence[T], engine: LocalEngine) -> None:
        """Deal, listen, and deal what a worker left, until nothing is missing."""
        among = len(engine.workers)
        out = self._deal(items, among)
        shown: set[str] = set()
        notes: set[str] = set()
        while out:
            try:
                kind, what = self._said.get(timeout=_QUIET)
            except queue.Empty:
                kind, what = "note", engine.ready()
                if why := engine.hopeless():
                    raise RunError(f"no worker starts: {why}", "Correct that first.") from None
            if kind == "preview":
                shown.add(what)
                self._progress("making", min(len(shown), len(items)), len(items))
            elif kind == "note":
                if what and what not in notes:
                    notes.add(what)
                    self._console.warn(what)
            elif kind == "failed":
                raise what
            else:
                share, died = what
                out -= 1
                left = [item for item in share.items if not self._is_made(item)]
                if died and left:
                    again = share.attempt + 1 if len(left) == len(share.items) else 1
                    if again > _ATTEMPTS:
                        raise RunError(died.problem, died.advice)
                    self._console.warn(
                        f"{died.problem}; its {len(left)} sets are dealt to the workers again"
                    )
                    out += self._deal(left, among, again)

    def _hand(self, engine: LocalEngine, worker: str) -> None:
        """Give one worker a share after another, in a thread."""

        def report(said: Report) -> None:
            if said["type"] == "preview":
                self._said.put(("preview", said["path"]))
            elif said["type"] == "note":
                self._said.put(("note", said["text"]))

        # Whoever cannot work leaves the shares to the others.
        while engine.wait(worker) and (share := self._shares.get()) is not None:
            try:
                outcome = engine.run(worker, self._order(share.items), report)
            except WorkerDied as died:
                self._said.put(("ended", (share, died)))
                continue
            if outcome.error:
                error = outcome.error
                self._said.put(
                    (
                        "failed",
                        IcloraError(str(error["problem"]), str(error["advice"]), error["setting"]),
                    )
                )
            else:
                self._said.put(("ended", (share, None)))
