"""A base in outline: its real modules without their weights, to count what a run will take.

Everything is on torch's meta device, where tensors have sizes and no numbers: FLUX.1 at its true
size takes no memory and no time. One block of each kind stands for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from iclora.errors import ModelError
from iclora.models import flow
from iclora.models.attention import Attend, isolated
from iclora.models.base import DiffusionModel
from iclora.models.flux.forward import Block, Levels, blocks_of, embed, read_out, run_block
from iclora.models.flux.model import FluxModel
from iclora.models.quantize import quantize
from iclora.settings import Precision

__all__ = ["META", "OUTLINES", "Batch", "FluxOutline", "Piece", "Streams", "outline_of"]

META = torch.device("meta")

_SHIPPED = Path(str(files("iclora"))) / "models" / "outlines"

OUTLINES = dict.fromkeys(
    ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-Krea-dev"), _SHIPPED / "FLUX.1-dev"
)
"""Bases that can be planned for without a file of theirs: their settings, as diffusers and
transformers know them (the transformer's are its class's defaults)."""

Streams = tuple[Tensor, ...]
"""What one block hands to the next."""


@dataclass(frozen=True)
class Piece:
    """One kind of block.

    Attributes:
        count: blocks of that kind in the whole denoiser.
        module: one of them, its LoRA included.
    """

    count: int
    module: nn.Module
    block: Block

    def run(self, streams: Streams, shared: Any, recomputed: bool) -> Streams:
        """It, on what the block before hands over and what all blocks share."""
        return run_block(self.block, (*streams, *shared), recomputed)


@dataclass(frozen=True)
class Batch:
    """Sets that are computed together.

    Attributes:
        given: whether some panels of them are given; alone: attending to themselves only.
    """

    count: int
    width: int
    height: int
    given: bool = False
    alone: bool = False


class FluxOutline(FluxModel):
    """FLUX.1's denoiser with one block of each kind, on the meta device.

    Args:
        like: the base, opened without its weights.
        dtype: of the weights that the run will have. precision: of its blocks.
    """

    def __init__(self, like: FluxModel, dtype: torch.dtype, precision: Precision) -> None:
        super().__init__(like.folder, like.name, META, dtype, precision)

    @cached_property
    def denoiser(self) -> nn.Module:
        return quantize(self.whole(1, 1), self.precision, META)

    def whole(self, double: int | None = None, single: int | None = None) -> Any:
        """The denoiser as it is loaded, by default with all blocks."""
        settings = self._config("transformer")
        if double is not None and single is not None:
            settings |= {"num_layers": double, "num_single_layers": single}
        return self._built(
            lambda: diffusers.FluxTransformer2DModel.from_config(settings), "transformer"
        )

    def _built(self, make: Callable[[], Any], part: str) -> Any:
        kept = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with META:
                return make().requires_grad_(False).eval()
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{part}/config.json of {self.name} describes no model ({error!r})",
                "Download the model again, whole and in diffusers' layout.",
            ) from error
        finally:
            torch.set_default_dtype(kept)

    # -- the denoiser ---------------------------------------------------------------------------

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Its kinds of blocks, in the order in which they run."""
        net: Any = self.denoiser
        settings = self._config("transformer")
        counts = (int(settings["num_layers"]), int(settings["num_single_layers"]))
        modules = (net.transformer_blocks[0], net.single_transformer_blocks[0])
        return tuple(map(Piece, counts, modules, blocks_of(net)))

    def begin(self, batch: Batch, attend: Attend) -> tuple[Streams, Any]:
        """What the first block gets, and what all of them share."""
        count, width, height = batch.count, batch.width // self.grid, batch.height // self.grid
        n, words = width * height, self.max_text_tokens
        settings = self._config("transformer")
        # Which tokens are given does not matter to what is counted; half of them are.
        parts = (n - n // 2, n // 2) if batch.given else (n,)
        if batch.given and batch.alone:
            attend = isolated(attend, n // 2)

        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, device=META, dtype=self.dtype)

        x, c, temb, turn = embed(
            self.denoiser,
            empty(count, n, self.channels),
            empty(count, words, int(settings["joint_attention_dim"])),
            empty(count, int(settings["pooled_projection_dim"])),
            Levels(torch.empty(count, len(parts), device=META), parts),
            torch.empty(count, device=META) if self._guided else None,
            torch.empty(n, 3, device=META),
        )
        return (x, c), (temb, turn, parts, attend, False)

    def end(self, streams: Streams, shared: Any) -> Tensor:
        """The velocity, float32 as the loss takes it."""
        return read_out(self.denoiser, streams[0], shared[0], shared[2]).float()

    def loss(self, streams: Streams, shared: Any) -> Tensor:
        """The mean square of its error, one number a sample."""
        v = self.end(streams, shared)
        return flow.loss(v, torch.empty_like(v), torch.empty_like(v))

    # -- the encoders ---------------------------------------------------------------------------

    @cached_property
    def _vae(self) -> Any:
        settings = self._config("vae")
        return self._built(lambda: diffusers.AutoencoderKL.from_config(settings), "vae")

    @cached_property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        t: Any = transformers
        clip = partial(self._encoder, "text_encoder", t.CLIPTextConfig, t.CLIPTextModel)
        t5 = partial(self._encoder, "text_encoder_2", t.T5Config, t.T5EncoderModel)
        return self._built(clip, "text_encoder"), self._built(t5, "text_encoder_2")

    def _encoder(self, part: str, settings: Any, model: Any) -> Any:
        return model(settings(**self._config(part)))

    @property
    def vae(self) -> nn.Module:
        found: nn.Module = self._vae
        return found

    def encode_pixels(self, width: int, height: int) -> None:
        pixels = torch.empty(1, 3, height, width, device=META)
        self._vae.encode(pixels.to(self.dtype)).latent_dist.mode()

    def decode_pixels(self, width: int, height: int) -> None:
        channels = self.channels // 4
        size = (1, channels, height // self.grid * 2, width // self.grid * 2)
        self._vae.decode(torch.empty(size, device=META, dtype=self.dtype), return_dict=False)

    def read_text(self) -> None:
        clip, t5 = self.text_encoders
        for encoder, length in ((clip, 77), (t5, self.max_text_tokens)):
            encoder(torch.empty(1, length, device=META, dtype=torch.long))


def outline_of(model: DiffusionModel, dtype: torch.dtype, precision: Precision) -> FluxOutline:
    """A base's outline. Raises: ModelError for a family that has none."""
    if not isinstance(model, FluxModel):
        raise ModelError(
            f"what a {model.family} takes cannot be counted yet",
            "Leave --vram away and choose --precision and --recompute yourself.",
        )
    return FluxOutline(model, dtype, precision)
