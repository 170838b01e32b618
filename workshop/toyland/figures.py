"""The figures of the embedded base: `python -m workshop.toyland.figures --out DIR`.

For every task: the share of what it is told that the base paints, how often its panels agree
without being told, the same with an adapter tuned on a few sets, and what is carried over from a
given panel. All of it goes through `iclora.train` and `iclora.evaluate`, as a user's own work does.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iclora.evaluate.setup import Arm, Case
from iclora.files import write_text
from iclora.models import load_model
from iclora.sets.images import write_png
from iclora.settings import SampleSettings
from iclora.toyland.measuring import given_cases, means, measure_arms, pictures, prompt_cases
from iclora.toyland.tasks import TASKS, Task, draw_set
from iclora.toyland.tuning import tune
from iclora.toyland.wording import write_caption
from iclora.toyland.world import TOPICS, Canvas, Panel

__all__ = ["everything", "full_cases", "sheet", "table", "unrelated"]


def unrelated(task: Task, rng: random.Random) -> tuple[Canvas, list[list[str]]]:
    """Panels that have nothing to do with each other, and the traits their words can state."""
    canvas, _ = draw_set(task, rng)
    # Identities of their own, so that no panel can be got right from another.
    others = [draw_set(task, rng)[0].panels[i].traits for i in range(len(canvas.panels))]
    panels = [
        Panel(p.topic, {**o, **f}, p.seed)
        for p, o, f in zip(canvas.panels, others, task.fixed, strict=True)
    ]
    return Canvas(canvas.arrangement, tuple(panels)), everything(task)


def everything(task: Task) -> list[list[str]]:
    """All traits that the words of each panel can state."""
    # A picture is flat and clear unless its words say otherwise.
    return [
        [t for t in TOPICS[task.topic] if fixed.get(t) not in ("flat", "clear")]
        for fixed in task.fixed
    ]


def full_cases(task: Task, count: int) -> list[Case]:
    """Captions that say everything of panels which have nothing to do with each other."""
    cases = []
    for number in range(count):
        rng = random.Random(f"full {task.recipe} {number}")
        mixed, said = unrelated(task, rng)
        caption = write_caption(rng, mixed, said, prefix=task.small_recipe.prefix)
        cases.append(Case(f"caption {number + 1}", caption.text, number))
    return cases


def sheet(pictures: Sequence[Image.Image], across: int = 12, up: int = 2) -> Image.Image:
    """Composites of one size beside each other."""
    gap = 6
    width, height = pictures[0].size
    rows = -(-len(pictures) // across)
    page = Image.new("RGB", (across * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        page.paste(picture, (gap + i % across * (width + gap), gap + i // across * (height + gap)))
    return page.resize((page.width * up, page.height * up), Image.Resampling.NEAREST)


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table: a row for each task and figure, base beside adapter."""
    lines = ["| task | figure | base | adapter |", "|---|---|---|---|"]
    for task, row in figures.items():
        full = row["base full captions"]
        told = ", ".join(f"{name.split()[-1]} {share:.0%}" for name, share in full.items())
        lines.append(f"| {task} | painted as told, full captions: {told} | | |")
        for kind in ("", " completing"):
            plain, tuned = row[f"base{kind}"], row.get(f"adapter{kind}", {})
            lines += [
                f"| {task} | {name} | {share:.0%} | {f'{tuned[name]:.0%}' if tuned else ''} |"
                for name, share in plain.items()
            ]
        if "tuning seconds" in row:
            lines.append(f"| {task} | seconds of tuning | | {row['tuning seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="toyland", help="the base to measure")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and pictures")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="by default all")
    parser.add_argument("--prompts", type=int, default=16, help="held-out prompts per task")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per prompt")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--sets", type=int, default=40, help="sets an adapter is tuned on")
    parser.add_argument("--steps", type=int, default=300, help="steps an adapter is tuned for")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="auto", help="of the base while tuning: fp32 or bf16")
    parser.add_argument("--base-only", action="store_true", help="leave the adapter out")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    figures: dict[str, dict[str, Any]] = {}
    for name in args.task or list(TASKS):
        figures[name] = _measure(TASKS[name], args)
        write_text(args.out / "figures.json", json.dumps(figures, indent=2) + "\n")
    write_text(args.out / "table.md", table(figures))


def _measure(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one task by arm and kind of case."""
    out, model = args.out / task.recipe, load_model(args.base)
    sampling = SampleSettings(steps=args.sampling_steps)
    count = args.prompts * args.seeds
    row: dict[str, Any] = {}

    def measure(arm: Arm, kind: str, cases: Sequence[Case], *begins: str) -> None:
        folder = out / f"sets{kind.replace(' ', '-')}"
        setup, found = measure_arms(model, task, [arm], cases, folder, sampling)
        what = f"{arm.name}{kind}"
        row[what] = means(found, arm.name, *begins)
        write_png(out / f"{what.replace(' ', '-')}.png", sheet(pictures(setup, arm)))
        print(task.recipe, what, json.dumps(row[what]), flush=True)

    def measure_both(arm: Arm) -> None:
        prompts = prompt_cases(task, args.prompts, args.seeds)
        measure(arm, "", prompts, "same", "stated", "diversity")
        measure(arm, " completing", given_cases(task, count), "carried")

    base = Arm("base")
    measure(base, " full captions", full_cases(task, count), "stated")
    measure_both(base)
    if not args.base_only:
        adapter, seconds = tune(
            load_model(args.base, dtype=args.dtype),
            task,
            out / "tuning",
            sets=args.sets,
            steps=args.steps,
            lr=args.lr,
            rank=args.rank,
            alpha=float(args.rank),
            batch=args.batch,
            micro_batch=args.batch,
        )
        row["tuning seconds"] = round(seconds, 1)
        measure_both(Arm("adapter", adapter))
    return row


if __name__ == "__main__":
    main()
