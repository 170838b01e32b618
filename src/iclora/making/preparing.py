"""From a wish to a request, checked in full before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from iclora import __version__
from iclora.adapter import Adapter
from iclora.errors import SettingsError
from iclora.files import digest
from iclora.making.beside import describe_beside
from iclora.making.checks import (
    Note,
    check_adapter,
    check_mode,
    isolates,
    mode_of,
    notes_of_base,
    notes_of_panels,
    repetitions,
    without_effect,
)
from iclora.making.given import describe_given, fitting_latents
from iclora.making.request import Request
from iclora.making.texts import checked_texts, text_kind
from iclora.models.base import DTYPES, DiffusionModel
from iclora.sets.around import canvas_around
from iclora.sets.caption import unknown_note
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe, load_recipe
from iclora.settings import Wish, problems_of

__all__ = ["check_base", "machine_of", "panel_seed", "prepare", "recipe_of"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def prepare(
    model: DiffusionModel,
    wish: Wish,
    *,
    recipe: Recipe | None = None,
    adapter: Adapter | None = None,
    given: Mapping[int, Image.Image] | None = None,
    latents: Mapping[int, Tensor] | None = None,
    layout: Layout | None = None,
) -> tuple[Request, list[Note]]:
    """Turn a wish into a request, checked in full before any computing.

    Args:
        recipe: by default the one the wish names, else the one the adapter carries.
        given: pictures of given panels by number, counted from 1; `wish.given` names their files,
            which are not read here.
        latents: of given panels that were made before, (rows, columns, channels); if they do not
            fit their box, the picture is encoded instead.
        layout: the canvas itself, instead of `wish.size`. By default a canvas that keeps given
            panels at their own size, or else one of the adapter's or the recipe's area with the
            given panels' shapes.
    Returns: the request, and notes for the user.
    Raises: SettingsError, CaptionError (markers, token limit), LayoutError, RecipeError;
        AdapterError for an adapter of another family, or that the base has no place for.
    """
    given = dict(given or {})
    if adapter:
        check_adapter(model, adapter)
    task = recipe_of(wish.recipe, adapter, recipe)
    text, said = task.prompt(wish.prompt)
    notes = [Note(each, "prompt") for each in said]
    kind, odd = text_kind(model, wish.text, adapter)
    notes += [Note(odd, "adapter")] * bool(odd)
    texts = checked_texts(model, task, text, kind)
    unread = unknown_note(text, model.unknown_letters)
    if unread:
        notes.append(Note(f"{unread}: write the prompt in English", "prompt"))
    layout = layout or _layout(model, task, adapter, wish.size, given)
    for number in (*given, *wish.panel_seeds):
        layout.check_number(number)
    notes += notes_of_panels(layout, given, model.grid)
    notes += notes_of_base(model, adapter)
    mode = mode_of(wish, adapter, bool(given), notes)
    check_mode(model, mode, kind)
    notes += without_effect(model, wish, mode)
    values = {
        **machine_of(model),
        "adapter": str(adapter.path) if adapter and adapter.path else None,
        "adapter_sha256": adapter.sha256 if adapter else "",
        "strength": wish.strength * (adapter.strength if adapter else 1.0),
        "beside": describe_beside(adapter, wish.strength),
        "recipe": task.name,
        "markers": task.markers,
        "prompt": text,
        "negative": wish.negative,
        "text": kind,
        "panel_texts": () if kind == "joint" else texts,
        "layout": layout,
        "seeds": tuple(
            wish.panel_seeds.get(n, panel_seed(wish.seed, n)) for n in range(1, layout.panels + 1)
        ),
        **_sampling(model, wish, task),
        "given": describe_given(given, fitting_latents(layout, latents or {}, given, model.grid)),
        "mode": mode,
        "isolate_given": mode == "clean" and isolates(adapter),
        "boost": wish.boost,
        "resample": repetitions(wish.resample, mode),
        "resample_from": wish.resample_from,
    }
    try:
        return Request.model_validate(values), notes
    except ValidationError as error:
        raise SettingsError(f"invalid settings: {problems_of(error)}", "Change them.") from error


def machine_of(model: DiffusionModel) -> dict[str, Any]:
    """What a request says of the base and the machine that make it."""
    return {
        "base": model.name,
        "base_fingerprint": model.identity(),
        "device": model.device.type,
        "dtype": _NAMES[model.dtype],
        "precision": model.precision,
        "offload": model.offload,
        "compile": "sampling" in model.compiled,
        "versions": {"iclora": __version__, "torch": torch.__version__},
    }


def recipe_of(name: str | None, adapter: Adapter | None, recipe: Recipe | None = None) -> Recipe:
    """The recipe itself, else the one of that name, else the adapter's.

    Raises: SettingsError if there is none; RecipeError for an unknown name.
    """
    found = recipe or (load_recipe(name) if name else None)
    if found is None and adapter and adapter.info:
        found = adapter.info.recipe
    if found is None:
        raise SettingsError(
            "no recipe is known: none was given, and the adapter carries none",
            "Set `recipe`, for instance to film-storyboard.",
            setting="recipe",
        )
    return found


def panel_seed(seed: int, number: int) -> int:
    """The seed of one panel's noise, from the seed of the whole and a number counted from 1."""
    return int(digest("seed", str(seed), str(number))[:8], 16)


def _sampling(model: DiffusionModel, wish: Wish, task: Recipe) -> dict[str, Any]:
    """Steps and guidance: the wish's, else the recipe's, else the base's own."""
    base = model.sampling
    steps = (wish.steps, None if base.fixed_steps else task.sampling.steps, base.steps)
    # What an adapter's recipe says of guidance is of the base it was trained on.
    told = None if base.guided == "none" else task.sampling.guidance
    guidance = (wish.guidance, told, base.guidance, 0.0)
    return {
        "steps": next(n for n in steps if n is not None),
        "guidance": next(value for value in guidance if value is not None),
    }


def _layout(
    model: DiffusionModel,
    recipe: Recipe,
    adapter: Adapter | None,
    size: tuple[int, int] | None,
    given: Mapping[int, Image.Image],
) -> Layout:
    """The canvas: as asked, else the usual area with the given panels' shapes."""
    usual = recipe.canvas
    if adapter and adapter.info and adapter.info.recipe.same_task(recipe):
        usual = adapter.info.layout
    sizes = {number: image.size for number, image in given.items()}
    return canvas_around(usual, sizes, size, model.multiple)


# -- repeating a request ------------------------------------------------------------------------


def check_base(request: Request, model: DiffusionModel) -> None:
    """Raises: SettingsError if the base is not the one the request was made with."""
    if request.base_fingerprint != model.identity():
        raise SettingsError(
            f"the weights of {model.name} are not those this request was made with, so the "
            "pictures would differ",
            "Restore that base, or make a new request.",
            setting="base",
        )
