"""The one contract between a base model family and everything else.

Training, caching, generating and completing know a base only by this class. What differs between
families stays behind it. Read for it: the diffusers pipelines of FLUX.1, FLUX.2 klein, Qwen-Image
and Z-Image. They differ in

- text: a fixed 512 tokens and a pooled vector (FLUX.1), hidden states of several layers (FLUX.2),
  a ragged length with a mask (Qwen-Image, Z-Image). Hence a text is an opaque dict of tensors
  *without* a batch dimension, `text_tokens` says how long it is, and `velocity` joins several
  texts of one length: callers group by it, and nothing is padded or masked;
- guidance: an embedding (FLUX.1), two passes with an empty text (FLUX.2 klein, Z-Image), two
  passes with the norm restored (Qwen-Image). Hence guidance is an argument of `velocity`, and so
  are the texts of the unguided pass; one call makes both passes;
- latents: shift and scale by two numbers (FLUX.1, Z-Image), by channel (Qwen-Image), by the VAE's
  batch norm after packing (FLUX.2). Hence latents are normalised and packed tokens everywhere;
- time: sigma (all) or 1 - sigma with the sign turned (Z-Image). Here always sigma, and the
  velocity always eps - x0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from iclora.errors import ModelError
from iclora.files import digest
from iclora.models.levels import Step
from iclora.models.names import Names, linears_of
from iclora.models.reading import Given, Panels
from iclora.settings import Offload, Precision, TextKind

if TYPE_CHECKING:
    from iclora.models.graphs import Graphs

__all__ = [
    "DTYPES",
    "PARTS",
    "Compiling",
    "DiffusionModel",
    "Given",
    "Panels",
    "Part",
    "Sampling",
    "Text",
]

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Number formats of a base's weights by their one spelling."""

Text = dict[str, Tensor]
"""The encoding of one text by a base's text encoders, without a batch dimension; only the base
reads it."""

Part = Literal["text", "vae", "denoiser"]
"""The parts of a base; each is loaded at first use and can be released."""

PARTS: tuple[Part, ...] = ("text", "vae", "denoiser")

Compiling = Literal["training", "sampling"]
"""Passes with gradients, and those without."""


@dataclass(frozen=True)
class Sampling:
    """The sampling of a base, unless a recipe or a user says otherwise."""

    steps: int = 20
    """Euler steps."""
    guidance: float | None = 3.5
    """Guidance value; None for a base without guidance."""
    guided: Literal["embedded", "two-pass", "none"] = "embedded"
    """The guidance value acts as an embedding, as the weight of a guided pass beside an
    unguided one, or not at all."""
    fixed_steps: bool = False
    """True if the base was distilled to `steps`, so that they win over a recipe's."""


class DiffusionModel(ABC):
    """A base model: its parts, its token grid, its velocity."""

    name: str
    """The path, hub id or registered name it was asked for by."""
    folder: Path
    """The folder of its files."""
    family: str
    """The name of its family, such as "flux"."""
    grid: int
    """Edge of a token, px."""
    multiple: int
    """Edges of a canvas are multiples of so many px; a multiple of `grid`."""
    channels: int
    """Numbers per token."""
    block_prefixes: tuple[str, ...]
    """Beginnings of the names of the denoiser's blocks, such as "transformer_blocks."."""
    max_text_tokens: int
    """Tokens the text encoder reads at most, special tokens included."""
    sampling: Sampling
    """Steps and guidance, unless a recipe or a user says otherwise."""
    takes_adapters_of: frozenset[str] = frozenset()
    """Other bases whose adapters it takes as its own, by name: those it was distilled from."""
    kin_remark: str = ""
    """What is known of such adapters on it, to end a sentence with."""
    reads_references: bool = False
    """True if it was trained to read pictures beside the canvas."""
    device: torch.device
    """The device it computes on."""
    dtype: torch.dtype
    """The number format of its weights, bf16 or fp32."""
    precision: Precision = "full"
    """The form in which the linear layers of its blocks are kept; full is as `dtype` says."""
    applied: tuple[tuple[Mapping[str, Tensor], float], ...] | None = None
    """Weights and strength of the adapters that the denoiser carries, so that the same ones are
    not loaded again; None after a release or a removal."""
    primed: bool = False
    """True if `prime` has run since the adapters that the denoiser carries were loaded."""
    recompute: int = 0
    """Number of blocks that keep their input alone for the backward pass."""
    compiled: frozenset[Compiling] = frozenset()
    """Which passes run compiled blocks: those with gradients, those that sample."""
    graphs: Graphs | None = None
    """The passes that are recorded and replayed; None records none."""
    reads_apart: bool = False
    """True if `velocity` takes `panels`."""
    ahead: bool = False
    """True if `velocity` takes `step`, and makes what depends on levels alone once for all."""
    offload: Offload = "none"
    """What stays in the machine's memory, set before a part is first used."""
    rests: bool = False
    """True if released parts stay in the machine's memory while there is room, and come back from
    there: for a process that goes on. It is not for one that changes weights."""
    mesh: DeviceMesh | None = None
    """The processes that the denoiser's weights are spread over, set before it is first used;
    None keeps them whole. With one, every process of it must compute every velocity."""

    @property
    def text_device(self) -> torch.device:
        """Where the text encoders compute."""
        return self.device if self.offload == "none" else torch.device("cpu")

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The transformer, a diffusers model with PEFT's adapter methods; loaded at first use."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Number of blocks of the denoiser."""

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

    def unknown_letters(self, text: str) -> float:  # noqa: ARG002 (families know)
        """Share of a text's letters that its tokenizer cannot read, 0 to 1."""
        return 0.0

    @abstractmethod
    def text_tokens(self, text: Text) -> int:
        """Tokens that an encoded text takes in a pass; texts of one call have as many each."""

    @abstractmethod
    def encode_text(self, text: str) -> Text:
        """Run the text encoders on one text.

        Returns: tensors on the CPU in the base's dtype.
        Raises: CaptionError above `max_text_tokens`, for the rest would be cut off.
        """

    def join_texts(self, texts: Sequence[Text]) -> Text:  # noqa: ARG002 (families know)
        """The texts of a canvas's panels as one, for a pass that is told its `Panels`.

        Raises: ModelError for a family that cannot read texts apart; see `check_text`.
        """
        self.check_text("isolated")
        raise NotImplementedError(f"{type(self).__name__} reads texts apart and joins none")

    def as_one(self, texts: Sequence[Text]) -> tuple[Text, tuple[int, ...]]:
        """What a pass reads of a canvas's texts, and how many tokens each of them has.

        Args:
            texts: one for all panels, or one for each; see `Panels.of`.
        """
        lengths = tuple(map(self.text_tokens, texts))
        return (texts[0] if len(texts) == 1 else self.join_texts(texts)), lengths

    def check_text(self, kind: TextKind) -> None:
        """Raises: ModelError if the base cannot read the texts of panels in this way."""
        if kind != "joint" and not self.reads_apart:
            raise ModelError(
                f"a base of the family {self.family} reads one text for all panels",
                "Set `text` to joint.",
                setting="text",
            )

    def prime(self, texts: Sequence[Text], guidance: float) -> None:  # noqa: ARG002 (families know)
        """Do what the first pass with an adapter does, before one is compiled."""
        self.primed = True

    def check_offload(self, kind: Offload) -> None:
        """Raises: ModelError if the base cannot keep this in the machine's memory."""
        if kind == "blocks":
            raise ModelError(
                f"the blocks of a base of the family {self.family} stay on its device",
                "Set `offload` to text or none.",
                setting="offload",
            )

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
        unguided: Sequence[Text] | None = None,
        panels: Panels | None = None,
        step: Step | None = None,
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
            unguided: for a base guided by two passes, what the unguided pass reads, one per
                sample: the empty text or a negative prompt, encoded beforehand like all texts.
                Such a base returns unguided + guidance * (guided - unguided), whatever its own
                code calls that guidance; without them, or at guidance 1 or less, it makes the
                guided pass alone. Both passes share the cache of given tokens, since these see no
                text; a family whose modulation depends on the text keeps one for each. Other
                bases raise a ModelError.
            panels: each panel reads a text of its own; every one of `texts` is then joined by
                `join_texts`, and samples have the same panels given. The unguided pass reads one
                text for all panels. None for a base that is not `reads_apart`.
            step: while sampling, which of all levels `sigma` is, in every sample; then `guidance`
                and texts stay as they were. Left out for a base that is not `ahead`.
        Returns: (B, n, channels) float32.
        """

    def by_two_passes(
        self,
        one: Callable[[Sequence[Text]], Tensor],
        texts: Sequence[Text],
        guidance: float,
        unguided: Sequence[Text] | None,
    ) -> Tensor:
        """Combine the guided and the unguided pass as `velocity` says, one after the other.

        Args:
            one: the velocity of one pass on these texts, float32.
        Raises: ModelError for `unguided` if the base is not guided by two passes.
        """
        if unguided is not None and self.sampling.guided != "two-pass":
            raise ModelError(
                f"{self.name} is not guided by two passes, so it reads no text for an unguided one",
                "Leave `negative` empty.",
                setting="negative",
            )
        guided = one(texts)
        if unguided is None or guidance <= 1:
            return guided
        return self.guide(guided, one(unguided), guidance)

    def guide(self, guided: Tensor, free: Tensor, guidance: float) -> Tensor:
        """What two passes give together, each (B, n, channels); a family may restore its length."""
        return free + guidance * (guided - free)

    @abstractmethod
    def sigmas(self, steps: int, tokens: int) -> list[float]:
        """The base's own schedule: `steps` noise levels from 1 downwards, then 0."""

    @abstractmethod
    def shift(self, sigma: Tensor, tokens: int) -> Tensor:
        """Noise levels of training, moved as the base's sampler does on so many tokens."""

    @property
    def names(self) -> Names:
        """What its linear modules are called, here and by tools that fuse some of them."""
        return Names(linears_of(self.denoiser))

    @abstractmethod
    def lora_targets(self, kind: str) -> list[str]:
        """Names of the denoiser's linear layers to adapt.

        Args:
            kind: "all" (every linear of every block, as the paper's trainer), "attention+mlp"
                (without the modulation), or "attention".
        """
