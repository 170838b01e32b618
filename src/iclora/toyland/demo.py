"""The whole method on the embedded base, judged, as one page: `iclora demo`."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from iclora.errors import StorageError
from iclora.files import write_text
from iclora.models import load_model
from iclora.progress import Progress
from iclora.sets.images import encode_png
from iclora.toyland.captions import Captioned, caption_sets
from iclora.toyland.evaluate import Score, complete_sets, generate_sets, tune
from iclora.toyland.tasks import TASKS, Task
from iclora.vlm import load_captioner

__all__ = ["run_demo"]

CONDITIONAL = 0.5
"""Half of what the adapter learns from has given panels: one adapter then makes sets from words,
and completes them in clean mode. Which of the two it does better by: docs/completing.md."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #2b2b2b; background: #faf8f5; margin: 2rem auto;
       max-width: 1080px; padding: 0 1rem }
h1 { font-size: 1.7rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .25rem .9rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr + tr { border-top: 1px solid #ddd6cc }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2rem }
.sets { display: flex; flex-wrap: wrap; gap: 10px } img { border-radius: 4px; display: block }
.note { color: #6d655a } pre { white-space: pre-wrap; font-size: .85rem }
"""


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
        raise StorageError(f"{out} exists already", "Choose another --out, or remove it.")
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
        load_captioner("toyland", device="cpu"),
        model,
        on_done=lambda _, done, total: bar("captioning", done, total, ""),
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
    files = sorted((out / "tuning" / "data").glob("*.png"))[:12]
    composites = [Image.open(file).convert("RGB") for file in files]
    first = files[0].with_suffix(".txt").read_text(encoding="utf-8")
    loss = Image.open(out / "tuning" / "run" / "loss.png").convert("RGB")
    table = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in _rows(scores)
    )
    warning = "<p><b>A smoke run: these figures mean nothing.</b></p>" if quick else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>iclora demo: {task.recipe}</title>
<style>{_STYLE}</style>
<h1>In-Context LoRA on a laptop: {html.escape(task.recipe)}</h1>
{warning}
<p>The base knows how to paint panels, but not that they belong together. A small LoRA, tuned on the
sets below, wakes that up: same prompts, same seeds, no prompt says what the panels share
({html.escape(", ".join(task.relation))}).</p>
<p class="note">{html.escape(facts)}; identities held out of tuning. The base is the toy one that
ships with iclora and is not converged (docs/toyland.md).</p>
<div class="pair"><div><h2>Base alone</h2>{_gallery(scores["base"].pictures)}</div>
<div><h2>With the adapter</h2>{_gallery(scores["adapter"].pictures)}</div></div>
<h2>What the judge read back from the pixels</h2><table>{table}</table>
<p class="note">same: the panels of a set agree. stated: a panel shows what its own words say.
diversity: different seeds give different identities. carried: a panel made around a given first
one has its identity.</p>
<div class="pair"><div><h2>Completed by the base</h2>
{_gallery(scores["base completing"].pictures)}</div>
<div><h2>Completed with the adapter</h2>
{_gallery(scores["adapter completing"].pictures)}</div></div>
<p class="note">The first panel of each set was given. The base sees it as noisy as the rest (the
paper's SDEdit). Half of what the adapter learnt from had panels given without noise
(<code>conditional = {CONDITIONAL}</code>), so it reads this one clean.</p>
<h2>What the adapter was tuned on</h2>{_gallery(composites)}
<p class="note">Their captions were written from the pixels by toyland's captioner: {told.whole} of
{told.drawn} sets have one, and {told.true:.0%} of what the captions state of their panels is true.
The first of them:</p><pre>{html.escape(first)}</pre>
<h2>Its loss</h2>{_image(loss, loss.width // 2)}
<h2>An example prompt</h2><pre>{html.escape(task.small_recipe.example)}</pre>
</html>
"""


def _gallery(pictures: Sequence[Image.Image]) -> str:
    return '<div class="sets">' + "".join(_image(p, p.width) for p in pictures) + "</div>"


def _image(picture: Image.Image, width: int) -> str:
    data = base64.b64encode(encode_png(picture)).decode()
    return f'<img width="{width}" src="data:image/png;base64,{data}" alt="">'
