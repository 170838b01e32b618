"""A base whose texts one Qwen reads: its tokenizer, and the encoder up to the last layer read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from iclora.errors import ModelError
from iclora.models.base import Part
from iclora.models.packed import PackedModel
from iclora.models.sizes import check_sizes
from iclora.settings import Precision

__all__ = ["QwenModel", "without_end"]


class QwenModel(PackedModel):
    """A base with one text encoder, a Qwen, and one tokenizer."""

    reader: ClassVar[str]
    """What the encoder is called in messages."""
    max_text_tokens = 512
    unread = 0
    """Tokens that are encoded before a text's own and not counted."""
    folders: ClassVar = {
        "text": ("text_encoder", "tokenizer"),
        "vae": ("vae",),
        "denoiser": ("transformer",),
    }
    held: ClassVar = {"text": ("_encoder",), "vae": ("_vae",), "denoiser": ("denoiser",)}

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

    @property
    @abstractmethod
    def _encoder(self) -> Any:
        """What reads a text's tokens; loaded at first use."""

    @abstractmethod
    def new_encoder(self) -> nn.Module:
        """The part of the text encoder that is read, its weights not loaded."""

    def encoder_config(self, made: Callable[[dict[str, Any]], Any], inside: str = "") -> Any:
        """The text encoder's settings, without what is behind the last layer that is read.

        Args:
            made: makes settings of an encoder from those of its folder.
            inside: where those of the layers stand in them, if others stand beside.
        Raises: ModelError if they describe no encoder, or one of too few layers.
        """
        settings, last = self.config("text_encoder"), self.text_layers[-1]
        try:
            if inside:
                check_sizes(settings.get(inside, {}), f"text_encoder/config.json of {self.name}")
            config = made(settings)
        except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
            raise ModelError(
                f"text_encoder/config.json of {self.name} describes no {self.reader} ({error!r})",
                self.advice,
            ) from error
        own = getattr(config, inside) if inside else config
        if own.num_hidden_layers < last:
            raise ModelError(
                f"the text encoder of {self.name} has {own.num_hidden_layers} layers, and "
                f"{self.title} reads number {last}",
                self.advice,
            )
        own.num_hidden_layers = last
        if getattr(own, "layer_types", None):
            own.layer_types = own.layer_types[:last]
        return config

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self.load("tokenizer", transformers.Qwen2TokenizerFast)
        self.check_tokenizer(tokenizer)
        return tokenizer

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises: ModelError for one by which texts would be read in another way."""

    def beside(self, part: Part) -> Iterator[str]:
        if part == "text":
            yield f"{self.max_text_tokens} {self.text_layers}"


def without_end(decoder: Any) -> nn.Module:
    """A decoder cut short: the norm at its end is that of the whole one's last layer."""
    assert isinstance(decoder, nn.Module)
    decoder.norm = nn.Identity()
    return decoder
