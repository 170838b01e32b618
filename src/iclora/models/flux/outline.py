"""FLUX.1 on the meta device, to count what a run takes; see `iclora.models.outline`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
import transformers
from torch import Tensor, nn

from iclora.models.attention import Attend, isolated
from iclora.models.flux.forward import Inputs, blocks_of, embed, read_out
from iclora.models.flux.model import FluxModel
from iclora.models.outline import META, Batch, Piece, built
from iclora.models.passes import Levels, Pass, Streams
from iclora.models.quantize import quantize
from iclora.settings import Precision

__all__ = ["FluxOutline"]

_DEV = Path(str(files("iclora"))) / "models" / "flux" / "outlines" / "FLUX.1-dev"


class FluxOutline:
    """FLUX.1's denoiser with one block of each kind, and its encoders.

    Args:
        like: the base, opened without its weights.
        dtype: of the weights that the run will have.
        precision: of its blocks.
    Raises: ModelError if the settings describe no model.
    """

    # As diffusers and transformers know them (the transformer's are its class's defaults).
    shipped: ClassVar[Mapping[str, Path]] = dict.fromkeys(
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-Krea-dev"), _DEV
    )

    def __init__(self, like: FluxModel, dtype: torch.dtype, precision: Precision) -> None:
        self.model = FluxModel(like.folder, like.name, META, dtype, precision)
        net = quantize(self.whole(1, 1), precision, META, like.block_prefixes)
        self.model.__dict__["denoiser"] = net

    def whole(self, double: int | None = None, single: int | None = None) -> Any:
        """The denoiser as it is loaded, by default with all blocks."""
        settings = self.model.config("transformer")
        if double is not None and single is not None:
            settings |= {"num_layers": double, "num_single_layers": single}
        return self._built(
            lambda: diffusers.FluxTransformer2DModel.from_config(settings), "transformer"
        )

    def _built(self, make: Any, part: str) -> Any:
        return built(make, part, self.model.name, self.model.dtype)

    # -- the denoiser ---------------------------------------------------------------------------

    @property
    def pieces(self) -> tuple[Piece, ...]:
        net: Any = self.model.denoiser
        settings = self.model.config("transformer")
        counts = (int(settings["num_layers"]), int(settings["num_single_layers"]))
        modules = (net.transformer_blocks[0], net.single_transformer_blocks[0])
        return tuple(map(Piece, counts, modules, blocks_of(net)))

    @property
    def text_tokens(self) -> int:
        return self.model.max_text_tokens

    def linears(self) -> Iterable[nn.Linear]:
        return (m for m in self.whole(1, 1).modules() if isinstance(m, nn.Linear))

    def begin(self, batch: Batch, attend: Attend) -> tuple[Streams, Pass]:
        model, count = self.model, batch.count
        n = batch.width // model.grid * (batch.height // model.grid)
        settings = model.config("transformer")
        # Which tokens are given does not matter to what is counted; half of them are.
        parts = (n - n // 2, n // 2) if batch.given else (n,)
        if batch.given and batch.isolated:
            attend = isolated(attend, n // 2)

        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, device=META, dtype=model.dtype)

        inputs = Inputs(
            empty(count, n, model.channels),
            empty(count, self.text_tokens, int(settings["joint_attention_dim"])),
            empty(count, int(settings["pooled_projection_dim"])),
            Levels(torch.empty(count, len(parts), device=META), parts),
            torch.empty(count, device=META) if model.guided else None,
            torch.empty(n, 3, device=META),
        )
        return embed(model.denoiser, inputs, attend)

    def end(self, streams: Streams, shared: Pass) -> Tensor:
        return read_out(self.model.denoiser, streams, shared).float()

    # -- the encoders ---------------------------------------------------------------------------

    @cached_property
    def vae(self) -> nn.Module:
        settings = self.model.config("vae")
        net: nn.Module = self._built(lambda: diffusers.AutoencoderKL.from_config(settings), "vae")
        return net

    @cached_property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        t: Any = transformers
        kinds = {
            "text_encoder": (t.CLIPTextConfig, t.CLIPTextModel),
            "text_encoder_2": (t.T5Config, t.T5EncoderModel),
        }
        return tuple(
            self._built(
                lambda part=part, kind=kind: kind[1](kind[0](**self.model.config(part))), part
            )
            for part, kind in kinds.items()
        )

    def encode_pixels(self, width: int, height: int) -> None:
        vae: Any = self.vae
        pixels = torch.empty(1, 3, height, width, device=META)
        vae.encode(pixels.to(self.model.dtype)).latent_dist.mode()

    def decode_pixels(self, width: int, height: int) -> None:
        vae: Any = self.vae
        model = self.model
        size = (1, model.channels // 4, height // model.grid * 2, width // model.grid * 2)
        vae.decode(torch.empty(size, device=META, dtype=model.dtype), return_dict=False)

    def read_text(self) -> None:
        clip, t5 = self.text_encoders
        for encoder, length in ((clip, 77), (t5, self.text_tokens)):
            encoder(torch.empty(1, length, device=META, dtype=torch.long))
