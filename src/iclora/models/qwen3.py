"""Texts read by a Qwen3: one message in its chat template, and hidden states of some layers.

FLUX.2 klein and Z-Image read texts so; they differ in which layers they take, in whether the
template lets the model think, and in what becomes of the padding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from iclora.errors import ModelError
from iclora.models.base import Part
from iclora.models.packed import PackedModel
from iclora.sets.caption import check_budget
from iclora.settings import Precision

__all__ = ["Qwen3Model"]


class Qwen3Model(PackedModel):
    """A base with one text encoder, a Qwen3, and one tokenizer with a chat template."""

    thinking: ClassVar[bool]
    """The template's own switch."""
    max_text_tokens = 512
    folders = {  # noqa: RUF012
        "text": ("text_encoder", "tokenizer"),
        "vae": ("vae",),
        "denoiser": ("transformer",),
    }
    held = {"text": ("_encoder",), "vae": ("_vae",), "denoiser": ("denoiser",)}  # noqa: RUF012

    def __init__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> None:
        super().__init__(folder, name, device, dtype, precision)
        # Qwen's own tokenizer takes far more; a small base may have been trained on less.
        if (folder / "tokenizer" / "tokenizer_config.json").is_file():
            tokenizer = self.config("tokenizer", "tokenizer_config.json")
            longest = int(tokenizer.get("model_max_length") or self.max_text_tokens)
            self.max_text_tokens = min(self.max_text_tokens, longest)

    @property
    @abstractmethod
    def text_layers(self) -> tuple[int, ...]:
        """Numbers of the hidden states that are the text; 0 is the embedding."""

    # -- parts ----------------------------------------------------------------------------------

    @cached_property
    def _encoder(self) -> Any:
        config = self._encoder_config()
        model = self.load("text_encoder", transformers.Qwen3Model, config=config, dtype=self.dtype)
        return _without_end(model)

    def new_encoder(self) -> nn.Module:
        """The part of the text encoder that is read, its weights not loaded."""
        return _without_end(transformers.Qwen3Model(self._encoder_config()))

    def _encoder_config(self) -> Any:
        """The text encoder's settings, without what is behind the last layer that is read."""
        settings, last = self.config("text_encoder"), self.text_layers[-1]
        try:
            config = transformers.Qwen3Config.from_dict(settings)
        except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
            raise ModelError(
                f"text_encoder/config.json of {self.name} describes no Qwen3 ({error!r})",
                self.advice,
            ) from error
        if config.num_hidden_layers < last:
            raise ModelError(
                f"the text encoder of {self.name} has {config.num_hidden_layers} layers, and "
                f"{self.title} reads number {last}",
                self.advice,
            )
        config.num_hidden_layers = last
        config.layer_types = config.layer_types[:last]
        return config

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self.load("tokenizer", transformers.Qwen2TokenizerFast)
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {self.name} has no chat template, which says how {self.title} "
                "reads a text",
                "Download the model again, with tokenizer/chat_template.jinja or the template in "
                "tokenizer_config.json.",
            )
        return tokenizer

    def beside(self, part: Part) -> Iterator[str]:
        if part == "text":
            yield f"{self.max_text_tokens} {self.text_layers}"

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

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer(self._message(text), truncation=False, verbose=False).input_ids)

    def read(self, text: str) -> tuple[Tensor, Tensor]:
        """Run the text encoder on one text, padded to `max_text_tokens`.

        Returns: the hidden states of `text_layers` side by side, (tokens, layers * width), and
            bool (tokens,), False on the padding; on `device`.
        Raises: CaptionError above `max_text_tokens`.
        """
        check_budget(text, self.count_tokens, self.max_text_tokens, "the text")
        read = self._tokenizer(
            self._message(text),
            padding="max_length",
            max_length=self.max_text_tokens,
            return_tensors="pt",
        ).to(self.device)
        with torch.no_grad():
            states = self._encoder(
                read.input_ids,
                attention_mask=read.attention_mask,
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
        found = torch.cat([states[number][0] for number in self.text_layers], -1)
        return found.to(self.dtype), read.attention_mask[0].bool()


def _without_end(decoder: Any) -> nn.Module:
    """A decoder cut short: the norm at its end is that of the whole one's last layer."""
    assert isinstance(decoder, nn.Module)
    decoder.norm = nn.Identity()
    return decoder
