"""The one contract between a base model family and everything else.

Training, caching, generating and completing know a base only by this class. What differs between
families stays behind it. Read for it: the diffusers pipelines of FLUX.1, FLUX.2 klein, Qwen-Image
and Z-Image. They differ in

- text: a fixed 512 tokens and a pooled vector (FLUX.1), hidden states of several layers (FLUX.2),
  a ragged length with a mask (Qwen-Image, Z-Image). Hence a text is an opaque dict of tensors
  *without* a batch dimension, and `velocity` joins several of them its own way;
- guidance: an embedding (FLUX.1), two passes with an empty text (FLUX.2 klein, Z-Image), two
  passes with the norm restored (Qwen-Image). Hence guidance is an argument of `velocity`;
- latents: shift and scale by two numbers (FLUX.1, Z-Image), by channel (Qwen-Image), by the VAE's
  batch norm after packing (FLUX.2). Hence latents are normalised and packed tokens everywhere;
- time: sigma (all) or 1 - sigma with the sign turned (Z-Image). Here always sigma, and the
  velocity always eps - x0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from iclora.files import digest
from iclora.settings import Precision

__all__ = ["PARTS", "DiffusionModel", "Given", "Part", "Sampling", "Text"]

Text = dict[str, Tensor]
"""What a base's text encoders make of one text; no batch dimension; only the base reads it."""

Part = Literal["text", "vae", "denoiser"]
"""What a base consists of; each is loaded at first use and can be released."""

PARTS: tuple[Part, ...] = ("text", "vae", "denoiser")


@dataclass(frozen=True)
class Sampling:
    """How a base wants to be sampled."""

    steps: int | None = None
    """Euler steps; None leaves them to the recipe."""
    guided: bool = True
    """Whether the guidance value has any effect."""


@dataclass(frozen=True)
class Given:
    """Tokens of a canvas whose content is given, and how the denoiser is to read them."""

    tokens: Tensor
    """bool (n,), True at given tokens; or (B, n), with as many in every sample, where they are
    clean."""
    clean: bool = False
    """They carry no noise, and the denoiser is told so, token by token."""
    alone: bool = False
    """They attend to each other only, so that they are the same whatever the rest shows."""
    boost: float = 1.0
    """Factor on the attention that the rest of the canvas pays them."""
    kept: list[tuple[Tensor, Tensor]] | None = field(default=None, compare=False)
    """With `alone`, an empty list to keep their keys and values in. The base fills it once; as
    long as the same list is passed, given tokens are not computed again."""

    @property
    def count(self) -> int:
        """Given tokens of a sample."""
        return int(self.tokens.view(-1, self.tokens.shape[-1])[0].sum())

    def __post_init__(self) -> None:
        assert self.kept is None or (self.alone and self.clean), "only what never changes is kept"
        assert self.boost == 1 or not self.clean, "clean tokens need no boost"
        assert self.tokens.ndim == 1 or self.clean, "only clean tokens may differ in a batch"


class DiffusionModel(ABC):
    """A base model: its parts, its token grid, its velocity.

    Attributes:
        name: the path or hub id it was asked for by.
        folder: where its files are.
        family: such as "flux".
        grid: token edge in px.
        channels: numbers per token.
        max_text_tokens: tokens the text encoder reads, special tokens included.
        device: where it computes.
        dtype: of its weights, bf16 or fp32.
        precision: how the linear layers of the denoiser's blocks are kept; base is as dtype says.
        sampling: how it wants to be sampled.
        applied: weights and strength of the adapter the denoiser carries, so that the same one is
            not loaded again; None after a release or a removal.
        recompute: how many blocks of the denoiser keep their input alone for the backward pass.
        compiled: whether blocks are compiled where gradients are wanted.
        mesh: the processes the blocks' weights are spread over, a torch DeviceMesh; set before the
            denoiser is first used. None keeps them whole. Where it is set, every process of it
            must compute every velocity.
    """

    name: str
    folder: Path
    family: str
    grid: int
    channels: int
    max_text_tokens: int
    device: torch.device
    dtype: torch.dtype
    sampling: Sampling
    applied: tuple[Mapping[str, Tensor], float] | None = None
    recompute: int = 0
    precision: Precision = "full"
    compiled: bool = False
    mesh: DeviceMesh | None = None

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The transformer, a diffusers model with PEFT's adapter methods; loaded at first use."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """How many blocks the denoiser has."""

    @abstractmethod
    def release(self, *parts: Part) -> None:
        """Free these parts' memory; they are loaded again when next used."""

    @abstractmethod
    def fingerprint(self, part: Part) -> str:
        """A hash that changes with the part's weights or settings, whatever it is called."""

    def identity(self) -> str:
        """A hash of all its weights and settings."""
        return digest(*(self.fingerprint(part) for part in PARTS))

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Tokens of a text, special tokens included; loads only the tokenizer."""

    @abstractmethod
    def encode_text(self, text: str) -> Text:
        """Run the text encoders on one text.

        Returns: tensors on the CPU in the base's dtype.
        Raises: CaptionError above `max_text_tokens`, for the rest would be cut off.
        """

    @abstractmethod
    def encode_image(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Latent tokens of a picture: the posterior's mode, normalised and packed.

        Args:
            pixels: (height, width, 3), edges multiples of `grid`.
        Returns: (n, channels) float32 on the CPU, tokens row by row.
        """

    @abstractmethod
    def decode(self, tokens: Tensor, width: int, height: int) -> NDArray[np.uint8]:
        """The picture of (n, channels) latent tokens. Returns: (height, width, 3)."""

    @abstractmethod
    def velocity(
        self,
        z: Tensor,
        sigma: Tensor,
        texts: Sequence[Text],
        size: tuple[int, int],
        guidance: float,
        given: Given | None = None,
    ) -> Tensor:
        """Predict eps - x0.

        Args:
            z: (B, n, channels) noisy tokens, any float dtype, on `device`.
            sigma: (B,) noise levels in [0, 1].
            texts: one per sample.
            size: canvas width and height in px; n = width // grid * (height // grid).
            guidance: value of the guidance embedding, or weight of the guided pass.
            given: which tokens of `z` are given, as many in all samples, and how they are read.
                What is returned for clean ones means nothing.
        Returns: (B, n, channels) float32.
        """

    @abstractmethod
    def sigmas(self, steps: int, tokens: int) -> list[float]:
        """The base's own schedule: `steps` noise levels from 1 downwards, then 0."""

    @abstractmethod
    def shift_mu(self, tokens: int) -> float:
        """mu of the base's resolution shift for a canvas of so many tokens (see `flow.shift`)."""

    @abstractmethod
    def lora_targets(self, kind: str) -> list[str]:
        """Names of the denoiser's linear layers to adapt.

        Args:
            kind: "all" (every linear of every block, as the paper's trainer), "attention+mlp"
                (without the modulation), or "attention".
        """
