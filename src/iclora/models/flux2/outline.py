"""FLUX.2 on the meta device, to count what a run takes; see `iclora.models.outline`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from iclora.models.flux2.forward import Inputs, blocks_of, embed, read_out
from iclora.models.outline import META, Qwen3Outline, Reads
from iclora.models.passes import Block, Levels, Pass, Streams

__all__ = ["KleinOutline"]

_OUTLINES = Path(str(files("iclora"))) / "models" / "flux2" / "outlines"


class KleinOutline(Qwen3Outline):
    """FLUX.2 klein's denoiser with one block of each kind, and its encoders."""

    # Sizes as in the tables of Black Forest Labs' code and Qwen3's model cards.
    shipped: ClassVar[Mapping[str, Path]] = {
        f"black-forest-labs/FLUX.2-klein-base-{size}": _OUTLINES / f"FLUX.2-klein-base-{size}"
        for size in ("4B", "9B")
    }

    def modules_of(self, net: Any) -> Sequence[nn.Module]:
        return (net.transformer_blocks[0], net.single_transformer_blocks[0])

    def blocks_of(self, net: Any) -> list[Block]:
        return blocks_of(net)

    def embed(
        self, z: Tensor, levels: Levels, reads: Reads, text_tokens: int
    ) -> tuple[Streams, Pass]:
        count, n, _ = z.shape
        width = int(self.model.config("transformer")["joint_attention_dim"])
        prompt = self.empty(count, text_tokens, width)
        ids = torch.empty(n, 4, device=META)
        inputs = Inputs(z, prompt, levels, None, ids)
        return embed(self.model.denoiser, inputs, reads.attention(text_tokens))

    def end(self, streams: Streams, shared: Pass) -> Tensor:
        return read_out(self.model.denoiser, streams, shared).float()
