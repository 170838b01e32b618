"""Z-Image on the meta device, to count what a run takes; see `iclora.models.outline`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from iclora.models.outline import META, QwenOutline, Reads
from iclora.models.passes import Levels
from iclora.models.zimage.forward import FILLED, ZIMAGE, Inputs
from iclora.models.zimage.model import attends_of

__all__ = ["ZImageOutline"]

_BASE = Path(str(files("iclora"))) / "models" / "zimage" / "outlines" / "Z-Image"


class ZImageOutline(QwenOutline):
    """Z-Image's denoiser with one block of each kind, and its encoders."""

    network = ZIMAGE
    # The denoiser's sizes are its class's defaults in diffusers, the encoder's those of Qwen3-4B.
    shipped: ClassVar[Mapping[str, Path]] = {"Tongyi-MAI/Z-Image": _BASE}
    counts = ("n_refiner_layers", "n_refiner_layers", "n_layers")

    def taken(
        self, z: Tensor, levels: Levels, reads: Reads, text_tokens: int
    ) -> tuple[Inputs, Any]:
        count, n, _ = z.shape
        width = int(self.model.config("transformer")["cap_feat_dim"])
        lengths = reads.panels.lengths if reads.panels else (text_tokens,)
        fill = -n % FILLED
        attends = attends_of(reads.given, reads.panels, lengths, META, fill, kernel=reads.kernel)
        inputs = Inputs(
            z,
            self.empty(count, text_tokens, width),
            self.empty(count, text_tokens),
            levels,
            torch.empty(n, 3, device=META, dtype=torch.long),
            lengths,
            fill,
        )
        return inputs, attends
