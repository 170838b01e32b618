"""What completing carries over, mode by mode: `python -m workshop.toyland.completing --out DIR`.

For each recipe three adapters are tuned on the same sets: as the paper does, with panels given in
half of the samples, and with given panels attending to themselves alone. Each is then asked to
complete sets from a true first panel of an identity held out of tuning, and to generate sets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iclora.adapter import Adapter
from iclora.evaluate.intervals import Estimate, bootstrap, compare
from iclora.files import write_text
from iclora.models import load_model
from iclora.sets.images import write_png
from iclora.toyland.evaluate import Score, complete_sets, generate_sets, sheet, tune
from iclora.toyland.tasks import TASKS

__all__ = ["ADAPTERS", "ARMS", "MAKING", "Arm"]

ADAPTERS: dict[str, dict[str, Any]] = {
    "paper": {},
    "dual": {"conditional": 0.5},
    "isolated": {"conditional": 0.5, "isolate_given": True},
}
"""How each adapter is tuned, beside the settings that fit toyland."""


@dataclass(frozen=True)
class Arm:
    """A way to complete sets, or to make them.

    Attributes:
        adapter: key of `ADAPTERS`, "" for the base alone. how: mode and its settings.
    """

    adapter: str
    how: Mapping[str, Any]


ARMS: dict[str, Arm] = {
    "base + sdedit": Arm("", {"mode": "sdedit"}),
    "adapter + sdedit": Arm("paper", {"mode": "sdedit"}),
    "adapter + resample": Arm("paper", {"mode": "resample"}),
    "adapter + boost": Arm("paper", {"mode": "boost"}),
    "adapter + boost and resample": Arm("paper", {"mode": "boost", "resample": 3}),
    "dual adapter + sdedit": Arm("dual", {"mode": "sdedit"}),
    "dual adapter + clean": Arm("dual", {"mode": "clean"}),
    "dual adapter + clean, resample 1": Arm("dual", {"mode": "clean", "resample": 1}),
    "dual adapter + clean, cached": Arm("isolated", {"mode": "clean"}),
}

MAKING: dict[str, Arm] = {
    "base": Arm("", {}),
    "base, resample 3": Arm("", {"resample": 3}),
    "paper's adapter": Arm("paper", {}),
    "paper's adapter, resample 1": Arm("paper", {"resample": 1}),
    "paper's adapter, resample 3": Arm("paper", {"resample": 3}),
    "dual adapter": Arm("dual", {}),
    "dual adapter, resample 1": Arm("dual", {"resample": 1}),
    "isolated adapter": Arm("isolated", {}),
}


_SEEDS = 3
"""Sets made from each prompt."""


def estimate(score: Score, figure: str, seeds: int = 1) -> Estimate:
    """A figure's mean over sets, with its interval; of `seeds` sets in a row one was the prompt."""
    rows = [row[figure] for row in score.rows]
    return bootstrap(rows, groups=[n // seeds for n in range(len(rows))])


def difference(one: Score, other: Score, figure: str, seeds: int = 1) -> Estimate | None:
    """`other` minus `one`, set by set: both were asked for the same ones."""
    a, b = ({str(n): row[figure] for n, row in enumerate(s.rows)} for s in (one, other))
    return compare(a, b, groups={name: int(name) // seeds for name in a})


def _said(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.mean:.0%} ({found.low:.0%} to {found.high:.0%})"


def table(completed: Mapping[str, Score], generated: Mapping[str, Score]) -> str:
    """One recipe's figures as Markdown, with 95% intervals."""
    parts = (
        _completing(completed) if completed else [],
        _generating(generated) if generated else [],
    )
    return "\n".join("\n".join(lines) + "\n" for lines in parts if lines)


def _completing(scores: Mapping[str, Score]) -> list[str]:
    figures = [name for score in scores.values() for name in score.figures]
    traits = [n for n in dict.fromkeys(figures) if n not in ("carried all", "seconds")]
    heads = [name.removeprefix("carried ") for name in traits]
    lines = [
        "| completing | all | less adapter + sdedit | " + " | ".join(heads) + " | s a set |",
        "|---|---|---|" + "---|" * len(heads) + "---|",
    ]
    plain = scores.get("adapter + sdedit")
    for name, score in scores.items():
        gain = difference(plain, score, "carried all") if plain and plain is not score else None
        cells = [_said(estimate(score, "carried all")), _said(gain)]
        cells += [f"{score.figures[trait]:.0%}" for trait in traits]
        lines.append(f"| {name} | {' | '.join(cells)} | {score.figures['seconds']:.2f} |")
    return lines


def _generating(scores: Mapping[str, Score]) -> list[str]:
    lines = [
        "| generating | same all | less paper's adapter | stated | diversity |",
        "|---|---|---|---|---|",
    ]
    plain = scores.get("paper's adapter")
    for name, score in scores.items():
        gain = (
            difference(plain, score, "same all", _SEEDS) if plain and plain is not score else None
        )
        stated = [v for k, v in score.figures.items() if k.startswith("stated")]
        told = f"{min(stated):.0%}" if stated else ""
        lines.append(
            f"| {name} | {_said(estimate(score, 'same all', _SEEDS))} | {_said(gain)} "
            f"| {told} | {score.figures['diversity']:.0%} |"
        )
    return lines


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and pictures")
    parser.add_argument("--task", action="append", choices=list(TASKS), required=True)
    parser.add_argument("--arm", action="append", choices=[*ARMS, *MAKING], help="by default all")
    parser.add_argument("--count", type=int, default=200, help="completions an arm")
    parser.add_argument("--prompts", type=int, default=24, help="prompts to generate from, 3 seeds")
    parser.add_argument("--steps", type=int, default=300, help="steps an adapter is tuned for")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--dtype", default="auto", help="of the base: fp32 or bf16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    for name in args.task:
        text = _measure(name, args)
        write_text(args.out / name / "table.md", text)
        print(f"{name}\n{text}", flush=True)


def _measure(name: str, args: argparse.Namespace) -> str:
    task, out = TASKS[name], args.out / name
    model = load_model("toyland", dtype=args.dtype)
    adapters: dict[str, Adapter | None] = {"": None}
    completed: dict[str, Score] = {}
    generated: dict[str, Score] = {}

    def adapter(kind: str) -> Adapter | None:
        if kind not in adapters:
            file = out / kind / "run" / "adapter.safetensors"
            if file.is_file():
                adapters[kind] = Adapter.load(file)
            else:
                adapters[kind], seconds = tune(
                    model, task, out / kind, steps=args.steps, **ADAPTERS[kind]
                )
                print(f"{name}: {kind} tuned in {seconds:.0f} s", flush=True)
        return adapters[kind]

    def keep(where: dict[str, Score], arm: str, score: Score, began: float, count: int) -> None:
        score.figures["seconds"] = round((time.monotonic() - began) / count, 3)
        where[arm] = score
        write_png(out / f"{arm}.png".replace(" ", "-"), sheet(score.pictures[:24]))
        kept = {
            f"{n} {'completing' if w is completed else 'generating'}": s.rows
            for w in (completed, generated)
            for n, s in w.items()
        }
        write_text(out / "rows.json", json.dumps(kept) + "\n")
        print(name, arm, json.dumps(score.figures), flush=True)

    wanted = args.arm or [*ARMS, *MAKING]
    for arm in wanted:
        way, completes = (ARMS | MAKING)[arm], arm in ARMS
        tuned = adapter(way.adapter)
        began = time.monotonic()
        if completes:
            score = complete_sets(model, task, args.count, args.sampling_steps, tuned, **way.how)
            keep(completed, arm, score, began, args.count)
        else:
            score = generate_sets(
                model, task, args.prompts, _SEEDS, args.sampling_steps, tuned, **way.how
            )
            keep(generated, arm, score, began, _SEEDS * args.prompts)
    return table(completed, generated)


if __name__ == "__main__":
    main()
