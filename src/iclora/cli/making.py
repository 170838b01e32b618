"""Verbs that make sets: generate complete reroll extend."""

from __future__ import annotations

import re
from argparse import Namespace as Words
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclora.cli.output import quiet_loading
from iclora.errors import SettingsError
from iclora.progress import Console, Progress
from iclora.settings import (
    CompleteSettings,
    ExtendSettings,
    GenerateSettings,
    RerollSettings,
    Settings,
    verb,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from iclora.adapter import Adapter
    from iclora.evaluate.metrics.base import Metric
    from iclora.making.request import GeneratedSet, Request
    from iclora.models import DiffusionModel
    from iclora.sets.recipe import Recipe

    _Wish = tuple[Request, dict[int, Image.Image], dict[int, Tensor]]

__all__ = ["complete", "extend", "generate", "reroll"]


@verb(GenerateSettings)
def generate(settings: GenerateSettings, console: Console) -> None:
    """Make new sets from joint prompts, or repeat a request."""
    words = _words(settings)
    _make(words, {}, None, console)


@verb(CompleteSettings)
def complete(settings: CompleteSettings, console: Console) -> None:
    """Make the missing panels of a set, or repeat a request."""
    words = _words(settings)
    from iclora.sets.images import open_image

    if not words.known and not words.request:
        raise SettingsError("no panel is known", "Give at least one, such as --known 1=shot.png.")
    files = {number: Path(file) for number, file in _pairs(words.known, "--known")}
    known = {number: open_image(file) for number, file in files.items()}
    _make(words, known, files, console)


@verb(RerollSettings)
def reroll(settings: RerollSettings, console: Console) -> None:
    """Make panels of a set again; the others stay, pixel for pixel."""
    words = _words(settings)
    from iclora.making.request import GeneratedSet, check_base, load_adapter_of
    from iclora.making.story import reroll as make_again

    made = GeneratedSet.load(words.set)
    request = made.request
    words.device = request.device if words.device == "auto" else words.device
    if words.dtype == "auto":
        words.dtype = {"float32": "fp32", "bfloat16": "bf16"}[request.dtype]
    words.precision = words.precision or request.precision
    adapter = load_adapter_of(request, words.adapter)
    model = _load(words.base or request.base, words)
    check_base(request, model)
    with console.progress() as bar:
        on_step = partial(_sampling, bar, "")
        panels = set(words.panel)
        other = make_again(model, made, panels, seed=words.seed, adapter=adapter, on_step=on_step)
    console.say(f"wrote {other.save_next(words.out)}")


@verb(ExtendSettings)
def extend(settings: ExtendSettings, console: Console) -> None:
    """Make a story of any length, a canvas at a time, in view of what was made before."""
    words = _words(settings)
    from iclora.making.story import Story, Window
    from iclora.making.story import extend as make_story
    from iclora.sets.images import open_image
    from iclora.sets.recipe import load_recipe

    story = Story.read(words.story)
    known = {n: open_image(Path(file)) for n, file in _pairs(words.known, "--known")}
    adapter, base = _adapter_and_base(words)
    model = _load(base, words)
    recipe = load_recipe(words.recipe) if words.recipe else None
    if recipe is None and adapter and adapter.info:
        recipe = adapter.info.recipe
    if recipe is None:
        raise SettingsError("no recipe is known", "Pass --recipe, such as film-storyboard.")
    names = ("size", "steps", "guidance", "mode", "boost", "resample", "resample_from", "strength")
    how = {name: getattr(words, name) for name in names if getattr(words, name) is not None}
    out = Path(words.out)
    with console.progress() as bar:

        def report(window: Window, number: int, count: int) -> None:
            shows = " ".join(f"{n:02d}" for n in window.images[-window.made :])
            console.say(f"canvas {number} of {count}: image {shows}")

        made = make_story(
            model,
            story,
            recipe,
            adapter,
            out,
            anchors=words.anchor or (1,),
            fresh=words.fresh,
            seed=words.seed or 0,
            known=known,
            on_window=report,
            on_step=partial(_sampling, bar, ""),
            **how,
        )
    console.say(f"wrote {out}: {len(made)} images, and every canvas under {out / 'windows'}")


def _make(
    words: Words, known: dict[int, Image.Image], files: dict[int, Path] | None, console: Console
) -> None:
    from iclora.making.generate import run, use

    out = Path(words.out)
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file", "Give a folder.")
    if (words.best_of is None) != (words.score is None):
        raise SettingsError("--best-of and --score go together", "Pass both, or neither.")
    model, adapter, wishes = _wishes(words, known, files or {}, console)
    keep = _keeper(words, adapter, console)
    texts = {prompt: model.encode_text(prompt) for prompt in {w[0].prompt for w in wishes}}
    if model.device.type != "cpu":
        # Some 10 GB that nothing needs any more, before the denoiser is loaded.
        model.release("text")
    use(model, adapter, wishes[0][0].strength)
    turns = words.best_of or 1
    with console.progress() as bar:

        def made_of(start: int) -> Iterator[GeneratedSet]:
            for number, (request, given, latents) in enumerate(
                wishes[start : start + turns], start
            ):
                note = f"set {number + 1} of {len(wishes)}"
                on_step = partial(_sampling, bar, note)
                text = texts[request.prompt]
                yield run(model, request, given, latents=latents, text=text, on_step=on_step)

        for start in range(0, len(wishes), turns):
            made = keep(made_of(start))
            console.say(
                f"wrote {made.save_next(out)}: composite.png, panel-1.png to "
                f"panel-{len(made.panels)}.png, request.json"
            )


def _keeper(
    words: Words, adapter: Adapter | None, console: Console
) -> Callable[[Iterator[GeneratedSet]], GeneratedSet]:
    """What chooses the set that is kept; without --best-of there is but one."""
    if not words.best_of:
        return next
    from iclora.evaluate.making import scorer
    from iclora.making.best import best_of
    from iclora.sets.recipe import load_recipe

    recipe = load_recipe(words.recipe) if words.recipe else None
    if recipe is None and adapter and adapter.info:
        recipe = adapter.info.recipe
    assert recipe is not None, "prepare has found one"
    metric = load_metric_of(words.score, words, recipe)

    def keep(candidates: Iterator[GeneratedSet]) -> GeneratedSet:
        made, scores = best_of(
            candidates, scorer(metric, recipe), f"{metric.source} ({metric.main})"
        )
        shown = ", ".join("-" if score is None else f"{score:.3f}" for score in scores)
        console.say(f"{metric.name} {metric.main} of {len(scores)} sets: {shown}")
        return made

    return keep


def _sampling(bar: Progress, note: str, done: int, total: int) -> None:
    bar("painting", done, total, note)


def _wishes(
    words: Words, known: dict[int, Image.Image], files: dict[int, Path], console: Console
) -> tuple[DiffusionModel, Adapter | None, list[_Wish]]:
    """The base, the adapter, and the requests with their known panels."""
    from iclora.making.request import Request, check_base, known_latents, load_adapter_of, prepare
    from iclora.sets.recipe import load_recipe

    if words.request:
        _refuse_with_request(words.settings)
        request, given = Request.load(words.request)
        words.device = request.device if words.device == "auto" else words.device
        words.dtype = {"float32": "fp32", "bfloat16": "bf16"}[request.dtype]
        words.precision = request.precision
        adapter = load_adapter_of(request, words.adapter)
        model = _load(words.base or request.base, words)
        check_base(request, model)
        latents = known_latents(request, Path(words.request).parent)
        return model, adapter, [(request, given, latents)]
    adapter, base = _adapter_and_base(words)
    prompts = list(words.prompt or ())
    if words.prompts:
        lines = _read_lines(words.prompts)
        prompts += [line for line in lines if line]
    if not prompts and not words.idea:
        raise SettingsError(
            "there is no prompt", 'Pass --prompt "...", --prompts FILE or --idea "...".'
        )
    panel_seeds = {n: int(s) for n, s in _pairs(words.panel_seed, "--panel-seed", r"\d+")}
    write_ideas = _idea_writer(words, adapter, console)
    model = _load(base, words)
    prompts += write_ideas(model)
    latents = _latents_beside(model, files, known)
    how = {k: getattr(words, k, None) for k in ("mode", "boost", "resample", "resample_from")}
    wishes, said = [], set()
    for prompt in prompts:
        for turn in range((words.count or 1) * (words.best_of or 1)):
            request, notes = prepare(
                model,
                prompt,
                recipe=load_recipe(words.recipe) if words.recipe else None,
                adapter=adapter,
                strength=1.0 if words.strength is None else words.strength,
                size=words.size,
                seed=(words.seed or 0) + turn,
                panel_seeds=panel_seeds,
                steps=words.steps,
                guidance=words.guidance,
                known=known,
                latents=latents,
                **how,
            )
            wishes.append((request, known, latents))
            said.update(notes)
    for note in sorted(said):
        console.warn(note)
    return model, adapter, wishes


def _adapter_and_base(words: Words) -> tuple[Adapter | None, str]:
    """The adapter, and the name of the base to use it with."""
    from iclora.adapter import Adapter

    adapter = Adapter.load(words.adapter) if words.adapter else None
    base = words.base or (adapter.info.base if adapter and adapter.info else None)
    if base is None:
        raise SettingsError(
            "no base is given", "Pass --base, such as black-forest-labs/FLUX.1-dev."
        )
    return adapter, base


def _latents_beside(
    model: DiffusionModel, files: dict[int, Path], known: dict[int, Image.Image]
) -> dict[int, Tensor]:
    """The latents of known panels that this base's VAE made before: they need no encoding."""
    from iclora.making.request import read_latents

    found = {}
    for number, file in files.items():
        kept = read_latents(file, known[number])
        if kept and kept[1] == model.fingerprint("vae"):
            found[number] = kept[0]
    return found


def _idea_writer(
    words: Words, adapter: Adapter | None, console: Console
) -> Callable[[DiffusionModel], list[str]]:
    """What will make joint prompts of --idea; refused before any weights are loaded."""
    from iclora.sets.recipe import load_recipe
    from iclora.vlm import load_captioner
    from iclora.vlm.caption import write_prompt

    if not words.idea:
        return lambda _: []
    if not words.captioner:
        raise SettingsError("an idea needs somebody to write it out", "Pass --captioner too.")
    if words.recipe:
        recipe = load_recipe(words.recipe)
    elif adapter and adapter.info:
        recipe = adapter.info.recipe
    else:
        raise SettingsError("an idea needs a recipe to be written in", "Pass --recipe.")
    captioner = load_captioner(words.captioner, url=words.api, device=words.device)
    for notice in captioner.notices:
        console.warn(notice.replace("pictures and instructions", "the idea and its instruction"))

    def write(model: DiffusionModel) -> list[str]:
        budget: dict[str, Any] = {
            "count_tokens": model.count_tokens,
            "limit": model.max_text_tokens,
        }
        found = [write_prompt(recipe, idea, captioner, **budget) for idea in words.idea]
        for prompt in found:
            console.say(f"prompt: {prompt}")
        return found

    return write


def _read_lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"prompts {path} cannot be read: {error}", "Check the file.") from error
    return [line.strip() for line in text.splitlines()]


def _pairs(values: list[str] | None, option: str, form: str = ".+") -> list[tuple[int, str]]:
    found = []
    for value in values or ():
        match = re.fullmatch(rf"(\d+)=({form})", value)
        if not match:
            raise SettingsError(
                f'{option} "{value}" is not of the form PANEL=...',
                f"Write for instance {option} 1=...; panels count from 1.",
            )
        found.append((int(match[1]), match[2]))
    if len({number for number, _ in found}) < len(found):
        raise SettingsError(f"{option} names a panel twice", "Name every panel once.")
    return found


def _refuse_with_request(settings: GenerateSettings) -> None:
    """A request says everything; a setting beside it would be ignored."""
    given = settings.decided()
    if given:
        raise SettingsError(
            f"{settings.request} already decides {', '.join(f'`{name}`' for name in given)}",
            "Repeat it without, or write a new prompt instead of it.",
        )


def _words(settings: Settings) -> Words:
    found = dict.fromkeys(settings.__class__.model_fields)
    found |= {name: getattr(settings, name) for name in settings.model_fields_set}
    for name in ("device", "dtype", "out", "model_device"):
        found[name] = getattr(settings, name, "auto")
    for name, also in (("given", "known"), ("panel_seeds", "panel_seed")):
        pairs = getattr(settings, name, {})
        found[also] = (
            [f"{n}={v}" for n, v in pairs.items()] if isinstance(pairs, dict) else list(pairs)
        )
    return Words(settings=settings, **found)


def _load(name: str, words: Words) -> DiffusionModel:
    from iclora.models import load_model

    quiet_loading()
    return load_model(name, words.device, words.dtype, precision=words.precision or "full")


def load_metric_of(name: str, words: Words, recipe: Recipe) -> Metric:
    from iclora.evaluate.metrics.load import load_metric
    from iclora.toyland.metric import Toyland

    quiet_loading()
    metric = load_metric(
        name, device=words.model_device, url=words.api, more={"toyland": lambda *_: Toyland()}
    )
    metric.check(recipe)
    return metric
