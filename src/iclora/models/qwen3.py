"""Texts read by a Qwen3: one message in its chat template, and hidden states of some layers.

FLUX.2 klein and Z-Image read texts so; they differ in which layers they take, in whether the
template lets the model think, and in what becomes of the padding.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from iclora.errors import ModelError
from iclora.models.qwen import QwenModel, without_end
from iclora.sets.caption import check_budget

__all__ = ["Qwen3Model"]


class Qwen3Model(QwenModel):
    """A base with one text encoder, a Qwen3, and one tokenizer with a chat template."""

    reader = "Qwen3"
    thinking: ClassVar[bool]
    """The template's own switch."""

    # -- parts ----------------------------------------------------------------------------------

    @cached_property
    def _encoder(self) -> Any:
        config = self.encoder_config(transformers.Qwen3Config.from_dict)
        model = self.load("text_encoder", transformers.Qwen3Model, config=config, dtype=self.dtype)
        return without_end(model)

    def new_encoder(self) -> nn.Module:
        config = self.encoder_config(transformers.Qwen3Config.from_dict)
        return without_end(transformers.Qwen3Model(config))

    def check_tokenizer(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {self.name} has no chat template, which says how {self.title} "
                "reads a text",
                "Download the model again, with tokenizer/chat_template.jinja or the template in "
                "tokenizer_config.json.",
            )

    # -- reading --------------------------------------------------------------------------------

    def _message(self, text: str) -> str:
        """A text as the chat template puts it: one message of the user."""
        message: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinking,
        )
        return message

    def tokens(self, text: str, **how: Any) -> Any:
        """What the tokenizer makes of a text's message."""
        return self._tokenizer(self._message(text), **how)

    def count_tokens(self, text: str) -> int:
        return len(self.tokens(text, truncation=False, verbose=False).input_ids)

    def read(self, text: str) -> tuple[Tensor, Tensor]:
        """Run the text encoder on one text, padded to `max_text_tokens`.

        Returns: the hidden states of `text_layers` side by side, (tokens, layers * width), and
            bool (tokens,), False on the padding; on `device`.
        Raises: CaptionError above `max_text_tokens`.
        """
        check_budget(text, self.count_tokens, self.max_text_tokens, "the text")
        read = self.tokens(
            text, padding="max_length", max_length=self.max_text_tokens, return_tensors="pt"
        ).to(self.text_device)
        with torch.no_grad():
            states = self._encoder(
                read.input_ids,
                attention_mask=read.attention_mask,
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
        found = torch.cat([states[number][0] for number in self.text_layers], -1)
        return found.to(self.dtype), read.attention_mask[0].bool()
