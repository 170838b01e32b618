"""The training objective: which samples a step takes, at which noise, and the gradient of the loss.

All randomness follows from (seed, number of the sample). The device is waited for once a step, when
the loss is read: everything that decides what is computed is known on the CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iclora.models import flow
from iclora.models.base import DiffusionModel, Given, Panels, Text
from iclora.sets.layout import Layout, token_mask
from iclora.settings import TrainSettings
from iclora.train.cache import Encoded, EncodedSet

__all__ = ["Sample", "accumulate", "draw_given", "schedule"]


@dataclass(frozen=True)
class Sample:
    """One draw of the schedule: which set, at which of its canvases."""

    number: int
    """Counted over the whole run; with the seed it decides noise, sigma and dropout."""
    set: int
    size: int


def schedule(seed: int, number: int, sizes: Sequence[int]) -> Sample:
    """Say what sample `number` of a run is.

    Every set is drawn once in each pass over the dataset, in an order of that pass, and goes
    through all its canvases before one comes again: exposures of two sets differ by one at most.

    Args:
        sizes: how many canvases each set has.
    """
    epoch, place = divmod(number, len(sizes))
    order = torch.randperm(len(sizes), generator=flow.generator(seed, "order", epoch))
    chosen = int(order[place])
    cycle, nth = divmod(epoch, sizes[chosen])
    canvases = torch.randperm(
        sizes[chosen], generator=flow.generator(seed, "canvas", chosen, cycle)
    )
    return Sample(number, chosen, int(canvases[nth]))


def accumulate(
    model: DiffusionModel,
    encoded: Encoded,
    samples: Sequence[Sample],
    settings: TrainSettings,
    total: int | None = None,
) -> float:
    """Add the gradient of the samples' mean loss to the LoRA parameters.

    Samples are computed in groups of one canvas, as many given tokens and as long texts, at most
    `settings.micro_batch` at a time, or as many as `settings.micro_tokens` holds; every sample
    weighs the same however it is grouped, and nothing is padded.

    Args:
        total: samples of the whole step, if other processes compute the rest of them.
    Returns: their share of the mean loss.
    """
    total = total or len(samples)
    groups: dict[_Alike, list[_Drawn]] = defaultdict(list)
    for sample in samples:
        entry = encoded.sets[sample.set]
        layout = entry.layouts[sample.size]
        rng = flow.generator("given", settings.seed, sample.number)
        panels = draw_given(rng, settings, layout.panels, encoded.usual)
        given = torch.from_numpy(token_mask(layout, panels, model.grid)).flatten()
        rng = flow.generator("dropout", settings.seed, sample.number)
        text, lengths = model.as_one(_draw_texts(entry, encoded, settings, rng))
        # Texts that are read apart tie the order of tokens to which panels are given.
        same = panels if len(lengths) > 1 else ()
        groups[layout, int(given.sum()), lengths, same].append(_Drawn(sample, given, text))
    sums = []
    for (layout, _, lengths, _), members in groups.items():
        tokens = layout.width * layout.height // model.grid**2 + sum(lengths)
        most = max(settings.micro_batch, settings.micro_tokens // tokens)
        for start in range(0, len(members), most):
            part = members[start : start + most]
            losses = _losses(model, encoded, part, layout, lengths, settings)
            torch.autograd.backward(losses.sum() / total)
            sums.append(losses.detach().sum())
    return sum(torch.stack(sums).tolist()) / total if sums else 0.0


def draw_given(
    rng: torch.Generator, settings: TrainSettings, panels: int, usual: tuple[int, ...]
) -> tuple[int, ...]:
    """Draw the panels of a sample that are given, counted from 0; none in joint training.

    Half of the time these are the usual ones, if the recipe names some; else any, but not all.

    Args:
        panels: how many the sample has.
        usual: panels that are usually given, counted from 0.
    """
    first, second = torch.rand(2, generator=rng).tolist()
    if panels < 2 or first >= settings.conditional:
        return ()
    if usual and second < 0.5:
        return usual
    count = int(torch.randint(1, panels, (1,), generator=rng))
    return tuple(sorted(torch.randperm(panels, generator=rng)[:count].tolist()))


_Alike = tuple[Layout, int, tuple[int, ...], tuple[int, ...]]
"""The canvas of samples that are computed together, how many tokens are given, how long each text
is, and which panels are given, if texts are read apart."""


@dataclass(frozen=True)
class _Drawn:
    """A sample with what was drawn for it."""

    sample: Sample
    given: Tensor
    """bool (n,), True at tokens that are given; on the CPU."""
    text: Text


def _losses(
    model: DiffusionModel,
    encoded: Encoded,
    samples: Sequence[_Drawn],
    layout: Layout,
    lengths: tuple[int, ...],
    settings: TrainSettings,
) -> Tensor:
    """Compute the loss of each sample, (B,).

    Args:
        samples: all on one canvas, with as many given tokens and as long texts in each.
        lengths: tokens of each text.
    """
    latents, noises, levels = [], [], []
    for sample in (drawn.sample for drawn in samples):
        x0 = encoded.sets[sample.set].latents(sample.size)
        latents.append(x0)
        key = (settings.seed, sample.number)
        noises.append(torch.randn(x0.shape, generator=flow.generator("noise", *key)))
        levels.append(_draw_level(model, settings, len(x0), flow.generator("sigma", *key)))
    texts = [drawn.text for drawn in samples]
    x0 = _send(torch.stack(latents), model.device)
    eps = _send(torch.stack(noises), model.device)
    # The model sees sigma in its own precision; noise with the same number, or the two disagree.
    sigma = _send(torch.cat(levels).to(model.dtype), model.device).float()
    z = flow.add_noise(x0, eps, sigma)
    size = layout.size
    tokens = torch.stack([drawn.given for drawn in samples])
    given = Given(tokens, clean=True, isolated=settings.isolate_given)
    panels = Panels.of(layout, lengths, model.grid)
    if not given.count:
        v = model.velocity(z, sigma, texts, size, settings.guidance, panels=panels)
        return flow.loss(v, x0, eps)
    # Given tokens are clean, as they will be when a set is completed, and are not learned.
    z = torch.where(_send(tokens, model.device)[..., None], x0, z)
    v = model.velocity(z, sigma, texts, size, settings.guidance, given, None, panels)
    # By number (B, n - given, 1): the device would have to count a mask of its own, while we wait.
    learned = _send((~tokens).nonzero()[:, 1].view(len(samples), -1, 1), model.device)
    return flow.loss(*(torch.take_along_dim(x, learned, 1) for x in (v, x0, eps)))


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to the device, without waiting for it.

    Nothing in a step waits, so the next micro-batch is drawn and pinned while a card computes this
    one. Its copy, some megabytes, stands in the same queue: a stream of its own would save little.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _draw_level(
    model: DiffusionModel, settings: TrainSettings, tokens: int, rng: torch.Generator
) -> Tensor:
    sigma = flow.draw_sigma(rng, settings.sigma_mean, settings.sigma_std)
    return model.shift(sigma, tokens) if settings.shift == "resolution" else sigma


def _draw_texts(
    entry: EncodedSet, encoded: Encoded, settings: TrainSettings, rng: torch.Generator
) -> list[Text]:
    dropped = float(torch.rand(1, generator=rng)) < settings.caption_dropout
    # One empty text for all panels, however others are read: so the base was trained.
    return [encoded.empty] if dropped else entry.texts()
