"""Krea 2 on the meta device, to count what a run takes; see `iclora.models.outline`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from iclora.models.attention import grouped
from iclora.models.krea2.forward import KREA2, Inputs
from iclora.models.outline import META, QwenOutline, Reads
from iclora.models.passes import Levels

__all__ = ["Krea2Outline"]

_BASE = Path(str(files("iclora"))) / "models" / "krea2" / "outlines" / "Krea-2-Raw"


class Krea2Outline(QwenOutline):
    """Krea 2's denoiser with one block, and its encoders."""

    network = KREA2
    # The sizes of denoiser and VAE are their classes' defaults in diffusers, the encoder's those
    # of Qwen3-VL-4B.
    shipped: ClassVar[Mapping[str, Path]] = {"krea/Krea-2-Raw": _BASE}
    counts = ("num_layers",)

    def taken(
        self, z: Tensor, levels: Levels, reads: Reads, text_tokens: int
    ) -> tuple[Inputs, Any]:
        count, n, _ = z.shape
        settings = self.model.config("transformer")
        layers, width = int(settings["num_text_layers"]), int(settings["text_hidden_dim"])
        prompt = self.empty(count, text_tokens, layers, width)
        ids = torch.empty(n, 3, device=META)
        lengths = reads.panels.lengths if reads.panels else None
        attend = reads._replace(kernel=grouped(reads.kernel)).attention(text_tokens)
        inputs = Inputs(z, prompt, levels, ids, lengths)
        return inputs, attend
