"""From what `generate` and `complete` are told to the asks of a session.

sources = open_sources(settings)        files are read, no weights of the base are loaded
model = load_model(sources.base, ...)
asks = asks_of(settings, model, sources)
for number, made in Session(model).make(asks): ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from iclora.adapter import Adapter, Load, load_stack, stack
from iclora.errors import SettingsError
from iclora.making.checks import check_adapter
from iclora.making.made import given_latents, read_latents
from iclora.making.preparing import check_base, prepare, recipe_of
from iclora.making.request import Request
from iclora.making.session import Ask
from iclora.making.texts import text_kind
from iclora.making.words import read_prompts
from iclora.models.base import DiffusionModel
from iclora.sets.images import open_given
from iclora.sets.recipe import Recipe
from iclora.settings import CompleteSettings, GenerateSettings, Machine, MakingMachine
from iclora.train.run import base_beside
from iclora.vlm import load_vision_model
from iclora.vlm.caption import write_prompt

__all__ = ["Sources", "asks_of", "base_of", "load_adapter_of", "machine_for", "open_sources"]


@dataclass(frozen=True)
class Sources:
    """All that asks are made from, read before any weights of the base."""

    base: str
    """Name of the base to load, on `machine`."""
    machine: Machine
    adapter: Adapter | None = None
    recipe: Recipe | None = None
    """None if nothing names one; then a prompt cannot be prepared."""
    prompts: tuple[str, ...] = ()
    given: Mapping[int, Image.Image] = field(default_factory=dict)
    """Given panels by number, counted from 1."""
    latents: Mapping[int, tuple[Tensor, str]] = field(default_factory=dict)
    """Those that lie beside given panels, and the fingerprint of their VAE."""
    request: Request | None = None
    """What is to be repeated; it decides all of the above."""


def open_sources(settings: GenerateSettings, load: Load = Adapter.load) -> Sources:
    """Read the request, or the adapter, the prompts and the given panels.

    Args:
        load: reads an adapter.
    Raises: SettingsError, AdapterError, RecipeError, ImageError.
    """
    if settings.request:
        return _of_request(settings, Path(settings.request), load)
    files = settings.given if isinstance(settings, CompleteSettings) else {}
    if isinstance(settings, CompleteSettings) and not files:
        raise SettingsError(
            "no panel is given", "Set `given` to at least one picture.", setting="given"
        )
    background = settings.background if isinstance(settings, CompleteSettings) else "white"
    given = open_given(files, background)
    adapter = load_stack(settings.adapter, load)
    base = base_of(settings.base, adapter)
    prompts = [
        *settings.prompt,
        *(read_prompts(settings.prompts).lines if settings.prompts else ()),
    ]
    if not prompts and not settings.idea:
        raise SettingsError(
            "there is no prompt", "Set `prompt`, `prompts` or `idea`.", setting="prompt"
        )
    if settings.idea and not settings.captioner:
        raise SettingsError(
            "an idea needs somebody to write it out", "Set `captioner`.", setting="captioner"
        )
    recipe = recipe_of(settings.recipe, adapter)
    beside = {n: read_latents(Path(files[n]), given[n]) for n in given}
    latents = {n: found for n, found in beside.items() if found}
    machine = machine_for(settings)
    return Sources(base, machine, adapter, recipe, tuple(prompts), given, latents)


def _of_request(settings: GenerateSettings, path: Path, load: Load) -> Sources:
    settings.check_decided()
    request, given = Request.load(path)
    adapter = load_adapter_of(request, settings.adapter, load)
    latents = given_latents(request, path.parent, given)
    return Sources(
        settings.base or request.base,
        machine_for(settings, request),
        adapter,
        adapter.info.recipe if adapter and adapter.info else None,
        (),
        given,
        {n: (found, "") for n, found in latents.items()},
        request,
    )


def machine_for(settings: MakingMachine, request: Request | None = None) -> MakingMachine:
    """The machine that settings ask for, and for what they leave open the request's."""
    names = settings.model_fields_set & set(MakingMachine.model_fields)
    told = {n: getattr(settings, n) for n in names}
    if request is None:
        return MakingMachine(**told)
    # Of the rest no pixel depends on.
    before = {n: getattr(request, n) for n in Machine.model_fields}
    return MakingMachine(**before | {n: value for n, value in told.items() if value != "auto"})


def base_of(base: str | None, *adapters: Adapter | None) -> str:
    """The base's name, else the one the first of these adapters was trained on.

    Raises: SettingsError if nothing says.
    """
    known = [adapter for adapter in adapters if adapter and adapter.info]
    found = base or (_trained_on(known[0]) if known else None)
    if found is None:
        raise SettingsError(
            "no base is given",
            "Set `base`, for instance to black-forest-labs/FLUX.1-dev.",
            setting="base",
        )
    return found


def _trained_on(adapter: Adapter) -> str:
    assert adapter.info
    name = adapter.info.base
    # Of several, any may be the one that says.
    found = (base_beside(part.path, name) for part in adapter.parts if part.path)
    return next(filter(None, found), name)


def asks_of(
    settings: GenerateSettings,
    model: DiffusionModel,
    sources: Sources,
    *,
    warn: Callable[[str], None] | None = None,
    say: Callable[[str], None] | None = None,
    only: Sequence[int] | None = None,
) -> list[Ask]:
    """Turn settings into asks: for each prompt `count` sets, or `count` times `best_of`.

    Ideas are written out here, by a captioner that is freed again before weights are loaded.

    Args:
        sources: what `open_sources` read for these settings.
        warn: called with every note on what was asked for.
        say: called with every prompt that was written out of an idea.
        only: the sets to prepare, by number from 0, `count` for each prompt; by default all.
    Raises: as `request.prepare`; VisionModelError if no idea could be written out.
    """
    if sources.request:
        check_base(sources.request, model)
        latents = {n: found for n, (found, _) in sources.latents.items()}
        return [Ask(sources.request, sources.given, latents, sources.adapter)]
    if sources.adapter:  # Before anybody is paid to write ideas out.
        check_adapter(model, sources.adapter)
    if settings.idea and sources.recipe:  # And whether there is a canvas for what they write.
        wish = settings.wish(sources.recipe.example, seed=settings.seed)
        prepare(model, wish, recipe=sources.recipe, adapter=sources.adapter, given=sources.given)
    written = _write_ideas(settings, model, sources, warn, say)
    vae = model.fingerprint("vae") if sources.latents else ""
    latents = {n: found for n, (found, kind) in sources.latents.items() if kind == vae}
    asks: list[Ask] = []
    said: set[str] = set()
    prompts, of = (*sources.prompts, *written), settings.best_of or 1
    for number in range(len(prompts) * settings.count) if only is None else only:
        prompt, first = prompts[number // settings.count], number % settings.count * of
        for further in range(first, first + of):
            request, notes = prepare(
                model,
                settings.wish(prompt, seed=settings.seed + further),
                recipe=sources.recipe,
                adapter=sources.adapter,
                given=sources.given,
                latents=latents,
            )
            asks.append(Ask(request, sources.given, latents, sources.adapter))
            said.update(map(str, notes))
    for text in sorted(said):
        if warn:
            warn(text)
    return asks


def _write_ideas(
    settings: GenerateSettings,
    model: DiffusionModel,
    sources: Sources,
    warn: Callable[[str], None] | None,
    say: Callable[[str], None] | None,
) -> list[str]:
    if not settings.idea:
        return []
    assert settings.captioner, "open_sources refuses ideas without one"
    assert sources.recipe, "open_sources has found one"
    captioner = load_vision_model(
        settings.captioner, url=settings.api, device=settings.model_device
    )
    for notice in captioner.notices:
        if warn:
            warn(notice.replace("pictures and instructions", "the idea and its instruction"))
    kind, _ = text_kind(model, settings.text, sources.adapter)
    written = []
    for idea in settings.idea:
        prompt = write_prompt(
            sources.recipe,
            idea,
            captioner,
            count_tokens=model.count_tokens,
            limit=model.max_text_tokens,
            text=kind,
        )
        written.append(prompt)
        if say:
            say(prompt)
    # A local one takes memory on the device that the base needs next.
    captioner.free()
    return written


def load_adapter_of(
    request: Request, paths: Sequence[str] = (), load: Load = Adapter.load
) -> Adapter | None:
    """The adapters a request was made with, from their places then or from `paths`.

    Args:
        paths: where they lie now, in any order.
        load: reads one.
    Raises: AdapterError if one is gone or has other content; SettingsError for a strength, which
        the request decides.
    """
    found = {place: load(place) for place in request.places(paths)}
    if not found:
        return None
    request.check_adapters({place: adapter.sha256 for place, adapter in found.items()})
    by_hash = {adapter.sha256: adapter for adapter in found.values()}
    return stack(
        [replace(by_hash[each.sha256], strength=each.strength) for each in request.adapters]
    )
