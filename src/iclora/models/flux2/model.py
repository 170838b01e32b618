"""The FLUX.2 family: klein, base and distilled, from a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from iclora.errors import ModelError
from iclora.models.attention import attention_to
from iclora.models.base import Given, Panels, Sampling, Text
from iclora.models.flux2.forward import FLUX2, Inputs, flux2_forward
from iclora.models.flux2.names import flux2_names
from iclora.models.graphs import graphs_for
from iclora.models.levels import Step
from iclora.models.names import Names
from iclora.models.passes import Placed
from iclora.models.qwen3 import Qwen3Model
from iclora.settings import Precision

__all__ = ["KleinModel", "empirical_mu"]

_LAYERS = (9, 18, 27)
"""Hidden states of Qwen3 that are the text, side by side: as diffusers' pipeline and Black Forest
Labs' code take them, not its training script (diffusers #13445)."""

_REFERENCE = 10
"""What lies between two references on the axis that counts pictures."""

_BASES = frozenset({"FLUX.2-klein-base-4B", "FLUX.2-klein-base-9B", "tiny-klein"})
"""Undistilled bases. One of another size does not fit, which is said when it is put on."""


def empirical_mu(tokens: int, steps: int) -> float:
    """mu of the schedule's shift for a canvas of so many tokens and a sampler of so many steps.

    It jumps at 4300 tokens, above which the number of steps does not matter.

    Source: `compute_empirical_mu` in Black Forest Labs' flux2 and in diffusers.
    """
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    # A line in the number of steps, through few at 10 and many at 200.
    return many + (few - many) * (200 - steps) / 190


class KleinModel(Qwen3Model):
    """FLUX.2 klein by diffusers' own models, each part loaded when it is first needed.

    Args:
        folder: a diffusers layout: model_index.json, transformer/, vae/, text_encoder/ (Qwen3),
            tokenizer/ with a chat template, scheduler/.
    Raises: ModelError if a part is missing, damaged or not in safetensors.
    """

    family = "flux2"
    title = "FLUX.2 klein"
    advice = (
        "Use FLUX.2-klein-base-4B or -9B, or their distilled kin, whole and in diffusers' layout."
    )
    vae_class = "AutoencoderKLFlux2"
    thinking = False
    text_layers = _LAYERS
    network = "Flux2Transformer2DModel"
    # A single block's attention and MLP are one layer, so "attention" adapts both there.
    targets: ClassVar = {"all": r".*", "attention+mlp": r".*", "attention": r".*\.attn\..*"}
    block_prefixes = ("transformer_blocks.", "single_transformer_blocks.")
    reads_apart = True
    passes = FLUX2
    reads_references = True
    undistilled: ClassVar = Sampling(steps=50, guidance=4.0, guided="two-pass")

    def __init__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> None:
        super().__init__(folder, name, device, dtype, precision)
        config = self.config("transformer")
        with self.reading():
            packed = self.set_grid()
            self.channels = int(config["in_channels"])
            width = int(config["joint_attention_dim"])
            read = len(self.text_layers) * self.text_width
        if (self.channels, width) != (packed, read):
            raise ModelError(
                f"{name} takes {self.channels} channels a token and texts {width} wide, and its "
                f"other parts make {packed} and {read}: they are not of one {self.title}",
                self.advice,
            )
        self.distilled = bool(self.config("", "model_index.json").get("is_distilled", False))
        self.sampling = self.undistilled
        if self.distilled:
            self.sampling = Sampling(steps=4, guidance=None, guided="none", fixed_steps=True)
            self.takes_adapters_of = _BASES

    @property
    def text_width(self) -> int:
        """Numbers of one hidden state of the text encoder."""
        return int(self.config("text_encoder")["hidden_size"])

    def encode_text(self, text: str) -> Text:
        # What stands on the padding goes to the denoiser too, unmasked: it was trained to see it.
        prompt, _ = self.read(text)
        return {"prompt": prompt.cpu().contiguous()}

    # -- latents --------------------------------------------------------------------------------

    def _normal(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of every number of a token, each (channels,) float32."""
        norm = self._vae.bn
        variance = norm.running_var.float() + self._vae.config.batch_norm_eps
        return norm.running_mean.float(), variance.sqrt()

    def normalised(self, tokens: Tensor) -> Tensor:
        mean, deviation = self._normal()
        return (tokens - mean) / deviation

    def unnormalised(self, tokens: Tensor) -> Tensor:
        mean, deviation = self._normal()
        return tokens * deviation + mean

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
        ids = self.once_there(step, self._position_ids, size, given.references if given else None)
        told = self.sampling.guided == "embedded"
        value = torch.full((len(z),), guidance, device=self.device) if told else None

        def run(text: dict[str, Tensor], part: Placed, apart: Panels | None) -> Tensor:
            prompt = text["prompt"]
            return flux2_forward(
                self.denoiser,
                Inputs(
                    part.z.to(self.dtype),
                    prompt,
                    part.levels,
                    value,
                    part.position_ids,
                    apart.lengths if apart else None,
                ),
                recompute=self.recompute,
                attend=attention_to(given, prompt.shape[1], self.device, apart, part.order),
                shapes=self.compiling(),
                graphs=graphs_for(self, given, apart),
            ).float()

        return self.in_passes(run, z, ids, sigma, texts, guidance, given, unguided, panels, step)

    @property
    def blocks(self) -> int:
        config = self.config("transformer")
        return int(config["num_layers"]) + int(config["num_single_layers"])

    def _position_ids(self, size: tuple[int, int], references: Tensor | None = None) -> Tensor:
        """(n, 4) float32: picture, row, column, 0 of every token, for the rotary embedding.

        References count their own rows and columns, as picture 10, 20 and so on; the canvas counts
        those that are left of it.
        """
        h, w = size[1] // self.grid, size[0] // self.grid
        ids = torch.cartesian_prod(*(torch.arange(edge) for edge in (1, h, w, 1))).float()
        if references is None:
            return ids
        cells = ids.view(h, w, 4)
        for number in range(int(references.max()) + 1):
            own = (references == number).view(h, w)
            rows, columns = own.any(1).cumsum(0) - 1, own.any(0).cumsum(0) - 1
            counted = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).float()
            cells[..., 0][own] = _REFERENCE * number
            cells[..., 1:3][own] = counted[own]
        return ids

    def mu(self, tokens: int, steps: int) -> float:
        return empirical_mu(tokens, steps)

    def names_of(self, linears: Mapping[str, tuple[int, int]]) -> Names:
        return flux2_names(linears)
