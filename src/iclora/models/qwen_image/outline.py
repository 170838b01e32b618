"""Qwen-Image on the meta device, to count what a run takes; see `iclora.models.outline`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from iclora.models.outline import META, QwenOutline, Reads
from iclora.models.passes import Levels
from iclora.models.qwen_image.forward import QWEN_IMAGE, Inputs

__all__ = ["QwenImageOutline"]

_BASE = Path(str(files("iclora"))) / "models" / "qwen_image" / "outlines" / "Qwen-Image"


class QwenImageOutline(QwenOutline):
    """Qwen-Image's denoiser with one block, and its encoders."""

    network = QWEN_IMAGE
    # The sizes of denoiser and VAE are their classes' defaults in diffusers, the encoder's those
    # of Qwen2.5-VL-7B.
    shipped: ClassVar[Mapping[str, Path]] = dict.fromkeys(
        ("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"), _BASE
    )
    counts = ("num_layers",)

    def taken(
        self, z: Tensor, levels: Levels, reads: Reads, text_tokens: int
    ) -> tuple[Inputs, Any]:
        count, n, _ = z.shape
        width = int(self.model.config("transformer")["joint_attention_dim"])
        inputs = Inputs(
            z,
            self.empty(count, text_tokens, width),
            levels,
            torch.empty(n, 3, device=META),
            0,
            reads.panels.lengths if reads.panels else None,
        )
        return inputs, reads.attention(text_tokens)
