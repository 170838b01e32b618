"""One text for all panels or one for each, one canvas or its panels alone, each as an adapter.

`python -m workshop.toyland.texts --out DIR --task film-storyboard` tunes adapters that differ in
`text` or `encode` alone, makes sets with each from the same prompts and noise, and sets their
figures side by side; it also says how far the two ways to encode lie apart. A run that was stopped
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import numpy as np
import torch

from iclora.adapter import Adapter
from iclora.errors import CaptionError
from iclora.evaluate.figures import Table
from iclora.evaluate.making import read_sets
from iclora.evaluate.metrics.base import Made
from iclora.evaluate.metrics.pixels import seam
from iclora.evaluate.setup import Arm, Case, Setup
from iclora.files import work_folder, write_text
from iclora.making.texts import checked_texts
from iclora.models import DiffusionModel, load_model
from iclora.sets.canvas import compose
from iclora.sets.caption import JointCaption
from iclora.sets.images import write_png
from iclora.sets.tokens import cells_of
from iclora.settings import SampleSettings, TextKind
from iclora.toyland.judge import read
from iclora.toyland.measuring import means, measure_arms, pictures, prompt_cases
from iclora.toyland.tasks import TASKS, Task, draw_set, draw_tuning_set, write_sets
from iclora.toyland.tuning import tune
from iclora.toyland.wording import traits_said, write_caption
from iclora.toyland.world import Canvas
from workshop.toyland.claims import pool
from workshop.toyland.figures import everything, sheet, unrelated

__all__ = ["KINDS", "apart", "leaked", "long_cases", "placed", "table"]

KINDS: dict[str, dict[str, Any]] = {
    "joint": {},
    "isolated": {"text": "isolated"},
    "alone": {"text": "alone"},
    "panels": {"encode": "panels"},
}
"""How each adapter is tuned, beside the settings that fit toyland. The first is the paper's."""


_LEAKED = "toyland leaked"
_SEAM = "pixels seam"
_SILENT = " a character is seen, an animal appears, a figure can be seen, a character appears, "
"""What a panel of characters reads as if nothing is said of it, about as long as a usual one."""


@contextmanager
def placed() -> Iterator[None]:
    """Let a panel's own words stand about where they stand in a joint caption.

    The panels before it are there with their markers and say nothing. An experiment, so not an
    option of iclora: it asks whether the base tells panels by where words stand.
    """
    real = JointCaption.texts

    def moved(caption: JointCaption, kind: TextKind) -> tuple[str, ...]:
        texts = real(caption, kind)
        if kind == "joint":
            return texts
        before = ["".join(m + _SILENT for m in caption.markers[:n]) for n in range(len(texts))]
        rows = zip(texts, caption.markers, before, strict=True)
        return tuple(text.replace(marker, first + marker) for text, marker, first in rows)

    with mock.patch.object(JointCaption, "texts", moved):
        yield


def apart(model: DiffusionModel, task: Task, count: int) -> dict[str, float]:
    """How far latents of panels that are encoded alone lie from those of their canvas.

    Args:
        count: sets that are encoded both ways.
    Returns: root mean squares over the canvas's own spread, of tokens at borders between panels
        and of all others.
    """
    squares: dict[str, list[float]] = {"at borders": [], "elsewhere": []}
    spread = []
    layout = task.small_recipe.canvas
    rows, columns = layout.height // model.grid, layout.width // model.grid
    for number in range(count):
        canvas, _ = draw_tuning_set(task, 0, number)
        panels = [panel.render() for panel in canvas.panels]
        whole = model.encode_image(np.asarray(compose(layout, panels))).view(rows, columns, -1)
        spread.append(float(whole.var()))
        for box, panel in zip(layout.boxes, panels, strict=True):
            down, across = cells_of(box, model.grid)
            seen = whole[down, across]
            alone = model.encode_image(np.asarray(panel.resize((box.width, box.height))))
            away = (alone.view(seen.shape) - seen).square().mean(-1)
            edge = torch.zeros(away.shape, dtype=torch.bool)
            edge[:1], edge[-1:] = box.top > 0, box.bottom < layout.height
            edge[:, :1] |= box.left > 0
            edge[:, -1:] |= box.right < layout.width
            squares["at borders"] += away[edge].tolist()
            squares["elsewhere"] += away[~edge].tolist()
    return {name: float(np.sqrt(np.mean(v) / np.mean(spread))) for name, v in squares.items() if v}


def long_caption(
    task: Task, rng: random.Random, canvas: Canvas, said: Sequence[Sequence[str]], times: int = 4
) -> str:
    """A caption that says all of every panel `times` times over, in other words each time."""
    recipe = task.small_recipe
    texts = [write_caption(rng, canvas, said, prefix=recipe.prefix).text for _ in range(times)]
    told = [recipe.parse(text) for text in texts]
    own = zip(*(t.words for t in told), strict=True)
    panels = [", ".join(text.rstrip(".") for text in words) + "." for words in own]
    return JointCaption.join(told[0].overview, panels, told[0].markers).render()


def long_cases(task: Task, count: int, seeds: int, related: bool = False) -> list[Case]:
    """Such captions, of panels that share nothing that is said, or what the task's panels share."""
    cases = []
    for number in range(count):
        rng = random.Random(f"long {task.recipe} {number}{' related' if related else ''}")
        if related:
            canvas, said = draw_set(task, rng, unseen=True)[0], everything(task)
        else:
            canvas, said = unrelated(task, rng)
        text = long_caption(task, rng, canvas, said)
        cases += [Case(f"long {number + 1}", text, 1000 * number + seed) for seed in range(seeds)]
    return cases


def write_long_sets(task: Task, folder: Path, count: int, seed: int) -> None:
    """A task's tuning sets with captions that are too long for one text."""
    write_sets(task, folder, count, seed, captions=False)
    for number in range(count):
        canvas, _ = draw_tuning_set(task, seed, number)
        rng = random.Random(f"long tuning {task.recipe} {seed} {number}")
        said = [(*task.stated, *task.says_fixed)] * len(canvas.panels)
        text = long_caption(task, rng, canvas, said)
        write_text(folder / f"{number + 1:04d}" / "caption.txt", text + "\n")


def leaked(said: Sequence[Mapping[str, str]], seen: Sequence[Mapping[str, str]]) -> list[bool]:
    """For each trait that a panel's words state and others' words state otherwise: True if the
    panel shows another's instead of its own."""
    found = []
    for number, (own, panel) in enumerate(zip(said, seen, strict=True)):
        for trait, value in own.items():
            others = {
                other[trait] for n, other in enumerate(said) if n != number and trait in other
            }
            if others - {value}:
                found.append(panel[trait] in others - {value})
    return found


def _leaks(found: Table, task: Task, setup: Setup, arm: Arm) -> None:
    """Enter the share of such traits in each set of an arm."""
    for case, made in zip(setup.cases, read_sets(setup, arm), strict=True):
        said = [traits_said(words, task.topic) for words in made.words]
        taken = [{t: own[t] for t in ("style", "weather") if t in own} for own in task.fixed]
        pairs = zip(made.panels, taken, strict=True)
        seen = [read(panel, task.topic, **own) for panel, own in pairs]
        marks = leaked([{t: v for t, v in s.items() if t in task.stated} for s in said], seen)
        if marks:
            share = float(np.mean(marks))
            found.add(_LEAKED, "shows another panel's trait", arm.name, case.key, case.name, share)


def _seams(found: Table, setup: Setup, arm: Arm) -> None:
    """Enter how sharp the borders between panels are in each set of an arm."""
    for case, made in zip(setup.cases, read_sets(setup, arm), strict=True):
        sharp = seam(np.asarray(made.composite), made.layout)
        if sharp is not None:
            found.add(_SEAM, "", arm.name, case.key, case.name, sharp)


def table(found: Table) -> str:
    """Figures as Markdown, with 95% intervals over prompts; a row an arm."""
    arms = list(found.rows["toyland same all"].values)
    stated = sorted({name for arm in arms for name in means(found, arm, "stated")})
    same = found.rows["toyland same all"]
    first = "joint" if "joint" in arms else arms[0]
    panels = [name for name in found.rows if name.startswith("panel ")]
    heads = ["arm", "same all", f"less {first}", *stated, *panels, "leaked", "seam", "diversity"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm in arms:
        rows = [*(f"toyland {name}" for name in stated), *panels]
        cells = [_said(found.rows[name].estimate(arm)) for name in rows]
        less = "" if arm == first else _said(same.difference(arm, first))
        cells = [_said(same.estimate(arm)), less, *cells]
        leak = _said(found.rows[_LEAKED].estimate(arm)) if _LEAKED in found.rows else ""
        sharp = _said(found.rows[_SEAM].estimate(arm), ".2f") if _SEAM in found.rows else ""
        spread = means(found, arm, "diversity").get("diversity")
        row = (arm, *cells, leak, sharp, "" if spread is None else f"{spread:.0%}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _by_panel(found: Table, task: Task, setup: Setup, arm: Arm) -> list[str]:
    """Enter what an arm's panels show of what they are told: all, and each. Returns: the rows."""
    names = ["all panels", *(f"panel {n}" for n in range(1, len(task.fixed) + 1))]
    for case, made in zip(setup.cases, read_sets(setup, arm), strict=True):
        marks = list(_shown(task, made))
        for name, own in zip(names, ([*chain(*marks)], *marks), strict=True):
            if own:
                found.add(name, "", arm.name, case.key, case.name, fmean(own))
    return [name for name in names if name in found.rows]


def _said(found: Any, form: str = ".0%") -> str:
    if found is None or found.low is None:
        return ""
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and pictures")
    parser.add_argument("--task", action="append", choices=list(TASKS), required=True)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="by default all")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3, help="sets made from each prompt")
    parser.add_argument("--runs", type=int, default=1, help="adapters of a kind, by tuning seed")
    parser.add_argument("--steps", type=int, default=300, help="steps an adapter is tuned for")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--base", action="store_true", help="also the base alone, read both ways")
    parser.add_argument("--long", action="store_true", help="also captions beyond the budget")
    parser.add_argument("--related", action="store_true", help="those of the task's own kind")
    parser.add_argument("--tune-long", action="store_true", help="tune on such captions as well")
    parser.add_argument("--placed", action="store_true", help="words where one text has them")
    parser.add_argument("--dtype", default="auto", help="of the base: fp32 or bf16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    if args.placed and any(TASKS[name].topic != "character" for name in args.task):
        parser.error("--placed knows what to say of characters alone")
    torch.set_num_threads(args.threads)
    for name in args.task:
        with placed() if args.placed else nullcontext():
            text = _measure(TASKS[name], args)
        write_text(args.out / name / "table.md", text)
        print(f"{name}\n{text}", flush=True)


def _measure(task: Task, args: argparse.Namespace) -> str:
    out, model = args.out / task.recipe, load_model("toyland", dtype=args.dtype)
    kinds = list(KINDS) if args.kind is None else args.kind
    arms = []
    if args.base:
        arms += [Arm(f"base, {kind}", own={"text": kind}) for kind in ("joint", "isolated")]
    for kind in kinds if args.runs else ():
        for run in range(args.runs):
            folder = out / f"{kind}-{run}"
            arms.append(
                Arm(f"{kind}, run {run + 1}", _adapter(model, task, folder, kind, run, args))
            )
    cases = prompt_cases(task, args.prompts, args.seeds)
    sampling = SampleSettings(steps=args.sampling_steps)
    setup, found = measure_arms(model, task, arms, cases, out / "sets", sampling)
    for arm in arms:
        write_png(out / f"{arm.folder}.png", sheet(pictures(setup, arm)[:24]))
    for arm in arms:
        _leaks(found, task, setup, arm)
        _seams(found, setup, arm)
        _by_panel(found, task, setup, arm)
    pool(found)
    write_text(out / "figures.json", json.dumps(found.to_json(arms[0].name)) + "\n")
    lines = [
        f"Latents of panels encoded alone lie {share:.1%} of the canvas's deviation away {where}."
        for where, share in apart(load_model("toyland", dtype="fp32"), task, 40).items()
    ]
    if args.long:
        name = "long-related" if args.related else "long"
        lines += ["", _beyond(model, task, [a for a in arms if _apart(a)], out / name, args)]
    return table(found) + "\n" + "\n".join(lines) + "\n"


def _apart(arm: Arm) -> bool:
    """True if the arm reads a text for each panel."""
    own = arm.own.get("text") or (arm.adapter.info.text if arm.adapter and arm.adapter.info else "")
    return own in ("isolated", "alone")


def _beyond(
    model: DiffusionModel, task: Task, arms: Sequence[Arm], out: Path, args: argparse.Namespace
) -> str:
    """What arms with isolated texts paint of captions that are too long for one text."""
    cases = long_cases(task, args.prompts, args.seeds, args.related)
    texts = list(dict.fromkeys(case.prompt for case in cases))
    counts = [model.count_tokens(text) for text in texts]
    refused = sum(_refused(model, task, text) for text in texts)
    setup, found = measure_arms(
        model, task, arms, cases, out, SampleSettings(steps=args.sampling_steps)
    )
    names = list(dict.fromkeys(n for arm in arms for n in _by_panel(found, task, setup, arm)))
    pool(found)
    lines = [
        f"Captions of {min(counts)} to {max(counts)} tokens, where {model.max_text_tokens} are "
        f"read: {refused} of {len(texts)} refused as one text. Of what they are told show:",
        "",
        f"| arm | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for arm_name in found.rows[names[0]].values:
        cells = [_said(found.rows[name].estimate(arm_name)) for name in names]
        lines.append(f"| {' | '.join((arm_name, *cells))} |")
    write_text(out.with_suffix(".json"), json.dumps(found.to_json(arms[0].name)) + "\n")
    write_png(out.with_suffix(".png"), sheet(pictures(setup, arms[-1])[:24]))
    return "\n".join(lines)


def _refused(model: DiffusionModel, task: Task, text: str) -> bool:
    try:
        checked_texts(model, task.small_recipe, text, "joint")
    except CaptionError:
        return True
    return False


def _shown(task: Task, made: Made) -> Iterator[list[bool]]:
    """For each panel and each trait that its words state: True if it shows it."""
    for words, panel, fixed in zip(made.words, made.panels, task.fixed, strict=True):
        said = traits_said(words, task.topic)
        taken = {t: fixed[t] for t in ("style", "weather") if t in fixed}
        seen = read(panel, task.topic, **taken)
        yield [seen[trait] == value for trait, value in said.items()]


def _adapter(
    model: DiffusionModel, task: Task, folder: Path, kind: str, seed: int, args: argparse.Namespace
) -> Adapter:
    """The adapter of this kind and tuning seed: read if it was tuned before."""
    file = folder / "run" / "adapter.safetensors"
    if file.is_file():
        return Adapter.load(file)
    if args.tune_long and not (folder / "sets").exists():
        with work_folder(folder / "sets") as work:
            write_long_sets(task, work, 40, seed)
    adapter, seconds = tune(model, task, folder, steps=args.steps, seed=seed, **KINDS[kind])
    print(f"{task.recipe}: {kind}, run {seed + 1} tuned in {seconds:.0f} s", flush=True)
    return adapter


if __name__ == "__main__":
    main()
