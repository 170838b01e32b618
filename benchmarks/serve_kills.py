"""Kill workers at random moments while they make sets, and look whether anything is lost.

    OMP_NUM_THREADS=1 python -m benchmarks.serve_kills --rounds 50

Two CPU workers with toyland's base take jobs from a list, one storyboard each. A job whose worker
was killed is handed out again, as a queue does. Meanwhile workers are killed (SIGKILL) at random
moments, until so many kills have hit one with a job. Then every folder is compared with the one an
undisturbed worker makes: each job has one set, with the same bytes, and nothing lies beside it.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.serve_warm import ignore, same, told, write_adapters
from iclora.serve.engine import Order, WorkerDied
from iclora.serve.local import LocalEngine
from tests.serve import forked

WORKERS = ["cpu:0", "cpu:1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        disturb(Path(name), args.rounds, args.steps, args.seed)


def disturb(folder: Path, rounds: int, steps: int, seed: int) -> None:
    adapters = write_adapters(folder)
    logs = folder / "logs"
    # Forked where torch is imported already: a start costs what the base does.
    engine = LocalEngine(WORKERS, base="toyland", logs=logs, threads=1, start=forked.start)
    engine.start()
    jobs: queue.Queue[Order | None] = queue.Queue()
    hits = others = 0
    made: set[int] = set()

    def order(number: int, root: str, attempt: int = 1) -> Order:
        values = told(adapters[number % 2], number, steps)
        return Order(f"job-{number}", "generate", values, str(folder / root / str(number)), attempt)

    def serve(worker: str) -> None:
        nonlocal hits, others
        while (job := jobs.get()) is not None:
            try:
                outcome = engine.run(worker, job, ignore)
                assert outcome.status == "succeeded", outcome
                made.add(int(job.job.removeprefix("job-")))
            except WorkerDied as died:
                others += died.signal != "SIGKILL"
                hits += 1
                jobs.put(order(int(job.job.removeprefix("job-")), "made", job.attempt + 1))

    threads = [threading.Thread(target=serve, args=(worker,)) for worker in WORKERS]
    for thread in threads:
        thread.start()
    rng, count = random.Random(seed), 0
    while hits < rounds:
        while jobs.qsize() < 2:
            jobs.put(order(count, "made"))
            count += 1
        time.sleep(rng.uniform(0.0, 1.5))
        worker = rng.choice(WORKERS)
        pid = engine.pid(worker)
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while engine.ready():
            time.sleep(0.02)
    while len(made) < count:
        time.sleep(0.1)
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        thread.join()
    lost = doubled = differ = 0
    for number in range(count):
        whole = order(number, "whole")
        engine.run(WORKERS[0], whole, ignore)
        there = sorted(p.name for p in (folder / "made" / str(number)).iterdir())
        lost += "0001" not in there
        doubled += len(there) > 1
        one, two = (folder / root / str(number) / "0001" for root in ("whole", "made"))
        differ += not (two.is_dir() and same(one, two))
    beside = [p.name for p in (folder / "made").iterdir() if p.name.startswith(".")]
    engine.stop()
    print(
        f"{hits} kills of workers with a job ({others} ended otherwise): {count} jobs, "
        f"{lost} lost, {doubled} doubled, "
        f"{differ} of other bytes, {len(beside)} files left beside them"
    )


if __name__ == "__main__":
    main()
