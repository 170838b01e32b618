"""New sets from words, and known panels completed to sets.

Completing differs from generating only in that some panels are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iclora.adapter import Adapter, remove
from iclora.errors import SettingsError
from iclora.making.request import GeneratedSet, Request, fit_known, fitting_latents, prepare
from iclora.models import flow
from iclora.models.base import DiffusionModel, Given, Text
from iclora.sets.images import write_png
from iclora.sets.layout import Box, Layout, token_mask
from iclora.sets.recipe import Recipe

__all__ = ["complete", "generate", "make_preview", "panel_noise", "run", "run_together", "use"]

Progress = Callable[[int, int], None]


# -- making -------------------------------------------------------------------------------------


def panel_noise(layout: Layout, seeds: Sequence[object], grid: int, channels: int) -> Tensor:
    """Standard normal noise for a canvas, each panel's from its own seed.

    Returns: (1, n, channels) float32 on the CPU, tokens row by row.
    """
    h, w = layout.height // grid, layout.width // grid
    # Free boxes may leave gaps; these take noise of their own.
    noise = torch.randn(h, w, channels, generator=flow.generator("gaps", *seeds))
    for seed, box in zip(seeds, layout.boxes, strict=True):
        cells = _cells(box, grid)
        shape = noise[cells].shape
        noise[cells] = torch.randn(shape, generator=flow.generator("panel", seed))
    return noise.reshape(1, h * w, channels)


def run(
    model: DiffusionModel,
    request: Request,
    known: Mapping[int, Image.Image] | None = None,
    *,
    latents: Mapping[int, Tensor] | None = None,
    text: Text | None = None,
    on_step: Progress | None = None,
) -> GeneratedSet:
    """Compute a request with the adapter that the base carries now.

    Args:
        known: pictures of the request's known panels.
        latents: of known panels that were made before, (rows, columns, channels).
        text: the prompt's embedding, if it has been computed already.
        on_step: called with (steps done, steps in all).
    """
    words = text if text is not None else model.encode_text(request.prompt)
    return run_together(model, [request], [known or {}], [latents or {}], [words], on_step)[0]


@torch.no_grad()
def run_together(
    model: DiffusionModel,
    requests: Sequence[Request],
    known: Sequence[Mapping[int, Image.Image]],
    latents: Sequence[Mapping[int, Tensor]],
    texts: Sequence[Text],
    on_step: Progress | None = None,
) -> list[GeneratedSet]:
    """Compute requests that differ in words, seeds and pictures alone, in one batch."""
    first = requests[0]
    layout, size = first.canvas, first.canvas.size
    layout.check_grid(model.grid)
    noise = _noise(model, layout, requests)
    mask, x0 = _known_tokens(model, layout, known, latents)
    given = _given(first, mask)
    z = flow.denoise(
        lambda z, sigma: model.velocity(
            z, torch.full((len(z),), sigma, device=model.device), texts, size, first.guidance, given
        ),
        noise,
        model.sigmas(first.steps, noise.shape[1]),
        given=mask,
        x0=x0,
        clean=first.mode == "clean",
        resample=_resample(model, layout, requests) if first.resample else None,
        on_step=on_step,
    ).cpu()
    vae = model.fingerprint("vae")
    made = []
    for tokens, request, pictures in zip(z, requests, known, strict=True):
        composite = Image.fromarray(model.decode(tokens, *size))
        for number, image in fit_known(layout, pictures).items():
            # The decoder only approximates what the encoder saw; the user's pixels are the truth.
            composite.paste(image, layout.boxes[number - 1].corners[:2])
        panels = [pictures.get(n, panel) for n, panel in enumerate(layout.split(composite), 1)]
        cells = tokens.view(layout.height // model.grid, layout.width // model.grid, -1)
        kept = tuple(cells[_cells(box, model.grid)].clone() for box in layout.boxes)
        made.append(GeneratedSet(composite, tuple(panels), request, kept, vae))
    return made


def _noise(
    model: DiffusionModel, layout: Layout, requests: Sequence[Request], *more: object
) -> Tensor:
    """(B, n, c) on the model's device; `more` makes further draws from the same seeds."""
    seeds = [[(seed, *more) if more else seed for seed in r.seeds] for r in requests]
    drawn = [panel_noise(layout, each, model.grid, model.channels) for each in seeds]
    return torch.cat(drawn).to(model.device)


def _given(request: Request, mask: Tensor | None) -> Given | None:
    """How the base is to read the known panels."""
    if mask is None:
        return None
    if request.mode == "clean":
        kept: list[tuple[Tensor, Tensor]] | None = [] if request.isolate_given else None
        return Given(mask, clean=True, isolated=request.isolate_given, cache=kept)
    return Given(mask, scale=request.boost) if request.mode == "boost" else None


def _resample(model: DiffusionModel, layout: Layout, requests: Sequence[Request]) -> flow.Resample:
    def draw(step: int, turn: int) -> Tensor:
        return _noise(model, layout, requests, "again", step, turn)

    return flow.Resample(requests[0].resample, requests[0].resample_from, 1.0, draw)


def _cells(box: Box, grid: int) -> tuple[slice, slice]:
    """Rows and columns of a panel's tokens."""
    return (slice(box.top // grid, box.bottom // grid), slice(box.left // grid, box.right // grid))


def _known_tokens(
    model: DiffusionModel,
    layout: Layout,
    known: Sequence[Mapping[int, Image.Image]],
    latents: Sequence[Mapping[int, Tensor]],
) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens are known, bool (n,), and the clean latents of all sets, (B, n, c)."""
    numbers = sorted(known[0])
    assert all(sorted(each) == numbers for each in known), "the same panels are known in a batch"
    if not numbers:
        return None, None
    mask = torch.from_numpy(token_mask(layout, [n - 1 for n in numbers], model.grid))
    x0 = torch.zeros(len(known), *mask.shape, model.channels)
    for place, pictures, kept in zip(x0, known, latents, strict=True):
        fitting = fitting_latents(layout, kept, pictures, model.grid)
        for number, image in fit_known(layout, pictures).items():
            # Each panel is encoded alone: a placeholder beside it would bleed into its latents,
            # across the border by convolution and everywhere by group norm.
            cells = _cells(layout.boxes[number - 1], model.grid)
            if number in fitting:
                place[cells] = fitting[number]
            else:
                shape = place[cells].shape
                place[cells] = model.encode_image(np.asarray(image)).view(shape)
    return mask.flatten().to(model.device), x0.flatten(1, 2).to(model.device)


def generate(
    model: DiffusionModel, prompt: str, *, on_step: Progress | None = None, **wish: Any
) -> GeneratedSet:
    """Make a new set from words.

    Args:
        prompt: a joint prompt in the recipe's form.
        wish: recipe, adapter, strength, size, seed, panel_seeds, steps, guidance, mode and on;
            see `prepare`.
    Raises: CaptionError, SettingsError, LayoutError, AdapterError.
    """
    request, _ = prepare(model, prompt, **wish)
    use(model, wish.get("adapter"), request.strength)
    return run(model, request, wish.get("known"), latents=wish.get("latents"), on_step=on_step)


def complete(
    model: DiffusionModel,
    prompt: str,
    known: Mapping[int, Image.Image],
    *,
    on_step: Progress | None = None,
    **wish: Any,
) -> GeneratedSet:
    """Make the missing panels of a set; the known ones come back unchanged, pixel for pixel.

    Where a known panel's size is off the token grid, the composite holds it resized to its box;
    `GeneratedSet.panels` still holds the picture that was given. Nothing is cropped.

    Args:
        known: pictures by panel number, counted from 1.
        wish: as in `generate`.
    Raises: as `generate`; SettingsError if no panel is known, or all are.
    """
    if not known:
        raise SettingsError("no panel is known", "Give at least one, such as --known 1=shot.png.")
    return generate(model, prompt, on_step=on_step, known=known, **wish)


def use(model: DiffusionModel, adapter: Adapter | None, strength: float) -> None:
    """Let the base carry this adapter, or none. Raises: AdapterError if it does not fit."""
    if adapter is None:
        remove(model)
    else:
        adapter.apply(model, strength)


# -- looking ------------------------------------------------------------------------------------


def make_preview(
    model: DiffusionModel,
    recipe: Recipe,
    prompts: Sequence[str],
    *,
    resolution: int,
    seed: int,
    folder: Path,
) -> Callable[[int, bool], None]:
    """A callback for `train`: draws each prompt by the base alone and by the adapter so far.

    The prompts are encoded here, so that the text encoders can be freed before training.

    Returns: a function of the step that writes folder/step-000250.png where it is told to.
    Raises: CaptionError, SettingsError for a prompt that would fail later.
    """
    canvas = recipe.canvas.fit(recipe.canvas.sizes, resolution**2, model.grid)
    requests = [prepare(model, p, recipe=recipe, size=canvas.size, seed=seed)[0] for p in prompts]
    texts = [model.encode_text(request.prompt) for request in requests]
    plain: list[Image.Image] = []

    def draw() -> list[Image.Image]:
        return [run(model, r, text=t).composite for r, t in zip(requests, texts, strict=True)]

    def preview(step: int, write: bool = True) -> None:
        denoiser: Any = model.denoiser
        if not plain:
            denoiser.disable_adapters()
            try:
                plain.extend(draw())
            finally:
                denoiser.enable_adapters()
        grid = _side_by_side({"base": plain, f"adapter, step {step}": draw()})
        if write:
            write_png(folder / f"step-{step:06d}.png", grid)

    return preview


def _side_by_side(columns: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Pictures of equal size, a column per name, named above."""
    first = next(iter(columns.values()))[0]
    gap, head = 16, 40
    height = head + len(next(iter(columns.values()))) * (first.height + gap)
    sheet = Image.new("RGB", (gap + len(columns) * (first.width + gap), height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, pictures) in enumerate(columns.items()):
        left = gap + i * (first.width + gap)
        draw.text((left, 10), name, fill="#333333", font=ImageFont.load_default(18))
        for j, picture in enumerate(pictures):
            sheet.paste(picture, (left, head + j * (first.height + gap)))
    return sheet
