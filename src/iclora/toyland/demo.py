"""The whole method on the embedded base, judged, as one page: `iclora demo`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from PIL import Image

from iclora.errors import StorageError
from iclora.files import write_text
from iclora.models import load_model
from iclora.pages.page import data_url, render
from iclora.progress import Progress
from iclora.toyland.captions import Captioned, caption_sets
from iclora.toyland.evaluate import Score, complete_sets, generate_sets, tune
from iclora.toyland.tasks import TASKS, Task
from iclora.vlm import load_vision_model

__all__ = ["run_demo"]

CONDITIONAL = 0.5
"""Half of what the adapter learns from has given panels: one adapter then makes sets from words,
and completes them in clean mode. Which of the two it does better by: docs/completing.md."""


def run_demo(
    out: Path,
    task_name: str = "film-storyboard",
    *,
    quick: bool = False,
    say: Callable[[str], None],
    bar: Progress,
) -> Path:
    """The whole method: sets captioned from pixels, an adapter, what it makes, how good that is.

    Args:
        out: a new folder.
        quick: a smoke run: few sets, steps and pictures, whose figures mean nothing.
        say: called with what is being done.
    Returns: the page.
    Raises: StorageError if `out` exists.
    """
    if out.exists():
        raise StorageError(f"{out} exists already", "Choose another `out`, or remove it.", "out")
    task = TASKS[task_name]
    sets, tuning, prompts, seeds, steps = (6, 6, 2, 2, 4) if quick else (40, 300, 8, 3, 20)
    began = time.monotonic()
    say(f"1. drawing {sets} sets of {task_name}; toyland's captioner looks at them and writes")
    model = load_model("toyland", device="cpu")
    told = caption_sets(
        task,
        out / "tuning" / "sets",
        sets,
        0,
        load_vision_model("toyland", device="cpu"),
        model,
        progress=bar,
    )
    say(f"   {told.whole} of {told.drawn} captioned, {told.true:.0%} of what they state is true")
    say("2. composing them, tuning an adapter on them")
    adapter, seconds = tune(
        model, task, out / "tuning", sets=sets, steps=tuning, conditional=CONDITIONAL, progress=bar
    )
    scores: dict[str, Score] = {}
    for number, (name, lora) in enumerate((("base", None), ("adapter", adapter)), 3):
        say(
            f"{number}. {name}: {prompts} held-out prompts with {seeds} seeds each, then completing"
        )
        scores[name] = generate_sets(model, task, prompts, seeds, steps, lora)
        known = complete_sets(model, task, prompts * seeds, steps, lora)
        scores[f"{name} completing"] = known
    page = out / "report.html"
    facts = (
        f"{sets} sets, {tuning} steps, {seconds:.0f} s of tuning, "
        f"{time.monotonic() - began:.0f} s in all; {prompts * seeds} sets judged an arm"
    )
    write_text(page, _page(task, scores, told, facts, out, quick))
    say("\n" + "\n".join("  ".join(f"{c:<22}" for c in row) for row in _rows(scores)))
    return page


def _rows(scores: Mapping[str, Score]) -> list[tuple[str, str, str]]:
    """The table: what, base alone, with the adapter."""
    rows = [("", "base alone", "with the adapter")]
    for kind in ("", " completing"):
        plain, tuned = scores[f"base{kind}"].figures, scores[f"adapter{kind}"].figures
        rows += [(name, f"{share:.0%}", f"{tuned[name]:.0%}") for name, share in plain.items()]
    return rows


def _page(
    task: Task, scores: Mapping[str, Score], told: Captioned, facts: str, out: Path, quick: bool
) -> str:
    loss = Image.open(out / "tuning" / "run" / "loss.png").convert("RGB")
    both = ("base", "adapter")
    files = sorted((out / "tuning" / "data").glob("*.png"))[:12]
    return render(
        "demo",
        recipe=task.recipe,
        relation=task.relation,
        quick=quick,
        facts=facts,
        rows=_rows(scores),
        made={name: _urls(scores[name].pictures) for name in both},
        completed={
            name: _urls(scores[f"{name} completing"].pictures) for name in ("base", "adapter")
        },
        conditional=CONDITIONAL,
        composites=_urls(Image.open(file).convert("RGB") for file in files),
        whole=told.whole,
        drawn=told.drawn,
        share_true=f"{told.true:.0%}",
        caption=files[0].with_suffix(".txt").read_text(encoding="utf-8"),
        loss=data_url(loss, max(loss.size), lossless=True),
        loss_width=loss.width // 2,
        example=task.small_recipe.example,
    )


def _urls(pictures: Iterable[Image.Image]) -> list[str]:
    return [data_url(each, max(each.size), lossless=True) for each in pictures]
