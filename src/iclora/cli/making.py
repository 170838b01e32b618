"""Verbs that make sets: generate complete reroll extend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iclora.cli.output import quiet_loading
from iclora.errors import SettingsError
from iclora.files import check_folder, clear_leftovers
from iclora.files.documents import read_json
from iclora.making.words import Story, plan_windows, read_prompts
from iclora.progress import Console
from iclora.sets.recipe import Recipe, load_recipe
from iclora.settings import (
    CompleteSettings,
    EvaluateSettings,
    ExtendSettings,
    GenerateSettings,
    Machine,
    RerollSettings,
    verb,
)

if TYPE_CHECKING:
    from iclora.evaluate.metrics.base import Metric
    from iclora.making.made import GeneratedSet
    from iclora.models import DiffusionModel

__all__ = ["check_at_once", "complete", "extend", "generate", "open_base", "open_metric", "reroll"]


@verb(GenerateSettings)
def generate(settings: GenerateSettings, console: Console) -> None:
    """Make new sets from joint prompts, or repeat a request."""
    _make(settings, console)


@verb(CompleteSettings)
def complete(settings: CompleteSettings, console: Console) -> None:
    """Make the missing panels of a set, or repeat a request."""
    _make(settings, console)


@verb(RerollSettings)
def reroll(settings: RerollSettings, console: Console) -> None:
    """Make panels of a set again; the others stay, pixel for pixel."""
    check_folder(settings.out, "out")
    read_json(Path(settings.set, "request.json"), SettingsError, "request")
    from iclora.making.asks import load_adapter_of, machine_for
    from iclora.making.made import GeneratedSet
    from iclora.making.story import reroll as make_again

    made = GeneratedSet.load(settings.set)
    adapter = load_adapter_of(made.request, settings.adapter)
    for note in adapter.notes if adapter else ():
        console.warn(note)
    model = open_base(settings.base or made.request.base, machine_for(settings, made.request))
    with console.progress() as progress:
        other = make_again(
            model,
            made,
            settings.panel,
            seed=settings.seed,
            adapter=adapter,
            mode=settings.mode,
            boost=settings.boost,
            resample=settings.resample,
            resample_from=settings.resample_from,
            progress=progress,
        )
    console.say(f"wrote {other.save_next(settings.out)}")


@verb(ExtendSettings)
def extend(settings: ExtendSettings, console: Console) -> None:
    """Make a story of any length, a canvas at a time, in view of what was made before."""
    check_folder(settings.out, "out")
    story = Story.read(settings.story)
    for note in story.notes:
        console.warn(note)
    from iclora.sets.images import open_given

    given = open_given(settings.given, settings.background)

    def plan(recipe: Recipe) -> None:
        plan_windows(story, recipe.canvas.panels, settings.anchor, settings.fresh, given)

    if settings.recipe:
        plan(load_recipe(settings.recipe))
    from iclora.adapter import load_stack
    from iclora.making.asks import base_of, machine_for
    from iclora.making.request import recipe_of
    from iclora.making.story import extend as make_story

    adapter = load_stack(settings.adapter)
    for note in adapter.notes if adapter else ():
        console.warn(note)
    plan(recipe_of(settings.recipe, adapter))
    model = open_base(base_of(settings.base, adapter), machine_for(settings))
    out = Path(settings.out)
    with console.progress() as progress:
        made = make_story(
            model,
            story,
            out,
            settings=settings,
            adapter=adapter,
            anchors=settings.anchor,
            fresh=settings.fresh,
            given=given,
            progress=progress,
            warn=console.warn,
        )
    console.say(f"wrote {out}: {len(made)} images, and every canvas under {out / 'windows'}")


def _make(settings: GenerateSettings, console: Console) -> None:
    check_at_once(settings, console)
    from iclora.evaluate.making import scorer
    from iclora.making.asks import asks_of, open_sources
    from iclora.making.best import best_of
    from iclora.making.made import Choice, find_kept
    from iclora.making.session import Session

    out = Path(settings.out)
    sources = open_sources(settings)
    for note in sources.adapter.notes if sources.adapter else ():
        console.warn(note)
    model = open_base(sources.base, sources.machine)
    asks = asks_of(
        settings,
        model,
        sources,
        warn=console.warn,
        say=lambda prompt: console.say(f"prompt: {prompt}"),
    )

    clear_leftovers(out)
    of = settings.best_of or 1
    if not settings.request:
        wishes = [[ask.request for ask in asks[at : at + of]] for at in range(0, len(asks), of)]
        kept = find_kept(out, wishes, settings.score, console.warn)
        for folder in kept.values():
            console.say(f"kept {folder}: it is what would be made")
        asks = [ask for number, ask in enumerate(asks) if number // of not in kept]
        if not asks:
            return
    choice = Choice(settings.score, of) if settings.score else None

    def keep(made: GeneratedSet) -> None:
        console.say(
            f"wrote {made.save_next(out, choice)}: composite.png, panel-1.png to "
            f"panel-{len(made.panels)}.png, request.json"
        )

    with console.progress() as progress:
        session = Session(model, progress)
        if not settings.best_of or not settings.score:
            for _, made in session.make(asks):
                keep(made)
            return
        recipe = sources.recipe
        assert recipe is not None, "a prompt has one"
        metric = open_metric(settings.score, settings.model_device, settings.api, recipe)
        source = f"{metric.source} ({metric.main})"
        for _, best in best_of(session, asks, settings.best_of, scorer(metric, recipe), source):
            shown = ", ".join("-" if score is None else f"{score:.3f}" for score in best.scores)
            console.say(f"{metric.name} {metric.main} of {len(best.scores)} sets: {shown}")
            keep(best.made)


def check_at_once(settings: GenerateSettings | EvaluateSettings, console: Console) -> None:
    """Check what can be known before torch is imported. Raises: IcloraError."""
    check_folder(settings.out, "out")
    prompts = list(settings.prompt)
    if settings.prompts:
        read = read_prompts(settings.prompts)
        prompts += read.lines
        for note in read.notes:
            console.warn(note)
    for text in settings.knowledge if isinstance(settings, EvaluateSettings) else ():
        for note in read_prompts(text.rpartition("=")[2], "knowledge").notes:
            console.warn(note)
    if isinstance(settings, GenerateSettings):
        settings.check_decided()
        if settings.request:
            read_json(settings.request, SettingsError, "request")
        elif isinstance(settings, CompleteSettings):
            from iclora.sets.images import open_given

            open_given(settings.given, settings.background)
        if not settings.request and not prompts and not settings.idea:
            raise SettingsError(
                "there is no prompt", "Set `prompt`, `prompts` or `idea`.", setting="prompt"
            )
    if settings.recipe:
        recipe = load_recipe(settings.recipe)
        for prompt in prompts:
            recipe.prompt(prompt)


def open_base(base: str, machine: Machine) -> DiffusionModel:
    """Open a base. Raises: ModelError, SettingsError."""
    from iclora.models import load_model

    quiet_loading()
    return load_model(base, machine.device, machine.dtype, precision=machine.precision)


def open_metric(name: str, device: str, url: str | None, recipe: Recipe) -> Metric:
    """Open a metric, and check that it can measure sets of this recipe. Raises: IcloraError."""
    from iclora.evaluate.metrics.registry import load_metric

    quiet_loading()
    metric = load_metric(name, device=device, url=url)
    metric.check(recipe)
    return metric
