"""What the paper claims, measured on toyland: `python -m workshop.toyland.claims --out DIR`.

told       the base has the ability already: the base as it is, the base told that panels share an
           identity, and adapters not told
sets       a LoRA on 20 to 100 sets suffices: adapters tuned on as many sets as `--sets` names and,
           with `--full`, bases of which every weight was tuned on them
knowledge  it keeps the base's knowledge: prompts of single pictures and of the other recipes, by
           the base and by adapters at strengths 0, 0.5 and 1, from the same noise (and by fully
           tuned bases)

Every figure has a 95% interval over prompts, and stands once for each tuning seed, and once as
their mean. What DIR has is
not made again, so a measurement that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from iclora.adapter import Adapter
from iclora.evaluate.figures import Table, measure
from iclora.evaluate.intervals import Estimate
from iclora.evaluate.knowledge import STRENGTHS, at_strengths, cases_from_outside, single
from iclora.evaluate.making import make_sets, read_sets
from iclora.evaluate.metrics.base import Made
from iclora.evaluate.metrics.pixels import Pixels
from iclora.evaluate.report import write_report
from iclora.evaluate.setup import Arm, Case, Setup, set_up
from iclora.files import work_folder, write_text
from iclora.models import load_model
from iclora.sets.caption import JointCaption
from iclora.sets.compose import compose_dataset
from iclora.sets.dataset import open_dataset
from iclora.settings import SampleSettings
from iclora.toyland.drawing import SIZE
from iclora.toyland.measuring import prompt_cases
from iclora.toyland.metric import Toyland
from iclora.toyland.tasks import TASKS, Task, draw_set, write_sets
from iclora.toyland.tuning import tune, tuning_config
from iclora.toyland.wording import draw_caption
from iclora.toyland.world import draw_canvas
from iclora.train.run import train

__all__ = ["CLAIMS", "CUES", "outside_cases", "pool", "table", "told_cases"]

CUES = {
    "character": "the same character in every picture",
    "emblem": "the same logo each time",
    "letter": "all in the same typeface",
    "slide": "all from the same deck",
    "room": "all in the same home",
}
"""How the base was told in pre-training that panels share an identity."""
_RUN = re.compile(r", run \d+")
_TOGETHER = 24
"""Sets made in one batch."""
_FIGURES = {
    "told": ("same all", "as told", "diversity"),
    "sets": ("same all", "as told", "diversity"),
    "knowledge": ("as told", "as the first", "distance", "diversity"),
}
CLAIMS = tuple(_FIGURES)


def told_cases(task: Task, cases: Iterable[Case]) -> list[Case]:
    """The same cases, whose overviews also say that panels share an identity."""
    recipe, found = task.small_recipe, []
    for case in cases:
        joint = recipe.parse(case.prompt)
        head = joint.overview.rstrip()
        text = f"{head[:-1]}, {CUES[task.topic]}{head[-1]} "
        told = JointCaption(text, joint.panels, joint.markers).render()
        found.append(replace(case, prompt=told))
    return found


def outside_cases(task: Task, pictures: int, each: int, seeds: int) -> list[Case]:
    """Prompts of single pictures that state something, and of every other recipe.

    Args:
        pictures: prompts of single pictures.
        each: prompts of each other recipe, of identities held out of tuning.
    """
    rng = random.Random("single pictures")
    texts: list[str] = []
    while len(texts) < pictures:
        caption = draw_caption(rng, draw_canvas(rng, None, "single"))
        if any(caption.said) and caption.text not in texts:
            texts.append(caption.text)
    prompts = {"single-picture": (single((SIZE, SIZE)), texts)}
    for other in TASKS.values():
        if other.recipe != task.recipe and each:
            own = [
                draw_set(other, random.Random(f"outside {other.recipe} {n}"), unseen=True)[1].text
                for n in range(each)
            ]
            prompts[other.recipe] = other.small_recipe, own
    return cases_from_outside(prompts, range(seeds))


@dataclass(frozen=True)
class _Part:
    """Arms of one base that are asked for the same words."""

    arms: Sequence[Arm]
    cases: Sequence[Case]
    base: str = "toyland"


def _measured(
    task: Task, parts: Sequence[_Part], out: Path, settings: SampleSettings
) -> tuple[list[Setup], Table]:
    """Make and measure the sets of all parts, whose cases differ in their words at most."""
    setups = []
    sets: dict[str, Callable[[], Iterable[Made]]] = {}
    for part in parts:
        model = load_model(part.base)
        setup = set_up(model, task.small_recipe, part.arms, part.cases, out, settings)
        make_sets(model, setup, together=_TOGETHER)
        setups.append(setup)
        sets |= {arm.name: partial(read_sets, setup, arm) for arm in part.arms}
    found = measure([Toyland(), Pixels()], parts[0].cases, sets, {}, "")
    pool(found)
    return setups, found


def pool(found: Table) -> dict[str, list[str]]:
    """Enter the mean of tuning runs, set by set, as an arm beside those of each run.

    Arms are runs of one if their names differ in ", run N" alone. So the mean can be set against
    any arm, with intervals over prompts; how far runs differ is seen in their own rows.

    Returns: the arms that each new one is the mean of; none where there is one run.
    """
    runs: dict[str, list[str]] = {}
    for arm in dict.fromkeys(arm for row in found.rows.values() for arm in row.values):
        runs.setdefault(_RUN.sub("", arm), []).append(arm)
    runs = {name: arms for name, arms in runs.items() if len(arms) > 1}
    for row in found.rows.values():
        for name, arms in runs.items():
            first, *others = (row.values.get(arm, {}) for arm in arms)
            shared = [key for key in first if all(key in own for own in others)]
            if shared:
                row.values[name] = {k: fmean(own[k] for own in (first, *others)) for k in shared}
    return runs


def table(found: Table, figures: Sequence[str]) -> str:
    """Figures as Markdown, an arm a line, with 95% intervals and differences to the first arm."""
    rows = {
        name: found.rows[f"{kind} {name}"]
        for name in figures
        for kind in ("toyland", "pixels")
        if f"{kind} {name}" in found.rows
    }
    arms = list(dict.fromkeys(arm for row in rows.values() for arm in row.values))
    main = next(iter(rows))
    lines = [
        f"| arm | {' | '.join(rows)} | {main} less {arms[0]} |",
        "|---|" + "---|" * (len(rows) + 1),
    ]
    for arm in arms:
        cells = [_said(row.estimate(arm), name == "distance") for name, row in rows.items()]
        less = rows[main].difference(arm, arms[0]) if arm != arms[0] else None
        lines.append(f"| {arm} | {' | '.join([*cells, _said(less)])} |")
    counts = {row.estimate(arm).count for row in (rows[main],) for arm in row.values}  # type: ignore[union-attr]
    prompts = len(set(rows[main].groups.values()))
    lines.append(f"\n{max(counts)} sets an arm from {prompts} prompts.")
    return "\n".join(lines) + "\n"


def _said(found: Estimate | None, plain: bool = False) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return _shown(found.mean, plain)
    low, high = _shown(found.low, plain), _shown(found.high, plain)
    return f"{_shown(found.mean, plain)} ({low} to {high})"


def _shown(value: float, plain: bool) -> str:
    return f"{value:.2f}" if plain else f"{100 * value:.1f}%"


# -- the command ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for sets and figures")
    parser.add_argument("--claim", action="append", choices=CLAIMS, help="by default all")
    parser.add_argument("--task", choices=list(TASKS), default="film-storyboard")
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts of the task")
    parser.add_argument("--pictures", type=int, default=60, help="prompts of single pictures")
    parser.add_argument("--each", type=int, default=20, help="prompts of each other recipe")
    parser.add_argument("--seeds", type=int, default=2, help="seeds per prompt")
    parser.add_argument("--sets", type=int, nargs="+", default=[20, 40, 100], help="tuned on")
    parser.add_argument("--all-sets", action="store_true", help="for each claim, not 40 alone")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--runs", type=int, nargs="+", default=[0, 1, 2], help="tuning seeds")
    parser.add_argument("--full", type=int, nargs="*", help="sets to tune every weight on")
    parser.add_argument("--full-lr", type=float, default=1e-4, help="learning rate for that")
    parser.add_argument("--steps", type=int, default=300, help="steps an adapter is tuned for")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--dtype", default="auto", help="of the base while tuning: fp32 or bf16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for claim in args.claim or CLAIMS:
        text = _claim(claim, TASKS[args.task], args)
        write_text(args.out / args.task / f"{claim}.md", text)
        print(f"{args.task}: {claim}\n{text}", flush=True)


def _claim(claim: str, task: Task, args: argparse.Namespace) -> str:
    out, usual = args.out / task.recipe, 40
    cases = prompt_cases(task, args.prompts, args.seeds)
    base = Arm("base")
    every = claim == "sets" or args.all_sets
    counts = args.sets if every else [usual if usual in args.sets else args.sets[0]]
    tuned = [_adapter(task, out, count, run, args) for count in counts for run in args.runs]
    if claim == "told":
        told = _Part([Arm("base, told")], told_cases(task, cases))
        parts = [_Part([base], cases), told, _Part(tuned, cases)]
    elif claim == "sets":
        parts = [_Part([base, *tuned], cases)]
    else:
        outside = outside_cases(task, args.pictures, args.each, args.seeds)
        parts = [_Part([base, *at_strengths(tuned, args.strengths)], outside)]
    if claim != "told":
        parts += [
            _Part([Arm(name)], parts[0].cases, str(folder))
            for name, folder in (
                _whole(task, out, n, run, args) for n in (args.full or ()) for run in args.runs
            )
        ]
    settings = SampleSettings(steps=args.sampling_steps)
    # The claims of one task share its sets; those of other words lie apart.
    setups, found = _measured(
        task, parts, out / ("outside" if claim == "knowledge" else "inside"), settings
    )
    write_text(out / f"{claim}.json", json.dumps(found.to_json(base.name)) + "\n")
    texts = [table(found, _FIGURES[claim])]
    if claim == "knowledge":
        write_report(setups[0], found, _facts(setups[0]))
        recipes = setups[0].recipes
        for recipe in recipes if len(recipes) > 1 else ():
            own = {
                row.name.removesuffix(f", {recipe.name}"): row
                for row in found.ordered()
                if row.recipe == recipe.name
            }
            texts.append(f"{recipe.name}\n\n{table(Table(own), _FIGURES[claim])}")
    return "\n".join(texts)


def _facts(setup: Setup) -> Mapping[str, Any]:
    request = setup.requests[setup.arms[0].name][0]
    names = ", ".join(recipe.name for recipe in setup.recipes)
    return {"base": request.base, "recipe": names, "steps": request.steps}


def _adapter(task: Task, out: Path, sets: int, run: int, args: argparse.Namespace) -> Arm:
    """The adapter tuned on so many sets with this seed: read if it was tuned before."""
    name = f"{sets} sets, run {run}"
    folder = out / "tuning" / f"sets-{sets}-run-{run}-steps-{args.steps}"
    file = folder / "run" / "adapter.safetensors"
    if file.is_file():
        return Arm(name, Adapter.load(file))
    model = load_model("toyland", dtype=args.dtype)
    adapter, seconds = tune(model, task, folder, sets=sets, seed=run, steps=args.steps)
    print(f"{task.recipe}: tuned on {name} in {seconds:.0f} s", flush=True)
    return Arm(name, adapter)


def _whole(
    task: Task, out: Path, sets: int, run: int, args: argparse.Namespace
) -> tuple[str, Path]:
    """The base of which every weight was tuned on so many sets with this seed."""
    folder = out / "tuning" / f"full-{sets}-run-{run}-steps-{args.steps}"
    if not (folder / "run" / "base").is_dir():
        if not (folder / "data").is_dir():
            if not (folder / "sets").is_dir():
                with work_folder(folder / "sets") as work:
                    write_sets(task, work, sets, run)
            compose_dataset(open_dataset(folder / "sets"), folder / "data")
        how = {"steps": args.steps, "seed": run, "lr": args.full_lr, "save_dtype": "fp32"}
        own = {"targets": "full", "dtype": "fp32"}
        config = tuning_config("toyland", task, folder / "data", folder / "run", **how, **own)
        train(config, load_model("toyland", dtype="fp32"))
        print(f"{task.recipe}: every weight tuned on {sets} sets, run {run}", flush=True)
    return f"full, {sets} sets, run {run}", folder / "run" / "base"


if __name__ == "__main__":
    main()
