"""How many sets, what rank, how many steps: `python -m workshop.toyland.sweep --out DIR`.

Each is varied alone around the settings of `iclora demo`, on the embedded base, and judged as in
`figures`; DIR/sweep.png shows it. A sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from iclora.evaluate.setup import Arm
from iclora.files import write_text
from iclora.models import load_model
from iclora.settings import SampleSettings
from iclora.toyland.measuring import given_cases, means, measure_arms, prompt_cases
from iclora.toyland.tasks import TASKS, Task
from iclora.toyland.tuning import tune

__all__ = ["AXES", "DEFAULT", "fresh", "key", "plot", "run"]

DEFAULT = {"sets": 40, "rank": 16, "steps": 300}
AXES: dict[str, tuple[int, ...]] = {
    "sets": (10, 20, 40, 80),
    "rank": (2, 4, 16),
    "steps": (75, 150, 300, 600),
}
"""The settings that are varied, and their values."""
_TITLES = {"sets": "sets tuned on", "rank": "LoRA rank", "steps": "optimizer steps"}


def key(settings: Mapping[str, int]) -> str:
    """A point's name, such as "sets=40 rank=16 steps=300"."""
    return " ".join(f"{name}={settings[name]}" for name in DEFAULT)


def run(task: Task, out: Path, prompts: int, seeds: int, **tuning: Any) -> dict[str, Any]:
    """All figures, by settings; those that `out` has already are not made again."""
    path = out / "sweep.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    wanted = [{**DEFAULT, axis: value} for axis, values in AXES.items() for value in values]
    for settings in [DEFAULT, *wanted]:
        point = key(settings)
        if point in figures:
            continue
        place = fresh(out / "points" / point.replace(" ", "-"))
        adapter, seconds = tune(
            load_model("toyland", dtype="bf16"),
            task,
            place / "tuning",
            sets=settings["sets"],
            rank=settings["rank"],
            alpha=float(settings["rank"]),
            steps=settings["steps"],
            **tuning,
        )
        model, arm = load_model("toyland"), Arm(point, adapter)
        row: dict[str, float] = {}
        for what, cases, begins in (
            ("made", prompt_cases(task, prompts, seeds), ("same", "stated", "diversity")),
            ("completed", given_cases(task, prompts * seeds), ("carried",)),
        ):
            sampling = SampleSettings(steps=20)
            _, found = measure_arms(model, task, [arm], cases, place / what, sampling)
            row |= means(found, point, *begins)
        figures[point] = {**row, "seconds": round(seconds, 1)}
        write_text(path, json.dumps(figures, indent=2) + "\n")
        print(point, json.dumps(figures[point]), flush=True)
    return figures


def fresh(folder: Path) -> Path:
    """A folder of this name, or with a number behind it, that does not exist yet."""
    number = 0
    while (found := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return found


def plot(task: Task, figures: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """One picture: for each axis how the figures go with it."""
    from matplotlib.figure import Figure

    lines = [f"same {trait}" for trait in (*task.relation, "all")]
    lines += ["carried all", "diversity"]
    page = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, (axis, values) in zip(
        page.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True
    ):
        for name in lines:
            shares = [100 * figures[key({**DEFAULT, axis: value})][name] for value in values]
            dashed = "--" if name == "diversity" else ":" if name.startswith("carried") else "-"
            axes.plot(values, shares, dashed, marker="o", markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.set_xlabel(_TITLES[axis])
        axes.grid(alpha=0.3)
        axes.set_ylim(-3, 103)
    page.axes[0].set_ylabel("%")
    page.legend(*page.axes[0].get_legend_handles_labels(), loc="outside right center")
    page.savefig(path, dpi=90)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and plot")
    parser.add_argument("--task", choices=list(TASKS), default="film-storyboard")
    parser.add_argument("--prompts", type=int, default=8, help="held-out prompts")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per prompt")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    task = TASKS[args.task]
    plot(task, run(task, args.out, args.prompts, args.seeds), args.out / "sweep.png")


if __name__ == "__main__":
    main()
