"""What one step learns from: which samples, at which noise, and the gradient of their loss.

All randomness follows from (seed, number of the sample).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iclora.models import flow
from iclora.models.base import DiffusionModel, Given, Text
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
    """What sample `number` of a run is.

    Every set is drawn once in each pass over the dataset, in an order of that pass, and goes
    through all its canvases before one comes again: exposures of two sets differ by one at most.

    Args:
        sizes: how many canvases each set has.
    """
    turn, place = divmod(number, len(sizes))
    order = torch.randperm(len(sizes), generator=flow.generator(seed, "order", turn))
    chosen = int(order[place])
    cycle, nth = divmod(turn, sizes[chosen])
    canvases = torch.randperm(
        sizes[chosen], generator=flow.generator(seed, "canvas", chosen, cycle)
    )
    return Sample(number, chosen, int(canvases[nth]))


def accumulate(
    model: DiffusionModel,
    encoded: Encoded,
    samples: Sequence[Sample],
    config: TrainSettings,
    total: int | None = None,
) -> float:
    """Add the gradient of the samples' mean loss to the LoRA parameters.

    Samples are computed in groups of one canvas, as many given tokens and as long texts, at most
    `config.micro_batch` at a time, or as many as `config.micro_tokens` holds; every sample weighs
    the same however it is grouped, and nothing is padded.

    Args:
        total: samples of the whole step, where others compute the rest of them.
    Returns: their share of the mean loss.
    """
    total = total or len(samples)
    groups: dict[tuple[Layout, int, int], list[tuple[Sample, Tensor, Text]]] = defaultdict(list)
    for sample in samples:
        layout = encoded.sets[sample.set].layouts[sample.size]
        rng = flow.generator("given", config.seed, sample.number)
        panels = draw_given(rng, config, layout.panels, encoded.usual)
        given = torch.from_numpy(token_mask(layout, panels, model.grid)).flatten()
        rng = flow.generator("dropout", config.seed, sample.number)
        text = _draw_text(encoded.sets[sample.set], encoded, config, rng)
        group = layout, int(given.sum()), model.text_tokens(text)
        groups[group].append((sample, given, text))
    loss = 0.0
    for (layout, _, words), members in groups.items():
        tokens = layout.width * layout.height // model.grid**2 + words
        most = max(config.micro_batch, config.micro_tokens // tokens)
        for start in range(0, len(members), most):
            part = members[start : start + most]
            losses = _losses(model, encoded, part, layout, config)
            torch.autograd.backward(losses.sum() / total)
            loss += float(losses.detach().sum())
    return loss / total


def draw_given(
    rng: torch.Generator, config: TrainSettings, panels: int, usual: tuple[int, ...]
) -> tuple[int, ...]:
    """Which panels of a sample are given, counted from 0; none in joint training.

    Half of the time the usual ones, where the recipe names some, else any, but not all.
    """
    first, second = torch.rand(2, generator=rng).tolist()
    if panels < 2 or first >= config.conditional:
        return ()
    if usual and second < 0.5:
        return usual
    count = int(torch.randint(1, panels, (1,), generator=rng))
    return tuple(sorted(torch.randperm(panels, generator=rng)[:count].tolist()))


def _losses(
    model: DiffusionModel,
    encoded: Encoded,
    samples: Sequence[tuple[Sample, Tensor, Text]],
    layout: Layout,
    config: TrainSettings,
) -> Tensor:
    """Loss of each sample, (B,).

    Args:
        samples: all on one canvas, each with the tokens that are given, bool (n,), and its text;
            as many given tokens and as long texts in each.
    """
    latents, noises, levels, texts = [], [], [], []
    for sample, _, text in samples:
        entry = encoded.sets[sample.set]
        x0 = entry.latents(sample.size)
        latents.append(x0)
        key = (config.seed, sample.number)
        noises.append(torch.randn(x0.shape, generator=flow.generator("noise", *key)))
        levels.append(_draw_level(model, config, len(x0), flow.generator("sigma", *key)))
        texts.append(text)
    x0 = torch.stack(latents).to(model.device)
    eps = torch.stack(noises).to(model.device)
    # The model sees sigma in its own precision; noise with the same number, or the two disagree.
    sigma = torch.cat(levels).to(model.device, model.dtype).float()
    z = flow.add_noise(x0, eps, sigma)
    size = layout.size
    given = Given(
        torch.stack([tokens for _, tokens, _ in samples]), clean=True, isolated=config.isolate_given
    )
    if not given.count:
        return flow.loss(model.velocity(z, sigma, texts, size, config.guidance), x0, eps)
    # What is given is clean, as it will be when a set is completed, and is not learnt.
    tokens = given.tokens.to(model.device)
    z = torch.where(tokens[..., None], x0, z)
    v = model.velocity(z, sigma, texts, size, config.guidance, given)
    return flow.loss(v, x0, eps, ~tokens)


def _draw_level(
    model: DiffusionModel, config: TrainSettings, tokens: int, rng: torch.Generator
) -> Tensor:
    sigma = flow.draw_sigma(rng, config.sigma_mean, config.sigma_std)
    return model.shift(sigma, tokens) if config.shift == "resolution" else sigma


def _draw_text(
    entry: EncodedSet, encoded: Encoded, config: TrainSettings, rng: torch.Generator
) -> Text:
    dropped = float(torch.rand(1, generator=rng)) < config.caption_dropout
    return encoded.empty if dropped else entry.text()
