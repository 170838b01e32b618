"""Verbs over image sets and their words: recipes collect compose caption review prompt check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from iclora.cli.output import as_options, show_table, tell
from iclora.files import check_file
from iclora.jobs.opening import Opener
from iclora.progress import Console, Event, Progress
from iclora.settings import (
    CaptionSettings,
    CheckSettings,
    CollectSettings,
    ComposeSettings,
    PromptSettings,
    RecipesSettings,
    ReviewSettings,
    Settings,
    verb,
)

if TYPE_CHECKING:
    from iclora.sets.check import Problem
    from iclora.sets.recipe import Recipe

__all__ = ["caption", "check", "collect", "compose", "prompt", "recipes", "review", "show_problems"]


@verb(RecipesSettings)
def recipes(settings: RecipesSettings, console: Console) -> None:
    """List the recipes, or show one in full."""
    from iclora.sets.recipe import load_recipe, recipe_names

    if settings.name:
        console.say(_in_full(load_recipe(settings.name)))
        return
    rows = []
    for recipe in map(load_recipe, recipe_names()):
        canvas = f"{recipe.canvas.width}x{recipe.canvas.height}"
        markers = " ".join(recipe.markers).replace("[", "").replace("]", "")
        rows.append((recipe.name, canvas, markers, recipe.summary))
    show_table(("recipe", "canvas", "markers", "what a set shows"), rows, whole=2)


def _in_full(recipe: Recipe) -> str:
    canvas, own = recipe.canvas, recipe.sampling
    rows = " over ".join(map(str, canvas.per_row)) if canvas.per_row else "free boxes"
    return (
        f"{recipe.name}: {recipe.summary}\n\n"
        f"canvas       {canvas.width}x{canvas.height} px, {canvas.panels} panels ({rows})\n"
        f"prefix       {recipe.prefix or '(none)'}\n"
        f"markers      {' '.join(recipe.markers)}\n"
        f"sampling     {own.steps or 'the usual'} steps, "
        f"{'the usual guidance' if own.guidance is None else f'guidance {own.guidance}'}\n\n"
        f"captioning instruction\n{recipe.instruction}\n\nexample prompt\n{recipe.example}"
    )


@verb(CollectSettings)
def collect(settings: CollectSettings, console: Console) -> None:
    """Make image sets of videos, decks, folders and published data sets."""
    from iclora.jobs.data import collect as gather

    with console.progress() as progress:
        done, page = gather(settings, progress)
    for note in done.notes:
        console.say(note)
    show_problems(done.problems, CollectSettings)
    console.say(
        f"{done.sets} sets in {done.out}, of {done.found} found; sets.jsonl says where each came "
        "from"
    )
    if page:
        console.say(f"look through them: {page}, in a browser")
    console.say(f"then `iclora caption {done.out}`, or `iclora check {done.out}`")


@verb(ComposeSettings)
def compose(settings: ComposeSettings, console: Console) -> None:
    """Join image sets into composites with captions, cropping nothing."""
    from iclora.jobs.data import compose as join
    from iclora.sets.dataset import open_dataset

    def show(event: Event) -> None:
        layout = event.values["layout"]
        sizes = " ".join(f"{w}x{h}" for w, h in layout.sizes)
        console.say(f"  {event.note}  {layout.width}x{layout.height}  panels {sizes}")

    source = open_dataset(settings.source, settings.recipe, settings.background)
    console.say(f"{len(source.sets)} sets of {source.recipe.name} in {source.path}")
    problems = join(source, settings, Progress(show))
    show_problems(problems, ComposeSettings)
    console.say(f"wrote {settings.out}; look at it, then `iclora check {settings.out}`")


@verb(CaptionSettings)
def caption(settings: CaptionSettings, console: Console) -> int:
    """Write joint captions with a multimodal language model, for sets that have none."""
    from iclora.jobs.data import caption as write_captions
    from iclora.sets.dataset import open_dataset
    from iclora.vlm.caption import FAILURES

    dataset = open_dataset(settings.data, settings.recipe)
    show_problems(dataset.problems)
    summary = write_captions(settings, dataset, console, Opener())
    console.say(
        f"{len(summary.written)} captions written, {len(summary.kept)} sets had one already, "
        f"{len(summary.failed)} failed; the model read {summary.read:,} and wrote "
        f"{summary.wrote:,} tokens"
    )
    if summary.failed:
        console.say(f"failed sets are listed in {dataset.path / FAILURES}; run it again for them")
    if summary.written:
        now = {s.name: s for s in open_dataset(settings.data, settings.recipe).sets}
        _warn_of_unknown(settings.base, {n: now[n].caption() for n in summary.written}, console)
    console.say(f"look through them: iclora review {dataset.path}")
    return 1 if summary.failed else 0


@verb(ReviewSettings)
def review(settings: ReviewSettings, console: Console) -> None:
    """Make one page of all sets and their words, to look through."""
    from iclora.jobs.data import token_budget
    from iclora.sets.check import check_dataset
    from iclora.sets.dataset import open_dataset
    from iclora.sets.review import write_review

    place = Path(settings.data).resolve()
    name = place.stem if place.is_file() else place.name
    out = Path(settings.out) if settings.out else place.with_name(f"{name}-review.html")
    check_file(out, "out")
    dataset = open_dataset(settings.data, settings.recipe)
    budget = token_budget(settings.base, Opener())
    if settings.base:
        budget["unknown"] = Opener().rules(settings.base).unknown_letters
    reports = list(check_dataset(dataset, **budget, text=settings.text))
    write_review(dataset, reports, out, budget.get("limit"))
    console.say(f"wrote {out}; open it in a browser")


@verb(PromptSettings)
def prompt(settings: PromptSettings, console: Console) -> None:
    """Turn an idea into a joint prompt in a recipe's form."""
    from iclora.jobs.data import prompt as write_out

    text = write_out(settings, console, Opener())
    _warn_of_unknown(settings.base, {"the prompt": text}, console)
    console.say(text)


@verb(CheckSettings)
def check(settings: CheckSettings, console: Console) -> int:
    """Read every image and caption of a dataset and say what is wrong."""
    from iclora.jobs.data import check as check_all

    found = check_all(settings, Opener())
    rows = []
    for report in found.reports:
        worst = {p.severity for p in report.problems}
        counted = " ".join(map(str, report.by_text)) or "-"
        rows.append(
            (
                report.name,
                str(len(report.sizes)),
                " ".join(f"{w}x{h}" for w, h in report.sizes),
                f"{sum(w * h for w, h in report.sizes) / 1e6:.2f}",
                counted if settings.base or counted == "-" else f"~{counted}",
                "error" if "error" in worst else "warning" if worst else "ok",
            )
        )
    show_table(("set", "panels", "sizes in px", "megapixels", "tokens", "state"), rows)
    problems = found.problems
    show_problems(problems)
    errors = sum(p.severity == "error" for p in problems)
    if scenes := {origin.scene for origin in found.dataset.origins.values() if origin.scene}:
        console.say(
            f"collected from {len(scenes)} scenes; sets of one scene are held out together, so no "
            "scene is trained on and measured on"
        )
    if not settings.base:
        console.say("tokens are estimated; pass --base to count them with the base's tokenizer")
    console.say(
        f"{len(found.reports)} sets of {found.dataset.recipe.name}: {errors} errors, "
        f"{len(problems) - errors} warnings"
    )
    return 2 if errors else 0


def show_problems(problems: Iterable[Problem], model: type[Settings] = CheckSettings) -> None:
    """Print what is wrong with image sets, its settings by the options of a verb."""
    for problem in problems:
        tell(problem.severity, as_options(str(problem), model))


def _warn_of_unknown(base: str | None, texts: Mapping[str, str], console: Console) -> None:
    """Say which of some texts the base's tokenizer cannot read, or probably not without a base."""
    from iclora.sets.caption import unknown_note

    unknown = Opener().rules(base).unknown_letters if base else None
    for name, text in texts.items():
        if note := unknown_note(text, unknown):
            console.warn(f"{name}: {note}")
