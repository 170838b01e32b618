"""The one way sets are made: generating, completing, and all that builds on them.

Completing a set differs from generating one only in that some panels are given.

    with a base `model` open, and asks from `asks.asks_of` or `request.prepare`:
    for number, made in Session(model).make(asks):
        made.save_next("OUT")

A session encodes every text once and frees the text encoders before the denoiser is loaded: some
10 GB that are never on an accelerator together with it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iclora.adapter import Adapter, remove
from iclora.errors import AdapterError, SettingsError
from iclora.making.made import Cost, GeneratedSet
from iclora.making.request import Request, check_base, fit_given, fitting_latents, prepare
from iclora.models import flow
from iclora.models.base import DiffusionModel, Given, Text
from iclora.progress import Progress
from iclora.sets.canvas import split
from iclora.sets.layout import Box, Layout, token_mask
from iclora.sets.recipe import Recipe
from iclora.settings import Wish, settings_of

__all__ = ["AS_IS", "Ask", "Session", "complete", "generate", "panel_noise"]


class _AsIs(Enum):
    AS_IS = "as it is"


AS_IS: Final = _AsIs.AS_IS
"""In place of an adapter: what the denoiser carries now, which a session must not change."""


@dataclass(frozen=True)
class Ask:
    """One set to make: its request, and what the request names by hash alone."""

    request: Request
    given: Mapping[int, Image.Image] = field(default_factory=dict)
    """Pictures of the request's given panels by number, counted from 1."""
    latents: Mapping[int, Tensor] = field(default_factory=dict)
    """Of given panels that were made before, (rows, columns, channels)."""
    adapter: Adapter | _AsIs | None = None


class Session:
    """Makes sets with one base.

    Args:
        progress: hears of every text encoded and every step painted; `Progress.cancel` ends the
            work between two of them.
        free: free the text encoders before the denoiser is loaded, and the denoiser before they
            are loaded again; by default on an accelerator.
    """

    def __init__(
        self, model: DiffusionModel, progress: Progress | None = None, free: bool | None = None
    ) -> None:
        self.model = model
        self.free = model.device.type != "cpu" if free is None else free
        self._progress = progress or Progress()
        self._texts: dict[str, Text] = {}
        self._based: set[str] = set()

    def encode(self, requests: Iterable[Request]) -> None:
        """Encode what these requests read, each text once in the session's life.

        A session that is told all its requests at first loads the text encoders once.

        Raises: CaptionError for a text that is too long.
        """
        texts = dict.fromkeys(chain.from_iterable(map(self._read, requests)))
        wanted = [text for text in texts if text not in self._texts]
        if not wanted:
            return
        if self.free:
            self.model.release("denoiser")
        for number, text in enumerate(wanted, 1):
            self._texts[text] = self.model.encode_text(text)
            self._progress("encoding texts", number, len(wanted))
        if self.free:
            self.model.release("text")

    def _read(self, request: Request) -> tuple[str, ...]:
        """The texts of a request: the prompt and, if the base has one, the unguided pass's."""
        two = self.model.sampling.guided == "two-pass"
        return (request.prompt, request.negative) if two else (request.prompt,)

    def make(self, asks: Sequence[Ask], together: int = 1) -> Iterator[tuple[int, GeneratedSet]]:
        """Make a set for every ask.

        Asks with the same adapter, and among them those alike but for words, seeds and pictures,
        are made one after another, in the order of the first of them.

        Args:
            together: most sets in one batch; 1 gives the same bytes whatever else is asked for.
        Yields: the number of an ask, from 0, and its set, as soon as its batch is made.
        Raises: at once, SettingsError, LayoutError, AdapterError for an ask that cannot be met;
            while sets are made, AdapterError for an adapter that does not fit the base, Cancelled.
        """
        for ask in asks:
            self._check(ask)
        return self._make(asks, together)

    def _make(self, asks: Sequence[Ask], together: int) -> Iterator[tuple[int, GeneratedSet]]:
        self.encode(ask.request for ask in asks)
        if self.free:
            # Others may have loaded them.
            self.model.release("text")
        _load_vae(self.model)
        batches = [
            numbers[at : at + together]
            for numbers in _alike(asks)
            for at in range(0, len(numbers), together)
        ]
        steps = [_count_steps(self.model, asks[batch[0]].request) for batch in batches]
        done = sets = 0
        for batch, count in zip(batches, steps, strict=True):
            _use(self.model, asks[batch[0]])
            first, last = sets + 1, sets + len(batch)
            note = f"set {first}" if first == last else f"sets {first} to {last}"
            note += f" of {len(asks)}"

            def on_step(step: int, _: int, before: int = done, note: str = note) -> None:
                self._progress("painting", before + step, sum(steps), note)

            _use(self.model, asks[batch[0]])
            made = self._paint([asks[n] for n in batch], on_step)
            for number in batch:
                # Taken out, so that nothing is held here once its taker lets go of it.
                yield number, made.pop(0)
            done, sets = done + count, last

    def _paint(self, asks: Sequence[Ask], on_step: Any) -> list[GeneratedSet]:
        model = self.model
        texts = [[self._texts[text] for text in self._read(ask.request)] for ask in asks]
        with _Meter(model.device) as meter:
            drawn = _denoise(model, asks, texts, on_step)
            made = [_decode(model, tokens, ask) for tokens, ask in zip(drawn, asks, strict=True)]
        cost = Cost(meter.seconds / len(asks), meter.memory)
        vae = model.fingerprint("vae")
        return [
            GeneratedSet(composite, panels, ask.request, latents, vae, cost)
            for (composite, panels, latents), ask in zip(made, asks, strict=True)
        ]

    def _check(self, ask: Ask) -> None:
        request = ask.request
        if set(ask.given) != set(request.given):
            raise SettingsError(
                f"pictures of panels {sorted(ask.given)} are given, and the request is for "
                f"{sorted(request.given)}",
                "Give a picture for each of these.",
                setting="given",
            )
        request.layout.check_grid(self.model.grid)
        if request.base_fingerprint not in self._based:
            check_base(request, self.model)
            self._based.add(request.base_fingerprint)
        if isinstance(ask.adapter, _AsIs):
            encoded = self._texts.keys() >= set(self._read(request))
            assert encoded or not self.free, "texts are encoded before the denoiser is as it is"
        elif (ask.adapter.sha256 if ask.adapter else "") != request.adapter_sha256:
            raise AdapterError(
                "the request was made with another adapter",
                "Use that one, or make a new request.",
                setting="adapter",
            )


def generate(
    model: DiffusionModel,
    prompt: str,
    *,
    recipe: Recipe | None = None,
    adapter: Adapter | None = None,
    given: Mapping[int, Image.Image] | None = None,
    latents: Mapping[int, Tensor] | None = None,
    layout: Layout | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> GeneratedSet:
    """Make a new set from words.

    Args:
        prompt: a joint prompt in the recipe's form.
        recipe, adapter, given, latents, layout: as in `request.prepare`.
        settings: fields of `settings.MakeSettings`, such as size, seed, steps, mode.
    Raises: CaptionError, SettingsError, LayoutError, AdapterError.
    """
    wish = settings_of(Wish, {"prompt": prompt, **settings})
    request, _ = prepare(
        model, wish, recipe=recipe, adapter=adapter, given=given, latents=latents, layout=layout
    )
    ask = Ask(request, given or {}, latents or {}, adapter)
    return next(made for _, made in Session(model, progress).make([ask]))


def complete(
    model: DiffusionModel, prompt: str, given: Mapping[int, Image.Image], **more: Any
) -> GeneratedSet:
    """Make the missing panels of a set; the given ones come back unchanged, pixel for pixel.

    If a given panel's size is off the token grid, the composite holds it resized to its box;
    `GeneratedSet.panels` still holds the picture that was given. Nothing is cropped.

    Args:
        given: pictures by panel number, counted from 1.
        more: as in `generate`.
    Raises: as `generate`; SettingsError if no panel is given, or all are.
    """
    if not given:
        raise SettingsError(
            "no panel is given", "Set `given` to at least one picture.", setting="given"
        )
    return generate(model, prompt, given=given, **more)


# -- order --------------------------------------------------------------------------------------


def _alike(asks: Sequence[Ask]) -> list[list[int]]:
    """Numbers of asks that can share a batch, those of one adapter beside each other."""
    groups: dict[Any, dict[Any, list[int]]] = {}
    for number, ask in enumerate(asks):
        r = ask.request
        weights = ask.adapter.weights if isinstance(ask.adapter, Adapter) else ask.adapter
        carried = (id(weights), r.strength)
        how = (r.layout, tuple(sorted(r.given)), r.mode, r.isolate_given, r.boost, r.steps)
        more = (r.guidance, r.resample, r.resample_from)
        groups.setdefault(carried, {}).setdefault(how + more, []).append(number)
    return list(chain.from_iterable(group.values() for group in groups.values()))


def _use(model: DiffusionModel, ask: Ask) -> None:
    """Load the ask's adapter into the denoiser, or unload any."""
    if isinstance(ask.adapter, Adapter):
        ask.adapter.apply(model, ask.request.strength)
    elif ask.adapter is None:
        remove(model)


# -- painting -----------------------------------------------------------------------------------


@torch.no_grad()
def _denoise(
    model: DiffusionModel, asks: Sequence[Ask], texts: Sequence[Sequence[Text]], on_step: Any
) -> Tensor:
    """The latents of asks that are alike, in one batch.

    Args:
        texts: of each ask, what the guided pass reads and, if there is one, the unguided.
    Returns: (B, n, c) on the CPU.
    """
    first = asks[0].request
    layout = first.layout
    requests = [ask.request for ask in asks]
    noise = _noise(model, requests)
    tokens, x0 = _given_tokens(model, asks)
    given = _given(first, tokens)
    guided, *unguided = zip(*texts, strict=True)

    def velocity(z: Tensor, sigma: float) -> Tensor:
        sigmas = torch.full((len(z),), sigma, device=model.device)
        return model.velocity(z, sigmas, guided, layout.size, first.guidance, given, *unguided)

    return flow.denoise(
        velocity,
        noise,
        model.sigmas(first.steps, noise.shape[1]),
        given=tokens,
        x0=x0,
        clean=first.mode == "clean",
        resample=_resample(model, requests),
        on_step=on_step,
    ).cpu()


def _decode(
    model: DiffusionModel, tokens: Tensor, ask: Ask
) -> tuple[Image.Image, tuple[Image.Image, ...], tuple[Tensor, ...]]:
    """The composite, panels and panels' latents of a canvas's tokens (n, c)."""
    layout = ask.request.layout
    composite = Image.fromarray(model.decode(tokens, *layout.size))
    for number, image in fit_given(layout, ask.given).items():
        # The decoder only approximates what the encoder saw; the user's pixels are the truth.
        composite.paste(image, layout.boxes[number - 1].corners[:2])
    panels = tuple(ask.given.get(n, panel) for n, panel in enumerate(split(layout, composite), 1))
    cells = tokens.view(layout.height // model.grid, layout.width // model.grid, -1)
    latents = tuple(cells[_cells(box, model.grid)].clone() for box in layout.boxes)
    return composite, panels, latents


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


def _count_steps(model: DiffusionModel, request: Request) -> int:
    """Steps that a batch of such requests takes, repetitions included."""
    layout = request.layout
    tokens = (layout.width // model.grid) * (layout.height // model.grid)
    sigmas = model.sigmas(request.steps, tokens)[:-1]
    return sum(1 + request.resample * (s >= request.resample_from) for s in sigmas)


def _given(request: Request, tokens: Tensor | None) -> Given | None:
    """How the base is to read the given panels."""
    if tokens is None:
        return None
    if request.mode == "clean":
        cache: list[tuple[Tensor, Tensor]] | None = [] if request.isolate_given else None
        return Given(tokens, clean=True, isolated=request.isolate_given, cache=cache)
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
        for number, image in fit_given(layout, ask.given).items():
            # Each panel is encoded alone: a placeholder beside it would bleed into its latents,
            # across the border by convolution and everywhere by group norm.
            cells = _cells(layout.boxes[number - 1], model.grid)
            if number in fitting:
                place[cells] = fitting[number]
            else:
                shape = place[cells].shape
                place[cells] = model.encode_image(np.asarray(image)).view(shape)
    return mask.flatten().to(model.device), x0.flatten(1, 2).to(model.device)


def _cells(box: Box, grid: int) -> tuple[slice, slice]:
    """Rows and columns of a panel's tokens."""
    return (slice(box.top // grid, box.bottom // grid), slice(box.left // grid, box.right // grid))


# -- what it costs ------------------------------------------------------------------------------


def _load_vae(model: DiffusionModel) -> None:
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
