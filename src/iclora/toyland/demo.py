"""The whole method on the embedded base, judged, as one page: `iclora demo`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from iclora.errors import StorageError
from iclora.evaluate.figures import Table
from iclora.evaluate.setup import Arm, Setup
from iclora.files import write_text
from iclora.files.locks import LOCK, alone
from iclora.models import DiffusionModel, load_model
from iclora.pages.page import data_url, render
from iclora.progress import Progress
from iclora.settings import SampleSettings
from iclora.toyland.captions import Captioned, caption_sets
from iclora.toyland.measuring import given_cases, means, measure_arms, pictures, prompt_cases
from iclora.toyland.tasks import TASKS, Task
from iclora.toyland.tuning import tune
from iclora.toyland.verb import DemoSettings
from iclora.vlm import load_vision_model

__all__ = ["run_demo"]

CONDITIONAL = 0.5
"""Half of the adapter's samples have given panels: one adapter then makes sets from words, and
completes them in clean mode. Which of the two it does better by: docs/completing.md."""


@dataclass(frozen=True)
class _Size:
    """How much is drawn, tuned and judged."""

    sets: int = 40
    tuning: int = 300
    prompts: int = 8
    seeds: int = 3
    steps: int = 20


_MARK, _PAGE = "demo.json", "report.html"
"""The first file of a demo and its last: one that holds the first alone was stopped."""
_PARTS = ("tuning", "made", "completed")

_QUICK = _Size(sets=4, tuning=3, prompts=2, seeds=2, steps=2)


def run_demo(
    settings: DemoSettings, say: Callable[[str], None], progress: Progress | None = None
) -> Path:
    """Caption sets from pixels, tune an adapter on them, make sets with it, judge them.

    Args:
        say: called with the heading of every part, and with the figures.
    Returns: the page.
    Raises: StorageError if `out` exists, unless a demo was stopped in it; that one begins again.
    """
    out = Path(settings.out)

    def refuse(problem: str, advice: str) -> StorageError:
        return StorageError(problem, advice, "out")

    stopped = (out / _MARK).is_file() and not (out / _PAGE).exists()
    if out.exists() and not stopped:
        raise refuse(f"{out} exists already", "Choose another `out`, or remove it.")
    with alone(out / LOCK, out, refuse):
        if stopped:
            say(f"{out} holds a demo that was stopped; it begins again")
            for name in _PARTS:
                shutil.rmtree(out / name, ignore_errors=True)
        write_text(out / _MARK, settings.model_dump_json())
        return _run(settings, out, say, progress)


def _run(
    settings: DemoSettings, out: Path, say: Callable[[str], None], progress: Progress | None
) -> Path:
    task, size = TASKS[settings.task], _QUICK if settings.quick else _Size()
    began = time.monotonic()
    say(f"1. drawing {size.sets} sets of {task.recipe}; toyland's captioner looks and writes")
    model = load_model("toyland", device="cpu")
    captioner = load_vision_model("toyland", device="cpu")
    place = out / _PARTS[0]
    told = caption_sets(task, place / "sets", size.sets, 0, captioner, model, progress)
    say(f"   {told.whole} of {told.drawn} captioned, {told.true:.0%} of what they state is true")
    say("2. composing them, tuning an adapter on them")
    adapter, seconds = tune(
        model,
        task,
        place,
        sets=size.sets,
        progress=progress,
        steps=size.tuning,
        conditional=CONDITIONAL,
    )
    arms = (Arm("base"), Arm("adapter", adapter))
    made, completed = _judged(model, task, arms, size, out, say, progress)
    facts = (
        f"{size.sets} sets, {size.tuning} steps, {seconds:.0f} s of tuning, "
        f"{time.monotonic() - began:.0f} s in all; {size.prompts * size.seeds} sets judged an arm"
    )
    rows = _rows(made[1], completed[1])
    page = out / _PAGE
    shown = {
        name: {arm.name: _urls(pictures(setup, arm)) for arm in arms}
        for name, (setup, _) in (("made", made), ("completed", completed))
    }
    write_text(
        page, _page(task, place, told, facts=facts, quick=settings.quick, rows=rows, **shown)
    )
    say("\n" + "\n".join("  ".join(f"{cell:<22}" for cell in row) for row in rows))
    return page


def _judged(
    model: DiffusionModel,
    task: Task,
    arms: tuple[Arm, ...],
    size: _Size,
    out: Path,
    say: Callable[[str], None],
    progress: Progress | None,
) -> tuple[tuple[Setup, Table], tuple[Setup, Table]]:
    """Measure sets made from prompts, then sets completed, by base and adapter."""
    sampling = SampleSettings(steps=size.steps)
    prompts, count = prompt_cases(task, size.prompts, size.seeds), size.prompts * size.seeds
    say(f"3. {size.prompts} held-out prompts with {size.seeds} seeds each, by both")
    made = measure_arms(model, task, arms, prompts, out / _PARTS[1], sampling, progress)
    say(f"4. {count} sets completed from a true first panel, by both")
    given = given_cases(task, count)
    return made, measure_arms(model, task, arms, given, out / _PARTS[2], sampling, progress)


def _rows(made: Table, completed: Table) -> list[tuple[str, str, str]]:
    """The table: figure, base alone, with the adapter."""
    rows = [("", "base alone", "with the adapter")]
    for table, begins in ((made, ("same", "stated", "diversity")), (completed, ("carried",))):
        plain, tuned = (means(table, arm, *begins) for arm in ("base", "adapter"))
        rows += [(name, f"{share:.0%}", f"{tuned[name]:.0%}") for name, share in plain.items()]
    return rows


def _page(task: Task, place: Path, told: Captioned, **values: object) -> str:
    """The page as HTML.

    Args:
        place: the folder with the composites and the run.
        values: names of the template that need nothing else.
    """
    loss = Image.open(place / "run" / "loss.png").convert("RGB")
    files = sorted((place / "data").glob("*.png"))[:12]
    return render(
        "demo",
        recipe=task.recipe,
        relation=task.relation,
        conditional=CONDITIONAL,
        composites=_urls(Image.open(file).convert("RGB") for file in files),
        whole=told.whole,
        drawn=told.drawn,
        share_true=f"{told.true:.0%}",
        caption=files[0].with_suffix(".txt").read_text(encoding="utf-8"),
        loss=data_url(loss, max(loss.size), lossless=True),
        loss_width=loss.width // 2,
        example=task.small_recipe.example,
        **values,
    )


def _urls(composites: Iterable[Image.Image]) -> list[str]:
    return [data_url(each, max(each.size), lossless=True) for each in composites]
