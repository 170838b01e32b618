"""What a warm worker saves, and what a job costs beside its set.

    OMP_NUM_THREADS=1 python -m benchmarks.serve_warm --rounds 9

On toyland's base with two adapters of random weights, one storyboard a job, adapters in turn:

cold     a new `iclora generate` process
warm     a job of a worker that has made a set with the other adapter just before
bare     the same set by the same functions in this process, base and adapters as warm as there
job      what the engine adds: the median of warm less bare, pair by pair, in turns

Sets of one seed are compared, byte by byte. With `--soak N` instead: N jobs of one step, each with
another text, adapters in turn, and the worker's resident memory as they go on.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from iclora.adapter import Adapter, AdapterInfo, attach, remove
from iclora.jobs.making import make
from iclora.models import load_model
from iclora.progress import Progress
from iclora.serve.engine import Order
from iclora.serve.local import LocalEngine
from iclora.serve.warm import Warm
from iclora.settings import GenerateSettings, settings_of
from iclora.toyland.tasks import TASKS, draw_set

TASK = TASKS["film-storyboard"]


class Silent:
    """A console that says nothing."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def tell(self, role: str, text: str) -> None: ...

    def show(self, picture: Path) -> None: ...

    @contextmanager
    def progress(self) -> Any:
        yield Progress()


def write_adapters(folder: Path) -> list[Path]:
    """Two adapters of random weights for toyland's base, of the rank that is usual."""
    model, found = load_model("toyland", "cpu"), []
    recipe = TASK.small_recipe
    for seed in (1, 2):
        shapes = {k: v.shape for k, v in _parameters(model, seed).items()}
        rng = torch.Generator().manual_seed(seed)
        weights = {k: 0.02 * torch.randn(shape, generator=rng) for k, shape in shapes.items()}
        info = AdapterInfo(
            base="toyland",
            family=model.family,
            rank=16,
            alpha=16,
            targets="all",
            steps=1,
            recipe=recipe,
            layout=recipe.canvas,
        )
        found.append(folder / f"adapter-{seed}" / "adapter.safetensors")
        Adapter(weights, info).save(found[-1])
    return found


def _parameters(model: Any, seed: int) -> dict[str, torch.Tensor]:
    found = {
        k: p.detach().clone()
        for k, p in attach(model, rank=16, alpha=16, targets="all", seed=seed).items()
    }
    remove(model)
    return found


def told(adapter: Path, seed: int, steps: int, prompt: str = "") -> dict[str, Any]:
    """Settings of one set."""
    return {
        "adapter": [str(adapter)],
        "prompt": [prompt or TASK.small_recipe.example],
        "seed": seed,
        "steps": steps,
    }


def cold(adapter: Path, seed: int, steps: int, out: Path) -> float:
    """Seconds of a new process."""
    words = ["--adapter", str(adapter), "--prompt", TASK.small_recipe.example, "--seed", str(seed)]
    words += ["--steps", str(steps), "--out", str(out)]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "iclora", "generate", *words], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def processor(engine: LocalEngine) -> float:
    """Seconds that this process and the worker have computed; on a busy machine the clock lies."""
    fields = Path(f"/proc/{engine.pid('cpu')}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def same(one: Path, two: Path) -> bool:
    """True if two sets are the same, byte by byte."""
    return all((two / p.name).read_bytes() == p.read_bytes() for p in one.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--soak", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.soak:
            soak(Path(name), args.soak)
        else:
            measure(Path(name), args.rounds, args.steps)


def measure(folder: Path, rounds: int, steps: int) -> None:
    adapters = write_adapters(folder)
    engine = LocalEngine(["cpu"], base="toyland", logs=folder / "logs")
    engine.start()
    while engine.ready():
        time.sleep(0.05)
    opener, colds, warms, bares, equal = Warm(), [], [], [], 0
    used: dict[str, list[float]] = {"warm": [], "bare": []}
    for seed in range(-2, rounds):
        adapter, number = adapters[seed % 2], f"{seed + 2}"
        if seed >= 0 and seed % 3 == 0:
            colds.append(cold(adapter, seed, steps, folder / "cold" / number))
        values = told(adapter, max(seed, 0), steps)
        for way in ("warm", "bare") if seed % 2 else ("bare", "warm"):
            out = folder / way / number
            began, busy = time.perf_counter(), processor(engine)
            if way == "warm":
                outcome = engine.run("cpu", Order(number, "generate", values, str(out), 1), ignore)
                assert outcome.status == "succeeded", outcome
            else:
                own = settings_of(GenerateSettings, {**values, "out": str(out)})
                make(own, Silent(), opener, own=True)
            if seed >= 0:  # The first of each adapter opens what is not open yet.
                (warms if way == "warm" else bares).append(time.perf_counter() - began)
                used[way].append(processor(engine) - busy)
        made = [folder / way / number / "0001" for way in ("warm", "bare")]
        if seed >= 0 and seed % 3 == 0:
            made.append(folder / "cold" / number / "0001")
        equal += all(same(made[0], other) for other in made[1:])
    engine.stop()
    more = [1000 * (w - b) for w, b in zip(warms, bares, strict=True)]
    middle = statistics.median
    print(f"{rounds} sets of {steps} steps, {torch.get_num_threads()} threads")
    print(f"cold  {middle(colds):6.2f} s ({', '.join(f'{x:.2f}' for x in sorted(colds))})")
    print(f"warm  {middle(warms):6.2f} s ({min(warms):.2f} to {max(warms):.2f})")
    print(f"bare  {middle(bares):6.2f} s ({min(bares):.2f} to {max(bares):.2f})")
    print(f"warm is {middle(colds) / middle(warms):.1f} times as soon as a new process")
    print(f"a job adds {middle(more):.0f} ms ({min(more):.0f} to {max(more):.0f})")
    busy = [1000 * (w - b) for w, b in zip(used["warm"], used["bare"], strict=True)]
    print(f"processor: warm {middle(used['warm']):.2f} s, bare {middle(used['bare']):.2f} s;")
    print(f"           a job adds {middle(busy):.0f} ms ({min(busy):.0f} to {max(busy):.0f})")
    print(f"{equal} of {rounds + 2} sets the same by every way, byte by byte")


def soak(folder: Path, jobs: int) -> None:
    adapters = write_adapters(folder)
    engine = LocalEngine(["cpu"], base="toyland", logs=folder / "logs")
    engine.start()
    texts = [draw_set(TASK, random.Random(f"soak {n}"))[1].text for n in range(jobs)]
    held = {}
    for number, text in enumerate(texts):
        values = told(adapters[number % 2], number, 1, text)
        out = folder / "out" / str(number)
        outcome = engine.run("cpu", Order(str(number), "generate", values, str(out), 1), ignore)
        assert outcome.status == "succeeded", outcome
        shutil.rmtree(out)
        pages = int(Path(f"/proc/{engine.pid('cpu')}/statm").read_text().split()[1])
        held[number + 1] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    engine.stop()
    after = [at for at in held if at >= min(100, jobs // 2)]
    shown = ", ".join(f"{held[at]:.0f} MB after {at}" for at in after[:: max(1, len(after) // 8)])
    grown = held[jobs] / held[after[0]] - 1
    print(f"{jobs} jobs, each with another text: {shown}; {held[jobs]:.0f} MB at the end")
    print(f"{100 * grown:+.1f}% since job {after[0]}")


def ignore(_: dict[str, Any]) -> None:
    """Hear nothing."""


if __name__ == "__main__":
    main()
