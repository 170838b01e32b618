"""The Krea 2 family: Raw, and Turbo distilled from it, from a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from iclora.errors import ModelError
from iclora.models.attention import attention_to, grouped, pick_attention
from iclora.models.base import Given, Panels, Sampling, Text
from iclora.models.graphs import graphs_for
from iclora.models.krea2.forward import KREA2, Inputs, krea2_forward
from iclora.models.krea2.names import krea2_names
from iclora.models.latents import PACK
from iclora.models.levels import Step
from iclora.models.names import Names
from iclora.models.passes import Placed
from iclora.models.qwen_vae import QwenVae
from iclora.models.qwen_vl import Qwen3VLModel
from iclora.settings import Precision

__all__ = ["Krea2Model"]

_LAYERS = tuple(range(2, 36, 3))
"""Hidden states of Qwen3-VL that are the text, unless model_index.json says others."""

_TURBO_MU = 1.15
"""mu of Turbo's schedule, on any canvas."""

_BASES = frozenset({"Krea-2-Raw", "tiny-krea"})
"""Undistilled bases by name."""


class Krea2Model(QwenVae, Qwen3VLModel):
    """Krea 2 by diffusers' own models, each part loaded when it is first needed.

    Args:
        folder: a diffusers layout: model_index.json, transformer/, vae/ (Qwen-Image's),
            text_encoder/ (Qwen3-VL), tokenizer/, scheduler/.
    Raises: ModelError if a part is missing, damaged or not in safetensors.
    """

    family = "krea2"
    title = "Krea 2"
    advice = "Use krea/Krea-2-Raw, or -Turbo to generate, whole and in diffusers' layout."
    network = "Krea2Transformer2DModel"
    # Blocks hold no modulation but a table.
    targets: ClassVar = {"all": r".*", "attention+mlp": r".*", "attention": r".*\.attn\..*"}
    block_prefixes = ("transformer_blocks.",)
    reads_apart = True
    passes = KREA2

    def __init__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> None:
        super().__init__(folder, name, device, dtype, precision)
        config, index = self.config("transformer"), self.config("", "model_index.json")
        with self.reading():
            packed = self.set_grid()
            self.channels = int(config["in_channels"])
            width, count = int(config["text_hidden_dim"]), int(config["num_text_layers"])
            read = int(self.config("text_encoder")["text_config"]["hidden_size"])
            layers = index.get("text_encoder_select_layers") or _LAYERS
            self._layers = tuple(map(int, layers))
            patch = int(index.get("patch_size", PACK))
        ordered = sorted(set(self._layers)) == list(self._layers) and self._layers[0] >= 0
        if (self.channels, width, count, patch, ordered) != (
            packed,
            read,
            len(self._layers),
            PACK,
            True,
        ):
            raise ModelError(
                f"{name} takes {self.channels} numbers a token of {patch}x{patch} and texts of "
                f"{count} layers {width} wide, and its other parts make {packed} and layers "
                f"{list(self._layers)} {read} wide: they are not of one Krea 2",
                self.advice,
            )
        self.distilled = bool(index.get("is_distilled", False))
        self.sampling = Sampling(steps=28, guidance=5.5, guided="two-pass")
        if self.distilled:
            self.sampling = Sampling(steps=8, guidance=None, guided="none", fixed_steps=True)
            self.takes_adapters_of = _BASES

    @property
    def text_layers(self) -> tuple[int, ...]:
        return self._layers

    def encode_text(self, text: str) -> Text:
        # Padding is masked everywhere in the denoiser, so it is left out.
        states, real = self.read(text)
        return {"prompt": states[real].cpu().contiguous()}

    # -- flow -----------------------------------------------------------------------------------

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
        ids = self.once_there(step, self._position_ids, size)
        kernel = grouped(pick_attention(self.device))

        def run(text: dict[str, Tensor], part: Placed, apart: Panels | None) -> Tensor:
            prompt = text["prompt"]
            attend = attention_to(
                given, prompt.shape[1], self.device, apart, part.order, attend=kernel
            )
            lengths = apart.lengths if apart else None
            return krea2_forward(
                self.denoiser,
                Inputs(part.z.to(self.dtype), prompt, part.levels, part.position_ids, lengths),
                recompute=self.recompute,
                attend=attend,
                shapes=self.compiling(),
                graphs=graphs_for(self, given, apart),
            ).float()

        return self.in_passes(run, z, ids, sigma, texts, guidance, given, unguided, panels, step)

    @property
    def blocks(self) -> int:
        return int(self.config("transformer")["num_layers"])

    def _position_ids(self, size: tuple[int, int]) -> Tensor:
        """(n, 3) float32: 0, row, column of every token, for the rotary embedding."""
        rows, columns = size[1] // self.grid, size[0] // self.grid
        return torch.cartesian_prod(*(torch.arange(n) for n in (1, rows, columns))).float()

    def mu(self, tokens: int, steps: int) -> float:
        dynamic = bool(self._scheduler.config.use_dynamic_shifting)
        return _TURBO_MU if self.distilled and dynamic else super().mu(tokens, steps)

    def names_of(self, linears: Mapping[str, tuple[int, int]]) -> Names:
        return krea2_names(linears)
