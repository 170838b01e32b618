"""Texts read by a Qwen that sees pictures, behind one fixed sentence: Qwen-Image's, Krea 2's.

The sentence and the words that end a text are in the code of Qwen-Image, not in the tokenizer. The
part that sees pictures is not loaded.

Source: `get_text_hidden_states` in diffusers' Krea2Pipeline.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from iclora.errors import ModelError
from iclora.models.qwen import QwenModel, without_end
from iclora.sets.caption import check_budget

__all__ = ["AFTER", "BEFORE", "Qwen3VLModel", "QwenVLModel", "without_eyes"]

BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"

_BEFORE, _AFTER = 34, 5
"""Their tokens. The denoiser reads none of the first ones."""


@cache
def without_eyes(kind: Any) -> Any:
    """The class of a model without the part that sees pictures, which its files hold.

    Made when it is needed: importing the model takes a while.
    """

    class Reader(kind):  # type: ignore[misc]
        _keys_to_ignore_on_load_unexpected = (r"^(model\.)?visual\.", r"^lm_head\.")

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            del self.visual

    return Reader


class QwenVLModel(QwenModel):
    """A base whose texts stand between `BEFORE` and `AFTER`."""

    unread = _BEFORE

    def check_tokenizer(self, tokenizer: Any) -> None:
        found = [len(tokenizer(words).input_ids) for words in (BEFORE, AFTER)]
        if found != [_BEFORE, _AFTER]:
            raise ModelError(
                f"the tokenizer of {self.name} makes {found[0]} and {found[1]} tokens of the words "
                f"around a text, where {self.title} leaves out {_BEFORE} and reads {_AFTER}",
                f"Download the model again; its tokenizer is {self.reader}'s.",
            )

    def count_tokens(self, text: str) -> int:
        read = self._tokenizer(BEFORE + text, truncation=False, verbose=False).input_ids
        return len(read) - _BEFORE + _AFTER


class Qwen3VLModel(QwenVLModel):
    """A base with one text encoder, a Qwen3-VL, and one tokenizer."""

    reader = "Qwen3-VL"

    @cached_property
    def _encoder(self) -> Any:
        kind, config = without_eyes(transformers.Qwen3VLModel), self._config()
        model = self.load("text_encoder", kind, config=config, dtype=self.dtype)
        return without_end(model.language_model)

    def new_encoder(self) -> nn.Module:
        model = without_eyes(transformers.Qwen3VLModel)(self._config())
        return without_end(model.language_model)

    def _config(self) -> Any:
        return self.encoder_config(transformers.Qwen3VLConfig.from_dict, "text_config")

    def read(self, text: str) -> tuple[Tensor, Tensor]:
        """Run the text encoder on one text, padded *between* its words and those that end it.

        Returns: the hidden states of `text_layers`, (tokens, layers, width), and bool (tokens,),
            False on the padding; on `device`, without the words before the text.
        Raises: CaptionError above `max_text_tokens`.
        """
        check_budget(text, self.count_tokens, self.max_text_tokens, "the text")
        most = self.max_text_tokens + _BEFORE - _AFTER
        body = self._tokenizer(
            BEFORE + text, padding="max_length", max_length=most, return_tensors="pt"
        )
        end = self._tokenizer(AFTER, return_tensors="pt")
        tokens, real = (
            torch.cat([body[key], end[key]], 1).to(self.text_device)
            for key in ("input_ids", "attention_mask")
        )
        # Padding takes no place.
        places = (real.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            states = self._encoder(
                tokens,
                attention_mask=real.bool(),
                position_ids=places.expand(3, -1, -1),
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
        found = torch.stack([states[number][0] for number in self.text_layers], 1)
        return found[_BEFORE:].to(self.dtype), real[0, _BEFORE:].bool()
