"""Latents of Qwen-Image's VAE, which reads a picture as a film of one frame."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from iclora.models.latents import PACK
from iclora.models.packed import PackedModel

__all__ = ["QwenVae"]


class QwenVae(PackedModel):
    """A base whose latents are normalised by a mean and a deviation for every channel."""

    vae_class = "AutoencoderKLQwenImage"
    frames = True

    def set_grid(self) -> int:
        settings = self.config("vae")
        self.grid = self.multiple = 2 ** len(settings["temperal_downsample"]) * PACK
        channels = int(settings["z_dim"])
        for key in ("latents_mean", "latents_std"):
            if len(settings[key]) != channels:
                raise ValueError(f"{len(settings[key])} numbers for {key}, not {channels}")
        if min(map(float, settings["latents_std"])) <= 0:
            raise ValueError("a deviation of latents that is not above 0")
        return channels * PACK**2

    @cached_property
    def _normal(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of every number of a token, each (channels,) float32."""
        settings = self.config("vae")
        mean, deviation = (
            torch.tensor(settings[key]).float().repeat_interleave(PACK**2)
            for key in ("latents_mean", "latents_std")
        )
        return mean.to(self.device), deviation.to(self.device)

    def normalised(self, tokens: Tensor) -> Tensor:
        mean, deviation = self._normal
        return (tokens - mean) / deviation

    def unnormalised(self, tokens: Tensor) -> Tensor:
        mean, deviation = self._normal
        return tokens * deviation + mean
