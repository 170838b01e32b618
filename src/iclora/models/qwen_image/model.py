"""The Qwen-Image family, Qwen-Image-2512 included, from a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from iclora.errors import ModelError
from iclora.models.attention import attention_to
from iclora.models.base import Given, Panels, Sampling, Text
from iclora.models.graphs import graphs_for
from iclora.models.levels import Step
from iclora.models.names import Names
from iclora.models.passes import Placed
from iclora.models.qwen_image.forward import QWEN_IMAGE, Inputs, qwen_image_forward
from iclora.models.qwen_image.names import qwen_image_names
from iclora.models.qwen_vae import QwenVae
from iclora.models.qwen_vl import AFTER, BEFORE, QwenVLModel, without_eyes
from iclora.sets.caption import check_budget
from iclora.settings import Precision

__all__ = ["QwenImageModel"]

_BLANK = " "
"""What stands for an empty text: the model card's own text of the unguided pass. Without a word
of the user the base was hardly trained."""

_OTHERS = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
"""Settings of a denoiser's relatives, which are off in this one."""

_LAYERS_NAMED = {r"^model\.(language_model\.)?": "language_model."}
"""Layers in the files of a Qwen2.5-VL with a head, old and new, and in one without."""


class QwenImageModel(QwenVae, QwenVLModel):
    """Qwen-Image by diffusers' own models, each part loaded when it is first needed.

    Args:
        folder: a diffusers layout: model_index.json, transformer/, vae/, text_encoder/
            (Qwen2.5-VL), tokenizer/, scheduler/.
    Raises: ModelError if a part is missing, damaged or not in safetensors.
    """

    family = "qwen-image"
    title = "Qwen-Image"
    advice = "Use Qwen/Qwen-Image or Qwen/Qwen-Image-2512, whole and in diffusers' layout."
    reader = "Qwen2.5-VL"
    network = "QwenImageTransformer2DModel"
    max_text_tokens = 1024
    targets: ClassVar = {
        "all": r".*",
        "attention+mlp": r"(?!.*\.(img|txt)_mod\.).*",
        "attention": r".*\.attn\..*",
    }
    block_prefixes = ("transformer_blocks.",)
    reads_apart = True
    passes = QWEN_IMAGE

    def __init__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> None:
        super().__init__(folder, name, device, dtype, precision)
        config, encoder = self.config("transformer"), self.config("text_encoder")
        with self.reading():
            packed = self.set_grid()
            self.channels, width = int(config["in_channels"]), int(config["joint_attention_dim"])
            own = encoder.get("text_config", encoder)
            read, self._layers = int(own["hidden_size"]), int(own["num_hidden_layers"])
        if (self.channels, width) != (packed, read):
            raise ModelError(
                f"{name} takes {self.channels} numbers a token and texts {width} wide, and its "
                f"other parts make {packed} and {read}: they are not of one Qwen-Image",
                self.advice,
            )
        other = [key for key in _OTHERS if config.get(key)]
        if other:
            raise ModelError(
                f"the denoiser of {name} has {other[0]}, as one that edits or paints layers has: "
                "it is not a text-to-image Qwen-Image",
                self.advice,
            )
        self.sampling = Sampling(steps=50, guidance=4.0, guided="two-pass")

    # -- text -----------------------------------------------------------------------------------

    @property
    def text_layers(self) -> tuple[int, ...]:
        return (self._layers,)

    @cached_property
    def _encoder(self) -> Any:
        kind, config = without_eyes(transformers.Qwen2_5_VLModel), self._config()
        model = self.load(
            "text_encoder", kind, config=config, dtype=self.dtype, key_mapping=_LAYERS_NAMED
        )
        return model.language_model

    def new_encoder(self) -> nn.Module:
        model: nn.Module = without_eyes(transformers.Qwen2_5_VLModel)(self._config()).language_model
        return model

    def _config(self) -> Any:
        return self.encoder_config(transformers.Qwen2_5_VLConfig.from_dict, "text_config")

    def encode_text(self, text: str) -> Text:
        check_budget(text, self.count_tokens, self.max_text_tokens, "the text")
        read = self._tokenizer(BEFORE + (text or _BLANK) + AFTER, return_tensors="pt")
        read = read.to(self.text_device)
        with torch.no_grad():
            # Behind the norm at the end, as the last of transformers' hidden states is.
            states = self._encoder(
                read.input_ids, attention_mask=read.attention_mask, use_cache=False
            ).last_hidden_state
        return {"prompt": states[0, self.unread :].to("cpu", self.dtype).contiguous()}

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
        rows, columns = size[1] // self.grid, size[0] // self.grid
        ids = self.once_there(step, self._position_ids, rows, columns)
        start = max(rows, columns) // 2

        def run(text: dict[str, Tensor], part: Placed, apart: Panels | None) -> Tensor:
            prompt, lengths = text["prompt"], apart.lengths if apart else None
            return qwen_image_forward(
                self.denoiser,
                Inputs(
                    part.z.to(self.dtype), prompt, part.levels, part.position_ids, start, lengths
                ),
                recompute=self.recompute,
                attend=attention_to(given, prompt.shape[1], self.device, apart, part.order),
                shapes=self.compiling(),
                graphs=graphs_for(self, given, apart),
            ).float()

        return self.in_passes(run, z, ids, sigma, texts, guidance, given, unguided, panels, step)

    def guide(self, guided: Tensor, free: Tensor, guidance: float) -> Tensor:
        """u + w (c - u), of which every token is then as long as that of c.

        Source: `QwenImagePipeline` in diffusers, and Qwen-Image's own code.
        """
        both = super().guide(guided, free, guidance)
        length, wanted = (x.norm(dim=-1, keepdim=True) for x in (both, guided))
        # Tokens that were not computed are 0 in both passes.
        restored: Tensor = both * (wanted / length.clamp(min=1e-12))
        return restored

    @property
    def blocks(self) -> int:
        return int(self.config("transformer")["num_layers"])

    def _position_ids(self, rows: int, columns: int) -> Tensor:
        """(n, 3) float32: 0, row, column of every token, for the rotary embedding.

        Rows and columns count from the middle; of an odd number one more lies above or before it.
        """
        edges = (torch.arange(edge) - (edge - edge // 2) for edge in (rows, columns))
        return torch.cartesian_prod(torch.zeros(1, dtype=torch.long), *edges).float()

    def names_of(self, linears: Mapping[str, tuple[int, int]]) -> Names:
        return qwen_image_names(linears)
