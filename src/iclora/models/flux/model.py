"""The FLUX.1 family: -dev, -schnell and -Krea-dev, from a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from iclora.errors import ModelError
from iclora.models.attention import attention_to, pick_attention, steady
from iclora.models.base import Given, Panels, Part, Sampling, Text
from iclora.models.flux.forward import FLUX, flux_forward
from iclora.models.flux.names import flux_names
from iclora.models.graphs import graphs_for
from iclora.models.levels import Step
from iclora.models.names import Names
from iclora.models.packed import PackedModel
from iclora.models.passes import placed
from iclora.sets.caption import check_budget, is_read
from iclora.settings import Precision

__all__ = ["FluxModel"]


class FluxModel(PackedModel):
    """FLUX.1 by diffusers' own models, each part loaded when it is first needed.

    Args:
        folder: a diffusers layout: model_index.json, transformer/, vae/, text_encoder/ (CLIP),
            text_encoder_2/ (T5), tokenizer/, tokenizer_2/, scheduler/.
    Raises: ModelError if a part is missing, damaged or not in safetensors.
    """

    family = "flux"
    title = "FLUX.1"
    advice = "Use FLUX.1-dev, -schnell or -Krea-dev in diffusers' layout."
    network = "FluxTransformer2DModel"
    targets: ClassVar = {  # norm*.linear is the modulation
        "all": r".*",
        "attention+mlp": r"(?!.*\.norm\w*\.linear$).*",
        "attention": r".*\.attn\..*",
    }
    block_prefixes = ("transformer_blocks.", "single_transformer_blocks.")
    reads_apart = True
    passes = FLUX
    folders: ClassVar = {
        "text": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        "vae": ("vae",),
        "denoiser": ("transformer",),
    }
    held: ClassVar = {"text": ("_clip", "_t5"), "vae": ("_vae",), "denoiser": ("denoiser",)}

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
            _ = self._two_numbers
        if self.channels != packed:
            raise ModelError(
                f"{name} takes {self.channels} channels a token, a text-to-image FLUX.1 takes "
                f"{packed}: it is a Fill, Depth, Canny or Redux variant",
                "Use FLUX.1-dev, -schnell or -Krea-dev.",
            )
        self.guided = bool(config.get("guidance_embeds", False))
        # schnell is distilled to 4 unguided steps and was trained on half the text.
        longest = 512 if self.guided else 256
        # FLUX.1's own tokenizer says 512; a small base may have been trained on less.
        tokenizer = self.config("tokenizer_2", "tokenizer_config.json")
        self.max_text_tokens = min(longest, int(tokenizer.get("model_max_length") or longest))
        schnell = Sampling(steps=4, guidance=None, guided="none", fixed_steps=True)
        self.sampling = Sampling() if self.guided else schnell

    # -- parts ----------------------------------------------------------------------------------

    @cached_property
    def _clip(self) -> Any:
        return self.load("text_encoder", transformers.CLIPTextModel, dtype=self.dtype)

    @cached_property
    def _t5(self) -> Any:
        return self.load("text_encoder_2", transformers.T5EncoderModel, dtype=self.dtype)

    @cached_property
    def _clip_tokenizer(self) -> Any:
        return self.load("tokenizer", transformers.CLIPTokenizer)

    @cached_property
    def _t5_tokenizer(self) -> Any:
        return self.load("tokenizer_2", transformers.T5TokenizerFast)

    def beside(self, part: Part) -> Iterator[str]:
        # The length to which a text is padded changes what its encoders make of it.
        if part == "text":
            yield str(self.max_text_tokens)

    # -- text -----------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        return len(self._t5_tokenizer(text, truncation=False, verbose=False).input_ids)

    def unknown_letters(self, text: str) -> float:
        # T5 knows the letters of English, French, German and Romanian; all others become <unk>.
        tokenizer, letters = self._t5_tokenizer, sum(map(is_read, text))
        if not letters or not tokenizer.is_fast:
            return 0.0
        read = tokenizer(text, truncation=False, verbose=False, return_offsets_mapping=True)
        pairs = zip(read.input_ids, read.offset_mapping, strict=True)
        spans = [span for token, span in pairs if token == tokenizer.unk_token_id]
        return sum(sum(map(is_read, text[a:b])) for a, b in spans) / letters

    @torch.no_grad()
    def encode_text(self, text: str) -> Text:
        check_budget(text, self.count_tokens, self.max_text_tokens, "the text")
        # CLIP reads 77 tokens and only lends a pooled vector: cut there in every FLUX.1 tool.
        clip = self._clip_tokenizer(
            text,
            padding="max_length",
            max_length=self._clip_tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        # No attention mask over T5's padding: FLUX.1 was trained to see it.
        t5 = self._t5_tokenizer(
            text, padding="max_length", max_length=self.max_text_tokens, return_tensors="pt"
        )
        pooled = self._clip(clip.input_ids.to(self.text_device)).pooler_output[0]
        prompt = self._t5(t5.input_ids.to(self.text_device))[0][0]
        return {
            "prompt": prompt.to(self.dtype).cpu().contiguous(),
            "pooled": pooled.to(self.dtype).cpu().contiguous(),
        }

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
        part = placed(z, self._position_ids(size), sigma.to(self.device), given, panels, step)

        def one(texts: Sequence[Text]) -> Tensor:
            text = self.on_device(texts)
            out = flux_forward(
                self.denoiser,
                part.z.to(self.dtype),
                text["prompt"],
                text["pooled"],
                part.levels,
                torch.full((len(z),), guidance, device=self.device) if self.guided else None,
                part.position_ids,
                recompute=self.recompute,
                attend=attention_to(
                    given,
                    text["prompt"].shape[1],
                    self.device,
                    panels,
                    part.order,
                    attend=pick_attention(self.device, on_cpu=steady),
                ),
                shapes=self.compiling(),
                graphs=graphs_for(self, given, panels),
            )
            return part.back(out.float())

        return self.by_two_passes(one, texts, guidance, unguided)

    @property
    def blocks(self) -> int:
        config = self.config("transformer")
        return int(config["num_layers"]) + int(config["num_single_layers"])

    def _position_ids(self, size: tuple[int, int]) -> Tensor:
        """(n, 3) float32: 0, row, column of every token, for the rotary embedding."""
        h, w = size[1] // self.grid, size[0] // self.grid
        rows, columns = torch.meshgrid(
            torch.arange(h, device=self.device), torch.arange(w, device=self.device), indexing="ij"
        )
        return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()

    # -- adapters -------------------------------------------------------------------------------

    def names_of(self, linears: Mapping[str, tuple[int, int]]) -> Names:
        return flux_names(linears)
