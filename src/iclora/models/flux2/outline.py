"""FLUX.2 on the meta device, to count what a run takes; see `iclora.models.outline`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from iclora.models.flux2.forward import FLUX2, Inputs
from iclora.models.outline import META, QwenOutline, Reads
from iclora.models.passes import Levels

__all__ = ["KleinOutline"]

_OUTLINES = Path(str(files("iclora"))) / "models" / "flux2" / "outlines"


class KleinOutline(QwenOutline):
    """A FLUX.2's denoiser with one block of each kind, and its encoders."""

    network = FLUX2
    # Sizes as in the tables of Black Forest Labs' code and of the readers' model cards.
    shipped: ClassVar[Mapping[str, Path]] = {
        f"black-forest-labs/FLUX.2-{kind}": _OUTLINES / f"FLUX.2-{kind}"
        for kind in ("klein-base-4B", "klein-base-9B", "dev")
    }

    def taken(
        self, z: Tensor, levels: Levels, reads: Reads, text_tokens: int
    ) -> tuple[Inputs, Any]:
        count, n, _ = z.shape
        width = int(self.model.config("transformer")["joint_attention_dim"])
        prompt = self.empty(count, text_tokens, width)
        ids = torch.empty(n, 4, device=META)
        told = self.model.sampling.guided == "embedded"
        inputs = Inputs(z, prompt, levels, torch.empty(count, device=META) if told else None, ids)
        return inputs, reads.attention(text_tokens)
