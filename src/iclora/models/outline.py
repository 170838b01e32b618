"""A base on torch's meta device: its real modules without numbers, to count what a run takes.

Tensors have sizes there and no content: FLUX.1 at its true size takes no memory and no time. One
block of each kind stands for all of them. Every family has its own outline, found by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import diffusers
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from iclora.errors import ModelError
from iclora.files.locks import building
from iclora.models import flow
from iclora.models.attention import Attend, attention_to, shortest
from iclora.models.base import DiffusionModel, Given, Panels
from iclora.models.latents import PACK
from iclora.models.levels import Schedule
from iclora.models.network import Network
from iclora.models.packed import PackedModel
from iclora.models.passes import Block, Levels, Pass, Streams, run_block
from iclora.models.quantize import quantize, quicken
from iclora.models.qwen import QwenModel
from iclora.settings import Precision
from iclora.settings.registry import Registry

__all__ = [
    "META",
    "OUTLINES",
    "Batch",
    "FolderOutline",
    "Outline",
    "Piece",
    "QwenOutline",
    "Reads",
    "Streams",
    "Taken",
    "as_loaded",
    "built",
    "loss",
    "outline_of",
    "shipped_outline",
]

META = torch.device("meta")


@dataclass(frozen=True)
class Piece:
    """One kind of block."""

    count: int
    """Blocks of that kind in the whole denoiser."""
    module: nn.Module
    """One of them, its LoRA included."""
    block: Block

    def run(self, streams: Streams, shared: Pass, recomputed: bool) -> Streams:
        """Run it on what the block before hands over and what all blocks share."""
        return run_block(self.block, streams, shared, recomputed)


@dataclass(frozen=True)
class Batch:
    """Sets that are computed together."""

    count: int
    width: int
    """px"""
    height: int
    """px"""
    given: bool = False
    """True if some panels are given, clean."""
    isolated: bool = False
    """True if given panels attend to themselves alone."""
    texts: int = 1
    """Texts of a set: one for all panels, or one for each, which no other panel reads."""
    steps: int = 0
    """Those of a sampling, whose levels are all modulated in its first pass; 0 for a pass alone."""


Taken = tuple[Any, Any]
"""What a family's pass takes, without content: its own inputs, latents `z` among them, and its
attention."""


class Outline(Protocol):
    """A base as it is counted.

    Made from a base that was opened without its weights, the number format of the weights that
    the run will have, and the precision of its blocks.
    """

    shipped: ClassVar[Mapping[str, Path]]
    """Bases that can be planned for without a file of theirs, by name: folders of settings."""

    @property
    def model(self) -> DiffusionModel:
        """The base on the meta device, with one block of each kind; a LoRA is put on it."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Its kinds of blocks, in the order in which they run."""

    @property
    def text_tokens(self) -> int:
        """Tokens that the longest text takes in a pass; of several texts each takes as many."""

    @property
    def vae(self) -> nn.Module: ...

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]: ...

    @property
    def on_cpu(self) -> Attend:
        """Attention as its passes compute it on a CPU."""

    def inputs(self, batch: Batch, attend: Attend) -> Taken:
        """Make what a pass takes, which lives until it has given the velocity."""

    def begin(self, inputs: Taken) -> tuple[Streams, Pass]:
        """Make the input of the first block, and what all blocks share."""

    def end(self, streams: Streams, shared: Pass) -> Tensor:
        """The velocity, float32 as the loss takes it."""

    def linears(self) -> Iterable[nn.Linear]:
        """The linear layers, unquantised, of one block of each kind and of what is around them."""

    def encode_pixels(self, width: int, height: int) -> None:
        """Encode a picture of this size, px."""

    def decode_pixels(self, width: int, height: int) -> None:
        """Decode a picture of this size, px."""

    def read_text(self) -> None:
        """Encode a text of the greatest length."""


OUTLINES: Registry[Callable[[Any, torch.dtype, Precision], Outline]] = Registry(
    "iclora.outlines",
    "outline",
    {
        "flux": "iclora.models.flux.outline:FluxOutline",
        "flux2": "iclora.models.flux2.outline:KleinOutline",
        "zimage": "iclora.models.zimage.outline:ZImageOutline",
        "krea2": "iclora.models.krea2.outline:Krea2Outline",
        "qwen-image": "iclora.models.qwen_image.outline:QwenImageOutline",
    },
)
"""The outline of each family, by `DiffusionModel.family`."""


def outline_of(model: DiffusionModel, dtype: torch.dtype, precision: Precision) -> Outline:
    """The outline of a base. Raises: ModelError for a family that has none."""
    if model.family not in OUTLINES:
        raise ModelError(
            f"what a base of the family {model.family} takes cannot be counted yet",
            "Leave `vram` out and choose `precision` and `recompute` yourself.",
            setting="vram",
        )
    return OUTLINES.load(model.family)(model, dtype, precision)


def shipped_outline(base: str) -> Path | None:
    """The settings of a base that can be planned for without a file of its own."""
    kinds: Iterable[Any] = map(OUTLINES.load, OUTLINES)
    return next((kind.shipped[base] for kind in kinds if base in kind.shipped), None)


def built(make: Callable[[], Any], part: str, name: str, dtype: torch.dtype) -> Any:
    """A module on the meta device, frozen, its weights in `dtype`.

    Args:
        make: makes it from the settings of a part.
        part: the part's subfolder.
        name: of the base.
    Raises: ModelError for settings that describe no module.
    """
    try:
        with building(), META:
            return as_loaded(make().requires_grad_(False).eval(), dtype)
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ModelError(
            f"{part}/config.json of {name} describes no model ({error!r})",
            "Download the model again, whole and in diffusers' layout.",
        ) from error


def as_loaded(net: Any, dtype: torch.dtype) -> Any:
    """A module in the types that its library loads it in: diffusers keeps some in float32.

    Its layers multiply as those of a base do.
    """
    # diffusers' own `to` would warn of a cast that its loader also makes.
    nn.Module.to(net, dtype)
    kept: Any = isinstance(net, diffusers.ModelMixin) and net._keep_in_fp32_modules
    for name, module in net.named_modules():
        if name.rpartition(".")[2] in (kept or ()):
            module.float()
    quicken(net)
    return net


class Reads(NamedTuple):
    """How a pass in outline reads given tokens and texts."""

    given: Given | None
    panels: Panels | None
    kernel: Attend

    def attention(self, text_tokens: int) -> Attend:
        """Attention to text and image; see `attention_to`."""
        given, panels, kernel = self
        return attention_to(given, text_tokens, META, panels, None, 0, kernel)


class FolderOutline(ABC):
    """An outline of a base in diffusers' layout; a family says what its own passes read.

    Args:
        like: the base, opened without its weights.
        dtype: of the weights that the run will have.
        precision: of its blocks.
    Raises: ModelError if the settings describe no model.
    """

    shipped: ClassVar[Mapping[str, Path]] = {}
    network: ClassVar[Network]
    """The family's pass."""
    counts: ClassVar[tuple[str, ...]] = ("num_layers", "num_single_layers")
    """The settings that say how many blocks of each kind the denoiser has."""

    def __init__(self, like: PackedModel, dtype: torch.dtype, precision: Precision) -> None:
        self.model = type(like)(like.folder, like.name, META, dtype, precision)
        net = quantize(self.whole(*(1 for _ in self.counts)), precision, META, like.block_prefixes)
        self.model.__dict__["denoiser"] = net

    def whole(self, *counts: int) -> Any:
        """The denoiser as it is loaded, by default with all blocks.

        Args:
            counts: blocks of each kind.
        """
        settings = self.model.config("transformer") | dict(zip(self.counts, counts, strict=False))
        kind = self.model.network_class
        return self.built(lambda: kind.from_config(settings), "transformer")

    def built(self, make: Callable[[], Any], part: str) -> Any:
        """A module of a part; see `built`."""
        return built(make, part, self.model.name, self.model.dtype)

    # -- the denoiser ---------------------------------------------------------------------------

    @property
    def pieces(self) -> tuple[Piece, ...]:
        settings = self.model.config("transformer")
        counts = (int(settings[name]) for name in self.counts)
        net = self.model.denoiser
        modules = (module for _, module in self.network.modules(net))
        return tuple(map(Piece, counts, modules, self.network.blocks(net)))

    @property
    def on_cpu(self) -> Attend:
        return shortest

    @property
    def text_tokens(self) -> int:
        return self.model.max_text_tokens

    def linears(self) -> Iterable[nn.Linear]:
        net = self.whole(*(1 for _ in self.counts))
        return (m for m in net.modules() if isinstance(m, nn.Linear))

    def empty(self, *shape: int) -> Tensor:
        """A tensor of the weights' type."""
        return torch.empty(*shape, device=META, dtype=self.model.dtype)

    def inputs(self, batch: Batch, attend: Attend) -> Taken:
        n = batch.width // self.model.grid * (batch.height // self.model.grid)
        given = panels = None
        step = None
        if batch.steps:
            step = Schedule([left / batch.steps for left in range(batch.steps, -1, -1)]).at(1.0)
        levels = Levels(torch.empty(batch.count, 1, device=META), (n,), step)
        if batch.given:
            # Which tokens are given does not matter to what is counted; half of each panel's are.
            given = Given(torch.arange(n) % 2 == 1, clean=True, isolated=batch.isolated)
            levels = Levels(
                torch.empty(batch.count, 2, device=META), (n - given.count, given.count), step
            )
        if batch.texts > 1:
            # Panels are about as large.
            owner = torch.arange(n) * batch.texts // n
            panels = Panels(owner, (self.text_tokens,) * batch.texts)
        z = self.empty(batch.count, n, self.model.channels)
        reads = Reads(given, panels, attend)
        return self.taken(z, levels, reads, batch.texts * self.text_tokens)

    @abstractmethod
    def taken(self, z: Tensor, levels: Levels, reads: Reads, text_tokens: int) -> Taken:
        """What the family's pass takes for these latent tokens and so many text tokens a set."""

    def begin(self, inputs: Taken) -> tuple[Streams, Pass]:
        return self.network.embed(self.model.denoiser, *inputs)

    def end(self, streams: Streams, shared: Pass) -> Tensor:
        return self.network.read_out(self.model.denoiser, streams, shared).float()

    # -- the encoders ---------------------------------------------------------------------------

    @cached_property
    def vae(self) -> nn.Module:
        settings = self.model.config("vae")
        kind = getattr(diffusers, self.model.vae_class)
        net: nn.Module = self.built(lambda: kind.from_config(settings), "vae")
        return net

    @property
    @abstractmethod
    def text_encoders(self) -> tuple[nn.Module, ...]: ...

    def encode_pixels(self, width: int, height: int) -> None:
        vae: Any = self.vae
        frame = (1,) * self.model.frames
        pixels = torch.empty(1, 3, *frame, height, width, device=META)
        vae.encode(pixels.to(self.model.dtype)).latent_dist.mode()

    def decode_pixels(self, width: int, height: int) -> None:
        vae: Any = self.vae
        model, across = self.model, PACK
        cells = (height // model.grid * across, width // model.grid * across)
        frame = (1,) * model.frames
        vae.decode(self.empty(1, model.channels // across**2, *frame, *cells), return_dict=False)

    @abstractmethod
    def read_text(self) -> None: ...


class QwenOutline(FolderOutline):
    """An outline of a base whose texts a Qwen reads."""

    model: QwenModel

    @cached_property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return (self.built(self.model.new_encoder, "text_encoder"),)

    def read_text(self) -> None:
        (qwen,) = self.text_encoders
        # Texts are padded to the same length before they are encoded.
        n = self.model.max_text_tokens + self.model.unread
        tokens = torch.empty(1, n, device=META, dtype=torch.long)
        # As it is made of the padding: what it hides does not matter to what is counted.
        mask = torch.empty(1, 1, n, n, device=META, dtype=torch.bool)
        qwen(tokens, attention_mask=mask, output_hidden_states=True, use_cache=False)


def loss(outline: Outline, streams: Streams, shared: Pass) -> Tensor:
    """The mean square of the velocity's error, one number a sample."""
    v = outline.end(streams, shared)
    return flow.loss(v, torch.empty_like(v), torch.empty_like(v))
