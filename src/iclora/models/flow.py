"""Rectified flow: noise, target, the draw of sigma, the Euler loop.

A sample at noise level sigma is x = (1 - sigma) * x0 + sigma * eps: clean at 0, pure noise at 1.
The model predicts the velocity eps - x0, constant along that line. Training, generating and
completing all go through these few functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from iclora.files import digest

__all__ = [
    "Resample",
    "add_noise",
    "denoise",
    "draw_sigma",
    "generator",
    "loss",
    "resolution_shift",
    "shift",
]


def generator(*key: object) -> torch.Generator:
    """A random generator that depends on the key alone, such as (seed, "noise", step, sample).

    Always on the CPU, so that every device sees the same numbers, and made again at each use, so
    that there is no hidden state to save or to lose.
    """
    return torch.Generator().manual_seed(int(digest(*map(str, key))[:15], 16))


def add_noise(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """(1 - sigma) * x0 + sigma * eps.

    Args:
        x0, eps: (B, n, c).
        sigma: (B,) in [0, 1].
    """
    s = sigma.view(-1, 1, 1)
    return (1 - s) * x0 + s * eps


def loss(velocity: Tensor, x0: Tensor, eps: Tensor, of: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample's velocity against eps - x0, in float32.

    Args:
        velocity, x0, eps: (B, n, c).
        of: bool (B, n), the tokens that count, as many in every sample; by default all.
    Returns: (B,).
    """
    error = (velocity.float() - (eps.float() - x0.float())).square().mean(-1)
    return (error if of is None else error[of].view(len(error), -1)).mean(-1)


def draw_sigma(rng: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """One logit-normal sigma in (0, 1), shape (1,): sigmoid of a normal draw.

    Source: Esser et al. 2024 (arXiv 2403.03206), section 3.1; mean 0 and std 1 as in the paper's
    trainer.
    """
    return torch.sigmoid(mean + std * torch.randn(1, generator=rng))


def shift(sigma: Tensor, mu: float) -> Tensor:
    """Move sigma towards noise: e^mu / (e^mu + 1/sigma - 1). mu = 0 changes nothing.

    Source: FLUX.1's reference sampling code, `time_shift`.
    """
    e = torch.exp(torch.tensor(mu, dtype=sigma.dtype))
    return e * sigma / (1 + (e - 1) * sigma)


def resolution_shift(tokens: int, least: int, most: int, low: float, high: float) -> float:
    """mu of `shift` for a canvas of so many tokens: a line through (least, low), (most, high).

    FLUX.1: (256, 0.5) and (4096, 1.15).
    """
    return low + (high - low) * (tokens - least) / (most - least)


@dataclass(frozen=True)
class Resample:
    """Time travel: some steps are taken several times, from new noise each time.

    Missing and given panels then meet more often at the noise levels that settle identities and
    layout, and a given panel is read through other noise each time.

    Source: Lugmayr et al. 2022 (RePaint, arXiv 2201.09865), here for a rectified flow: to go back
    from s' to s, z <- a z + b noise with a = (1 - s) / (1 - s') and b^2 = s^2 - (a s')^2.
    """

    times: int
    """Repetitions of a step."""
    low: float
    """Steps are repeated that begin at this noise level or above it,"""
    high: float
    """and at this one or below it."""
    noise: Callable[[int, int], Tensor]
    """Standard normal noise (B, n, c) for the step and the repetition of these numbers."""

    @staticmethod
    def renoise(z: Tensor, sigma_next: float, sigma: float, noise: Tensor) -> Tensor:
        """Go back from level `sigma_next` up to `sigma`."""
        a = (1 - sigma) / (1 - sigma_next)
        b = math.sqrt(max(0.0, sigma**2 - (a * sigma_next) ** 2))
        return a * z + b * noise

    def repeats(self, sigma: float) -> int:
        """Count how often a step from this level is taken."""
        return 1 + self.times * (self.low <= sigma <= self.high)


def denoise(
    velocity: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    given: Tensor | None = None,
    x0: Tensor | None = None,
    clean: bool = False,
    resample: Resample | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Follow the velocity from noise to a clean sample, by Euler steps in float32.

    With `given` tokens this is the paper's masked SDEdit at strength 1: before every step the
    given tokens are set to their clean latents, noised to the current sigma with the one fixed
    noise draw (in repetitions with a draw of their own); the others start from pure noise. After
    the last step given tokens are clean.

    Args:
        velocity: (z (B, n, c), sigma) -> (B, n, c).
        noise: (B, n, c) standard normal, float32.
        sigmas: decreasing, from 1 to a final 0.
        given: bool (n,), True at tokens whose content is given.
        x0: (B, n, c) clean latents; read only at given tokens.
        clean: leave given tokens clean at every step; `velocity` must know that they are.
        resample: steps to be repeated.
        on_step: called with (steps done, steps in all), repetitions included.
    Returns: (B, n, c) float32.
    """
    z = noise.clone()
    repeats = [resample.repeats(s) if resample else 1 for s in sigmas[:-1]]
    done = 0
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        for repeat in range(repeats[step]):
            eps = noise
            if repeat and resample:
                eps = resample.noise(step, repeat).to(z.device)
                z = resample.renoise(z, sigma_next, sigma, eps)
            if given is not None and x0 is not None:
                level = 0.0 if clean else sigma
                z = torch.where(given[:, None], (1 - level) * x0 + level * eps, z)
            z = z + (sigma_next - sigma) * velocity(z, sigma).float()
            done += 1
            if on_step:
                on_step(done, sum(repeats))
    if given is not None and x0 is not None:
        z = torch.where(given[:, None], x0, z)
    return z
