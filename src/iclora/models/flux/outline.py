"""FLUX.1 on the meta device, to count what a run takes; see `iclora.models.outline`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import Tensor, nn

from iclora.models.attention import Attend, steady
from iclora.models.flux.forward import FLUX, Inputs
from iclora.models.flux.model import FluxModel
from iclora.models.outline import META, FolderOutline, Reads
from iclora.models.passes import Levels

__all__ = ["FluxOutline"]

_DEV = Path(str(files("iclora"))) / "models" / "flux" / "outlines" / "FLUX.1-dev"


class FluxOutline(FolderOutline):
    """FLUX.1's denoiser with one block of each kind, and its encoders."""

    network = FLUX
    # As diffusers and transformers know them (the transformer's are its class's defaults).
    shipped: ClassVar[Mapping[str, Path]] = dict.fromkeys(
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-Krea-dev"), _DEV
    )

    def taken(
        self, z: Tensor, levels: Levels, reads: Reads, text_tokens: int
    ) -> tuple[Inputs, Any]:
        count, n, _ = z.shape
        settings = self.model.config("transformer")
        guided = cast(FluxModel, self.model).guided
        inputs = Inputs(
            z,
            self.empty(count, text_tokens, int(settings["joint_attention_dim"])),
            self.empty(count, int(settings["pooled_projection_dim"])),
            levels,
            torch.empty(count, device=META) if guided else None,
            torch.empty(n, 3, device=META),
        )
        return inputs, reads.attention(text_tokens)

    @property
    def on_cpu(self) -> Attend:
        return steady

    @cached_property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        t: Any = transformers
        kinds = {
            "text_encoder": (t.CLIPTextConfig, t.CLIPTextModel),
            "text_encoder_2": (t.T5Config, t.T5EncoderModel),
        }

        def make(part: str) -> Any:
            settings, net = kinds[part]
            return net(settings(**self.model.config(part)))

        return tuple(self.built(partial(make, part), part) for part in kinds)

    def read_text(self) -> None:
        clip, t5 = self.text_encoders
        for encoder, length in ((clip, 77), (t5, self.text_tokens)):
            encoder(torch.empty(1, length, device=META, dtype=torch.long))
