"""What completing carries over, mode by mode: `python -m workshop.toyland.completing --out DIR`.

For each recipe three adapters are tuned on the same sets: as the paper does, with panels given in
half of the samples, and with given panels attending to themselves alone. Each is then asked to
complete sets from a true first panel of an identity held out of tuning, and to generate sets. A
run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from iclora.adapter import Adapter
from iclora.evaluate.figures import Table
from iclora.evaluate.intervals import Estimate
from iclora.evaluate.setup import Arm, Case
from iclora.files import write_text
from iclora.models import DiffusionModel, load_model, packed, passes
from iclora.models.base import Given
from iclora.models.flux import model as flux
from iclora.sets.images import write_png
from iclora.settings import Mode, SampleSettings
from iclora.toyland.measuring import given_cases, means, measure_arms, pictures, prompt_cases
from iclora.toyland.tasks import TASKS, Task
from iclora.toyland.tuning import tune
from workshop.toyland.figures import sheet

__all__ = ["ADAPTERS", "ARMS", "MAKING", "given_axis", "table"]

ADAPTERS: dict[str, dict[str, Any]] = {
    "paper": {},
    "dual": {"conditional": 0.5},
    "isolated": {"conditional": 0.5, "isolate_given": True},
    "texts": {"conditional": 0.5, "text": "isolated"},
}
"""How each adapter is tuned, beside the settings that fit toyland."""

_Way = tuple[str, Mode | None, Mapping[str, Any]]
"""Key of `ADAPTERS`, "" for the base alone; the mode; the arm's own settings."""

ARMS: dict[str, _Way] = {
    "base + sdedit": ("", "sdedit", {}),
    "adapter + sdedit": ("paper", "sdedit", {}),
    "adapter + resample": ("paper", "resample", {}),
    "adapter + boost": ("paper", "boost", {}),
    "adapter + boost and resample": ("paper", "boost", {"resample": 3}),
    "dual adapter + sdedit": ("dual", "sdedit", {}),
    "dual adapter + clean": ("dual", "clean", {}),
    "dual adapter + clean, resample 1": ("dual", "clean", {"resample": 1}),
    "dual adapter + clean, cached": ("isolated", "clean", {}),
    "dual adapter + clean, isolated texts": ("texts", "clean", {}),
    "base + reference": ("", "reference", {}),
    "adapter + reference": ("paper", "reference", {}),
}
"""Ways to complete sets; those by reference need a base that reads references."""

MAKING: dict[str, _Way] = {
    "base": ("", None, {}),
    "base, resample 3": ("", None, {"resample": 3}),
    "paper's adapter": ("paper", None, {}),
    "paper's adapter, resample 1": ("paper", None, {"resample": 1}),
    "paper's adapter, resample 3": ("paper", None, {"resample": 3}),
    "dual adapter": ("dual", None, {}),
    "dual adapter, resample 1": ("dual", None, {"resample": 1}),
    "isolated adapter": ("isolated", None, {}),
}
"""Ways to make sets from words."""

_SEEDS = 3
"""Sets made from each prompt."""


@contextmanager
def given_axis() -> Iterator[None]:
    """Put given tokens on an axis of their own, at their rows and columns.

    In FLUX.2 at 10 of the axis that counts pictures, where its first reference stands; in FLUX.1
    at 1 of the first axis of position ids, which is 0 everywhere. An experiment, so not an option
    of iclora.
    """

    def moving(to: float) -> Any:
        def apart(z: Tensor, ids: Tensor, sigma: Tensor, given: Given | None, panels: Any) -> Any:
            found = passes.placed(z, ids, sigma, given, panels)
            if given is None or not given.clean or given.cache:
                return found
            # Given tokens stand last.
            moved = found.position_ids.clone()
            moved[..., -given.count :, 0] = to
            return found._replace(position_ids=moved)

        return apart

    of_flux, of_flux2 = (
        mock.patch.object(module, "placed", moving(to)) for module, to in ((flux, 1), (packed, 10))
    )
    with of_flux, of_flux2:
        yield


def table(completed: Table | None, generated: Table | None) -> str:
    """One recipe's figures as Markdown, with 95% intervals."""
    parts = (
        _completing(completed) if completed else [],
        _generating(generated) if generated else [],
    )
    return "\n".join("\n".join(lines) + "\n" for lines in parts if lines)


def _compared(found: Table, figure: str, arm: str, first: str) -> list[str]:
    """The cells of one arm: the figure, and its difference to another arm."""
    row = found.rows[f"toyland {figure}"]
    less = row.difference(arm, first) if arm != first and first in row.values else None
    return [_said(row.estimate(arm)), _said(less)]


def _said(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.mean:.0%} ({found.low:.0%} to {found.high:.0%})"


def _completing(found: Table) -> list[str]:
    arms = list(found.rows["toyland carried all"].values)
    traits = [name for name in means(found, arms[0], "carried") if name != "carried all"]
    heads = [name.removeprefix("carried ") for name in traits]
    lines = [
        "| completing | all | less adapter + sdedit | " + " | ".join(heads) + " | s a set |",
        "|---|---|---|" + "---|" * len(heads) + "---|",
    ]
    for arm in arms:
        cells = _compared(found, "carried all", arm, "adapter + sdedit")
        shares = means(found, arm, "carried")
        cells += [f"{shares[trait]:.0%}" for trait in traits]
        seconds = found.rows["seconds"].estimate(arm) if "seconds" in found.rows else None
        lines.append(
            f"| {arm} | {' | '.join(cells)} | {f'{seconds.mean:.2f}' if seconds else ''} |"
        )
    return lines


def _generating(found: Table) -> list[str]:
    lines = [
        "| generating | same all | less paper's adapter | stated | diversity |",
        "|---|---|---|---|---|",
    ]
    for arm in found.rows["toyland same all"].values:
        cells = _compared(found, "same all", arm, "paper's adapter")
        stated = means(found, arm, "stated").values()
        spread = means(found, arm, "diversity")["diversity"]
        told = f"{min(stated):.0%}" if stated else ""
        lines.append(f"| {arm} | {' | '.join(cells)} | {told} | {spread:.0%} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and pictures")
    parser.add_argument("--base", default="toyland", help="the base to measure")
    parser.add_argument("--task", action="append", choices=list(TASKS), required=True)
    parser.add_argument("--arm", action="append", choices=[*ARMS, *MAKING], help="by default all")
    parser.add_argument("--count", type=int, default=200, help="completions an arm")
    parser.add_argument("--prompts", type=int, default=24, help="prompts to generate from, 3 seeds")
    parser.add_argument("--steps", type=int, default=300, help="steps an adapter is tuned for")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--given-axis", action="store_true", help="given tokens on their own axis")
    parser.add_argument("--dtype", default="auto", help="of the base: fp32 or bf16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for name in args.task:
        with given_axis() if args.given_axis else nullcontext():
            text = _measure(TASKS[name], args)
        write_text(args.out / name / "table.md", text)
        print(f"{name}\n{text}", flush=True)


def _measure(task: Task, args: argparse.Namespace) -> str:
    out, model = args.out / task.recipe, load_model(args.base, dtype=args.dtype)
    reads = model.reads_references
    wanted = args.arm or [
        name for name, (_, mode, _) in (ARMS | MAKING).items() if reads or mode != "reference"
    ]
    adapters: dict[str, Adapter | None] = {"": None}
    for arm in wanted:
        kind = (ARMS | MAKING)[arm][0]
        if kind not in adapters:
            adapters[kind] = _adapter(model, task, out / kind, args.steps, kind)
    found: dict[str, Table] = {}

    def measure(what: str, ways: Mapping[str, _Way], cases: list[Case], first: str) -> None:
        arms = [
            Arm(name, adapters[kind], mode, own)
            for name, (kind, mode, own) in ways.items()
            if name in wanted
        ]
        if not arms:
            return
        sampling = SampleSettings(steps=args.sampling_steps)
        setup, found[what] = measure_arms(model, task, arms, cases, out / what, sampling)
        write_text(out / f"{what}.json", json.dumps(found[what].to_json(first)) + "\n")
        for arm in arms:
            write_png(out / f"{arm.folder}.png", sheet(pictures(setup, arm)[:24]))
            print(task.recipe, what, arm.name, json.dumps(means(found[what], arm.name)), flush=True)

    measure("completing", ARMS, given_cases(task, args.count), "adapter + sdedit")
    measure("generating", MAKING, prompt_cases(task, args.prompts, _SEEDS), "paper's adapter")
    return table(found.get("completing"), found.get("generating"))


def _adapter(model: DiffusionModel, task: Task, folder: Path, steps: int, kind: str) -> Adapter:
    """The adapter of this kind: read if it was tuned before."""
    file = folder / "run" / "adapter.safetensors"
    if file.is_file():
        return Adapter.load(file)
    adapter, seconds = tune(model, task, folder, steps=steps, **ADAPTERS[kind])
    print(f"{task.recipe}: {kind} tuned in {seconds:.0f} s", flush=True)
    return adapter


if __name__ == "__main__":
    main()
