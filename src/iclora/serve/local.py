"""Workers: one process for each GPU, or for the CPU, on this machine or (`cluster`) elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from iclora.errors import SettingsError
from iclora.serve.children import environment_of, start_worker
from iclora.serve.engine import Fit, Order, Outcome, Report
from iclora.serve.keeper import How, Keeper, Start
from iclora.serve.training import StartTrainee, start_trainee
from iclora.settings import MakingMachine

__all__ = ["PATIENCE", "LocalEngine"]

PATIENCE = 30.0
"""Seconds a cancelled job has to come to its next step."""
_FAILURES = 3
"""Ends of a worker in a row, each before it was ready, after which nothing is hoped for."""


class LocalEngine:
    """Keeps a worker process running for each device, and hands it one job at a time.

    Args:
        devices: such as "cpu" or "cuda:0"; CPUs may be several, "cpu:0", "cpu:1".
        base: what each worker loads before it is ready; None for what the first job needs.
        machine: number format and precision of the base, and whether it is compiled or recorded.
        warm: adapters with which each worker paints a step before it is ready.
        logs: folder for what the workers print.
        together: most jobs of one order, which then share a batch where they can.
        threads: of each CPU worker; None for torch's own choice.
        patience: seconds until a cancelled job's worker is ended.
        start: starts a worker's process.
        start_training: starts one that trains.
        close: called once all have ended.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        base: str | None = None,
        machine: MakingMachine | None = None,
        warm: Sequence[str] = (),
        logs: Path,
        together: int = 1,
        threads: int | None = None,
        patience: float = PATIENCE,
        start: Start = start_worker,
        start_training: StartTrainee = start_trainee,
        close: Callable[[], None] | None = None,
    ) -> None:
        if len(set(devices)) < len(devices) or not devices:
            raise SettingsError("each worker needs a device of its own", "Name each device once.")
        self.workers: Sequence[str] = tuple(devices)
        self._close = close
        self.together = together
        numbers = (machine or MakingMachine()).model_dump()
        first = {"do": "start", "base": base, "machine": numbers, "warm": list(warm)}
        self._keepers = {
            name: Keeper(
                How(
                    name,
                    first,
                    environment_of(name, threads),
                    logs / f"worker-{name.replace(':', '-')}.log",
                    patience,
                    start,
                    start_training,
                )
            )
            for name in devices
        }

    def start(self) -> None:
        """Start every worker; they load their base meanwhile."""
        for keeper in self._keepers.values():
            keeper.start()

    def ready(self) -> str | None:
        """None once every worker holds its base, else why not yet."""
        said = {name: keeper.not_ready() for name, keeper in self._keepers.items()}
        return next((f"worker {name} {why}" for name, why in said.items() if why), None)

    def able(self, worker: str) -> bool:
        """True if a worker takes a job now: it runs and holds its base."""
        return self._keepers[worker].able()

    def wait(self, worker: str) -> bool:
        """Wait until a worker can take a job. Returns: False once the engine stops."""
        return self._keepers[worker].wait()

    def hopeless(self) -> str | None:
        """Why no worker will start: each ended before it was ready, several times in a row."""
        keepers = list(self._keepers.values())
        may = any(keeper.failures < _FAILURES for keeper in keepers)
        return None if may else keepers[0].not_ready()

    def loaded(self, worker: str) -> str | None:
        """The adapters that are warm in a worker, as `adapters_of` says them; None before a job."""
        return self._keepers[worker].loaded

    def fit(self, base: str, adapter: str) -> Fit:
        """Ask a worker if a base takes an adapter's file; it may be at work meanwhile."""
        # One that stands has imported all it needs to tell.
        keepers = sorted(self._keepers.values(), key=lambda keeper: not keeper.able())
        return keepers[0].fit(base, adapter)

    def pid(self, worker: str) -> int | None:
        """The number of a worker's process; None while there is none."""
        child = self._keepers[worker].child
        return child.pid if child else None

    def run(self, worker: str, order: Order, report: Callable[[Report], None]) -> Outcome:
        """Run one job and wait for its end.

        Args:
            report: called in this thread with what the job does.
        Raises: WorkerDied if the worker ended meanwhile.
        """
        return self._keepers[worker].run(order, report)

    def cancel(self, worker: str, job: str) -> None:
        """End a job between two steps; after `patience` the worker is ended and started again.

        A run is told to end after its current step, with a checkpoint; see `end_run`.
        """
        self._keepers[worker].cancel(job)

    def end_run(self, worker: str, job: str) -> None:
        """End a run now; what was trained since its last checkpoint is lost."""
        self._keepers[worker].end_run(job)

    def stop(self) -> None:
        """End every worker."""
        for keeper in self._keepers.values():
            keeper.leave()
        for keeper in self._keepers.values():
            keeper.join()
        if self._close:
            self._close()
