"""Sampling: the sets of asks that are alike, in one batch.

Completing a set differs from generating one only in that some panels are given.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iclora.adapter import Adapter
from iclora.errors import AdapterError, ModelError
from iclora.making.given import fitting_latents
from iclora.making.made import Cost, GeneratedSet
from iclora.making.request import Request
from iclora.models import flow
from iclora.models.base import DiffusionModel, Given, Panels, Text
from iclora.models.levels import Schedule
from iclora.sets.canvas import split
from iclora.sets.layout import Layout, token_mask
from iclora.sets.tokens import cells_of

__all__ = ["AS_IS", "AsIs", "Ask", "Read", "count_steps", "load_vae", "paint", "panel_noise"]

T = TypeVar("T")
OnStep = Callable[[int, int], None]
"""Hears of (steps done, steps in all)."""


class AsIs(Enum):
    """The type of `AS_IS`."""

    AS_IS = "as it is"


AS_IS: Final = AsIs.AS_IS
"""In place of an adapter: what the denoiser carries now, which a session must not change."""


@dataclass(frozen=True)
class Ask:
    """One set to make: its request, and what the request names by hash alone."""

    request: Request
    given: Mapping[int, Image.Image] = field(default_factory=dict)
    """Pictures of the request's given panels by number, counted from 1."""
    latents: Mapping[int, Tensor] = field(default_factory=dict)
    """Of given panels that were made before, (rows, columns, channels)."""
    adapter: Adapter | AsIs | None = None
    """None for the base alone."""


class Read(NamedTuple):
    """The texts of an ask."""

    guided: tuple[Text, ...]
    """What the guided pass reads: one text for all panels, or one for each."""
    unguided: Text | None = None
    """What the unguided pass reads, if the base has one."""


def paint(
    model: DiffusionModel, asks: Sequence[Ask], texts: Sequence[Read], on_step: OnStep | None = None
) -> list[GeneratedSet]:
    """Sample and decode asks that differ in words, seeds and pictures alone.

    Args:
        texts: what each ask reads.
    Raises: AdapterError, ModelError for numbers that are not finite, which would be black.
    """
    with _Meter(model.device) as meter:
        drawn = _with_room(model, lambda: _denoise(model, asks, texts, on_step))
        _check_finite(drawn, asks[0])
        pairs = list(zip(drawn, asks, strict=True))
        made = _with_room(model, lambda: [_decode(model, *pair) for pair in pairs])
    cost = Cost(meter.seconds / len(asks), meter.memory)
    vae = model.fingerprint("vae")
    shared = {"together": len(asks)}
    return [
        GeneratedSet(composite, panels, ask.request.model_copy(update=shared), latents, vae, cost)
        for (composite, panels, latents), ask in zip(made, asks, strict=True)
    ]


def _with_room(model: DiffusionModel, work: Callable[[], T]) -> T:
    """Do a work, and again without what recorded passes keep if it finds too little memory."""
    try:
        return work()
    except torch.OutOfMemoryError:
        if model.graphs is None or not model.graphs.count:
            raise
    # Not inside of the handler: the error holds what the work had made.
    model.graphs.clear()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return work()


def _check_finite(latents: Tensor, ask: Ask) -> None:
    if torch.isfinite(latents).all():
        return
    if isinstance(ask.adapter, Adapter):
        path = ask.adapter.path
        raise AdapterError(
            f"with the adapter{f' {path}' if path else ''} the base paints numbers that are not "
            f"finite; its strength is {ask.request.strength}",
            "Its weights or its alpha are too large: use less strength, or train it again.",
            "adapter",
        )
    raise ModelError(
        "the base paints numbers that are not finite",
        "Use `dtype` bf16 or fp32; if that does not help, download the base again.",
        "dtype",
    )


@torch.no_grad()
def _denoise(
    model: DiffusionModel, asks: Sequence[Ask], texts: Sequence[Read], on_step: OnStep | None
) -> Tensor:
    """The latents of a batch. Returns: (B, n, c) on the CPU."""
    first = asks[0].request
    layout = first.layout
    requests = [ask.request for ask in asks]
    noise = _noise(model, requests)
    tokens, x0 = _given_tokens(model, asks)
    given = _given(first, None if tokens is None else tokens.cpu(), model.grid)
    guided, lengths = zip(*(model.as_one(text.guided) for text in texts), strict=True)
    unguided = [text.unguided for text in texts if text.unguided is not None]
    panels = Panels.of(layout, lengths[0], model.grid)
    model.prime(guided[:1], first.guidance)
    how = (layout.size, first.guidance, given, unguided or None, panels)

    def velocity(z: Tensor, sigma: float) -> Tensor:
        sigmas = torch.full((len(z),), sigma, device=model.device)
        step = (schedule.at(sigma),) if model.ahead else ()
        return model.velocity(z, sigmas, guided, *how, *step)

    levels = _sigmas(model, first)
    recorded = model.graphs.sampling(given) if model.graphs else nullcontext()
    with Schedule(levels) as schedule, recorded:
        return flow.denoise(
            velocity,
            noise,
            levels,
            given=tokens,
            x0=x0,
            clean=first.mode in ("clean", "reference"),
            resample=_resample(model, requests),
            on_step=on_step,
        ).cpu()


def _decode(
    model: DiffusionModel, tokens: Tensor, ask: Ask
) -> tuple[Image.Image, tuple[Image.Image, ...], tuple[Tensor, ...]]:
    """The composite, panels and panels' latents of a canvas's tokens (n, c)."""
    layout = ask.request.layout
    composite = Image.fromarray(model.decode(tokens, *layout.size))
    for number, image in ask.given.items():
        # The decoder only approximates what the encoder saw; the user's pixels are the truth.
        fitted = layout.fit_panel(number, image)
        composite.paste(fitted, layout.boxes[number - 1].corners[:2])
    panels = tuple(ask.given.get(n, panel) for n, panel in enumerate(split(layout, composite), 1))
    cells = tokens.view(layout.height // model.grid, layout.width // model.grid, -1)
    latents = tuple(cells[cells_of(box, model.grid)].clone() for box in layout.boxes)
    return composite, panels, latents


def panel_noise(layout: Layout, seeds: Sequence[object], grid: int, channels: int) -> Tensor:
    """Standard normal noise for a canvas, each panel's from its own seed.

    Returns: (1, n, channels) float32 on the CPU, tokens row by row.
    """
    h, w = layout.height // grid, layout.width // grid
    # Free boxes may leave gaps; these take noise of their own.
    noise = torch.randn(h, w, channels, generator=flow.generator("gaps", *seeds))
    for seed, box in zip(seeds, layout.boxes, strict=True):
        cells = cells_of(box, grid)
        shape = noise[cells].shape
        noise[cells] = torch.randn(shape, generator=flow.generator("panel", seed))
    return noise.reshape(1, h * w, channels)


def _noise(model: DiffusionModel, requests: Sequence[Request], *more: object) -> Tensor:
    """(B, n, c) on the model's device; `more` makes further draws from the same seeds."""
    layout = requests[0].layout
    seeds = [[(seed, *more) if more else seed for seed in r.seeds] for r in requests]
    drawn = [panel_noise(layout, each, model.grid, model.channels) for each in seeds]
    return torch.cat(drawn).to(model.device)


def _resample(model: DiffusionModel, requests: Sequence[Request]) -> flow.Resample | None:
    """Which early steps are repeated, from what noise."""
    first = requests[0]
    if not first.resample:
        return None

    def draw(step: int, repetition: int) -> Tensor:
        return _noise(model, requests, "again", step, repetition)

    return flow.Resample(first.resample, first.resample_from, 1.0, draw)


def count_steps(model: DiffusionModel, request: Request) -> int:
    """Steps that a batch of such requests takes, repetitions included."""
    sigmas = _sigmas(model, request)[:-1]
    return sum(1 + request.resample * (s >= request.resample_from) for s in sigmas)


def _sigmas(model: DiffusionModel, request: Request) -> list[float]:
    """The noise levels of a request, by the tokens that are on its canvas."""
    layout = request.layout
    tokens = (layout.width // model.grid) * (layout.height // model.grid)
    if request.mode == "reference":
        tokens -= int((_references(request, model.grid) > 0).sum())
    return model.sigmas(request.steps, tokens)


def _references(request: Request, grid: int) -> Tensor:
    """The number of the reference that each token of the canvas belongs to, int (n,)."""
    layout = request.layout
    labels = torch.zeros(layout.height // grid, layout.width // grid, dtype=torch.int)
    for label, number in enumerate(sorted(request.given), 1):
        labels[cells_of(layout.boxes[number - 1], grid)] = label
    return labels.flatten()


def _given(request: Request, tokens: Tensor | None, grid: int) -> Given | None:
    """How the base is to read the given panels."""
    if tokens is None:
        return None
    if request.mode == "clean":
        cache: list[tuple[Tensor, Tensor]] | None = [] if request.isolate_given else None
        return Given(tokens, clean=True, isolated=request.isolate_given, cache=cache)
    if request.mode == "reference":
        return Given(tokens, references=_references(request, grid))
    return Given(tokens, scale=request.boost) if request.mode == "boost" else None


def _given_tokens(
    model: DiffusionModel, asks: Sequence[Ask]
) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens are given, bool (n,), and the clean latents of all sets, (B, n, c)."""
    layout, numbers = asks[0].request.layout, sorted(asks[0].given)
    if not numbers:
        return None, None
    mask = torch.from_numpy(token_mask(layout, [n - 1 for n in numbers], model.grid))
    x0 = torch.zeros(len(asks), *mask.shape, model.channels)
    for place, ask in zip(x0, asks, strict=True):
        fitting = fitting_latents(layout, ask.latents, ask.given, model.grid)
        for number, image in ask.given.items():
            # Each panel is encoded alone: a placeholder beside it would bleed into its latents,
            # across the border by convolution and everywhere by group norm.
            cells = cells_of(layout.boxes[number - 1], model.grid)
            if number in fitting:
                place[cells] = fitting[number]
            else:
                shape = place[cells].shape
                pixels = np.asarray(layout.fit_panel(number, image))
                place[cells] = model.encode_image(pixels).view(shape)
    return mask.flatten().to(model.device), x0.flatten(1, 2).to(model.device)


# -- what it costs ------------------------------------------------------------------------------


def load_vae(model: DiffusionModel) -> None:
    """Load it now, by the smallest picture there is, or the first set would seem slow."""
    model.decode(torch.zeros(1, model.channels), model.grid, model.grid)


class _Meter:
    """Seconds and peak memory of a block."""

    seconds = 0.0
    memory = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> _Meter:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.monotonic() - self._began
        if self._device.type == "cuda":
            self.memory = torch.cuda.max_memory_allocated(self._device)
        else:
            self.memory = _process_peak()


def _process_peak() -> int:
    """Most memory this process has had resident, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
