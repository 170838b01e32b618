"""FLUX.2-dev: klein's network, larger and told the guidance; a Mistral reads its texts.

Source: `Flux2Pipeline` in diffusers, and Black Forest Labs' flux2.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import transformers
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import nn

from iclora.models.base import Sampling
from iclora.models.flux2.model import KleinModel
from iclora.models.qwen import without_end

__all__ = ["DevModel"]


class DevModel(KleinModel):
    """FLUX.2-dev by diffusers' and transformers' own models.

    Args:
        folder: a diffusers layout: model_index.json, transformer/, vae/, text_encoder/ (Mistral 3),
            tokenizer/ with a chat template, scheduler/.
    Raises: ModelError if a part is missing, damaged or not in safetensors.
    """

    title = "FLUX.2-dev"
    advice = "Use black-forest-labs/FLUX.2-dev, whole and in diffusers' layout."
    reader = "Mistral 3"
    text_layers = (10, 20, 30)
    undistilled = Sampling(steps=50, guidance=4.0, guided="embedded")

    @property
    def text_width(self) -> int:
        return int(self.config("text_encoder")["text_config"]["hidden_size"])

    # -- reading --------------------------------------------------------------------------------

    @cached_property
    def _encoder(self) -> Any:
        # With the part that sees pictures, a hundredth of it, which is let go at once.
        kind, config = transformers.Mistral3Model, self._config()
        model = self.load("text_encoder", kind, config=config, dtype=self.dtype)
        return without_end(model.language_model)

    def new_encoder(self) -> nn.Module:
        return without_end(transformers.Mistral3Model(self._config()).language_model)

    def _config(self) -> Any:
        return self.encoder_config(transformers.Mistral3Config.from_dict, "text_config")

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self.load("tokenizer", transformers.PreTrainedTokenizerFast)
        self.check_tokenizer(tokenizer)
        return tokenizer

    def _message(self, text: str) -> str:
        """A text behind the base's own system message, as the chat template puts both.

        As in its pipeline without "[IMG]", which stands for a picture.
        """
        told = {"system": SYSTEM_MESSAGE, "user": text.replace("[IMG]", "")}
        message: str = self._tokenizer.apply_chat_template(
            [
                {"role": role, "content": [{"type": "text", "text": words}]}
                for role, words in told.items()
            ],
            tokenize=False,
            add_generation_prompt=False,
        )
        return message

    def tokens(self, text: str, **how: Any) -> Any:
        message, first = self._message(text), self._tokenizer.bos_token
        # The template writes the first token itself, and a tokenizer would add another.
        begun = first is not None and message.startswith(first)
        return self._tokenizer(message, add_special_tokens=not begun, **how)
