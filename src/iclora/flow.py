"""Rectified flow: noise, target, the draw of sigma, the Euler loop.

A sample at noise level sigma is x = (1 - sigma) * x0 + sigma * eps: clean at 0, pure noise at 1.
The model predicts the velocity eps - x0, constant along that line. Training, generating and
completing all go through these few functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from iclora.files import digest

__all__ = ["add_noise", "denoise", "draw_sigma", "generator", "loss", "resolution_shift", "shift"]


def generator(*key: object) -> torch.Generator:
    """A random generator that depends on the key alone, such as (seed, "noise", step, sample).

    Always on the CPU, so that every device sees the same numbers, and made anew at each use, so
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


def loss(velocity: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of each sample's velocity against eps - x0, in float32.

    Args: all (B, n, c). Returns: (B,).
    """
    error = velocity.float() - (eps.float() - x0.float())
    return error.square().mean(dim=(1, 2))


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


def denoise(
    velocity: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    known: Tensor | None = None,
    x0: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Follow the velocity from noise to a clean sample, by Euler steps in float32.

    With `known` tokens this is the paper's masked SDEdit at strength 1: before every step the
    known tokens are set to their clean latents, noised to the current sigma with the one fixed
    noise draw; unknown tokens start from pure noise. After the last step known tokens are clean.

    Args:
        velocity: (z (1, n, c), sigma) -> (1, n, c).
        noise: (1, n, c) standard normal, float32.
        sigmas: decreasing, from 1 to a final 0.
        known: bool (n,), True at tokens whose content is given.
        x0: (1, n, c) clean latents; read only at known tokens.
        on_step: called with (steps done, steps in all).
    Returns: (1, n, c) float32.
    """
    z = noise.clone()
    for step, (sigma, following) in enumerate(pairwise(sigmas), 1):
        if known is not None and x0 is not None:
            z = torch.where(known[:, None], (1 - sigma) * x0 + sigma * noise, z)
        z = z + (following - sigma) * velocity(z, sigma).float()
        if on_step:
            on_step(step, len(sigmas) - 1)
    if known is not None and x0 is not None:
        z = torch.where(known[:, None], x0, z)
    return z
