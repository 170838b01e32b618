"""How many sets, what rank, how many steps: `python -m workshop.toyland.sweep --out DIR`.

Each is varied alone around what `iclora demo` uses, on the embedded base, and judged as
`evaluate` does; DIR/sweep.png shows it. A sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from iclora.files import write_text
from iclora.models import load_model
from iclora.toyland.evaluate import complete_sets, generate_sets, tune
from iclora.toyland.tasks import TASKS, Task

__all__ = ["AXES", "plot"]

DEFAULT = {"sets": 40, "rank": 16, "steps": 300}
AXES: dict[str, tuple[int, ...]] = {
    "sets": (10, 20, 40, 80),
    "rank": (2, 4, 16),
    "steps": (75, 150, 300, 600),
}
"""What is varied, and over which values."""
_TITLES = {"sets": "sets tuned on", "rank": "LoRA rank", "steps": "optimizer steps"}


def _key(settings: Mapping[str, int]) -> str:
    return " ".join(f"{name}={settings[name]}" for name in DEFAULT)


def run(task: Task, out: Path, prompts: int, seeds: int, **tuning: Any) -> dict[str, Any]:
    """All figures, by settings; those that `out` has already are not made again."""
    path = out / "sweep.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    wanted = [{**DEFAULT, axis: value} for axis, values in AXES.items() for value in values]
    for settings in [DEFAULT, *wanted]:
        key = _key(settings)
        if key in figures:
            continue
        model = load_model("toyland", dtype="bf16")
        adapter, seconds = tune(
            model,
            task,
            _fresh(out / "tuning" / key.replace(" ", "-")),
            sets=settings["sets"],
            rank=settings["rank"],
            alpha=float(settings["rank"]),
            steps=settings["steps"],
            **tuning,
        )
        model = load_model("toyland")
        row = generate_sets(model, task, prompts, seeds, 20, adapter).figures
        row |= complete_sets(model, task, prompts * seeds, 20, adapter).figures
        figures[key] = {**row, "seconds": round(seconds, 1)}
        write_text(path, json.dumps(figures, indent=2) + "\n")
        print(key, json.dumps(figures[key]), flush=True)
    return figures


def _fresh(folder: Path) -> Path:
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
            shares = [100 * figures[_key({**DEFAULT, axis: value})][name] for value in values]
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


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and plot")
    parser.add_argument("--task", choices=list(TASKS), default="film-storyboard")
    parser.add_argument("--prompts", type=int, default=8, help="held-out prompts")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per prompt")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    task = TASKS[args.task]
    plot(task, run(task, args.out, args.prompts, args.seeds), args.out / "sweep.png")


if __name__ == "__main__":
    main()
