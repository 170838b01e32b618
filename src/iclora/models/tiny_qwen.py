"""A tiny random Qwen3 with Qwen's tokenizer, for the small bases whose texts it reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import diffusers
import tokenizers
import transformers

from iclora.models.qwen_vl import AFTER, BEFORE
from iclora.models.tiny import recipe_words

__all__ = [
    "framed_tokenizer",
    "learn_merges",
    "learn_tokenizer",
    "qwen_tokenizer",
    "tiny_qwen",
    "tiny_qwen_vae",
]

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKS = ("<think>", "</think>")

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
"""What Qwen3's own template makes of messages without tools."""


def qwen_tokenizer() -> Any:
    """Qwen's tokenizer with merges of the recipes' own words."""
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return learn_tokenizer([recipe_words()], words, size=1200, longest=131072)


def framed_tokenizer() -> Any:
    """Qwen's tokenizer, for which the words around a text are as many tokens as for the real one:
    in that sentence each word is one."""
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    around = BEFORE + AFTER
    for mark in _SPECIAL:
        around = around.replace(mark, "\n")
    return learn_tokenizer([recipe_words(), *[around] * 50], words, size=1300, longest=131072)


def learn_merges(
    corpus: Iterable[str], words: Any, *, size: int, special: Sequence[str]
) -> tokenizers.Tokenizer:
    """Merges of bytes that were learnt of texts; `special` are the first tokens."""
    learnt = tokenizers.Tokenizer(tokenizers.models.BPE())
    learnt.pre_tokenizer = words
    learnt.train_from_iterator(
        corpus,
        tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(special),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return learnt


def learn_tokenizer(corpus: Iterable[str], words: Any, *, size: int, longest: int) -> Any:
    """A tokenizer of Qwen's kind, with its template, that learnt its merges of other texts.

    Args:
        words: what cuts a text into words before they are learnt.
        size: of the vocabulary.
        longest: text it takes, in tokens.
    """
    learnt = learn_merges(corpus, words, size=size, special=_SPECIAL)
    model = json.loads(learnt.to_str())["model"]
    tokenizer = transformers.Qwen2TokenizerFast(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        extra_special_tokens=list(_SPECIAL[1:]),
        model_max_length=longest,
    )
    tokenizer.add_tokens(list(_MARKS))
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tiny_qwen(words: int, layers: int) -> Any:
    """A Qwen3 with a head, that reads so many different tokens."""
    config = transformers.Qwen3Config(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
    )
    encoder = transformers.Qwen3ForCausalLM(config)
    # Else transformers writes no weights in any process of a group but the first.
    for net in (encoder, encoder.model):
        net.should_save_on_this_rank = lambda *_: True
    return encoder


def tiny_qwen_vae() -> Any:
    """Qwen-Image's VAE, in small."""
    return diffusers.AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=1)
