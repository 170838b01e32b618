"""The tokenizer: Qwen's kind, with the world's words whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import transformers

from iclora.models.tiny_qwen import learn_tokenizer, qwen_tokenizer
from iclora.sets.recipe import load_recipe, recipe_names
from iclora.toyland.wording import draw_caption, phrases
from iclora.toyland.world import draw_canvas

__all__ = ["SUFFIX", "TEXT_TOKENS", "load_words", "make_words", "message"]

TEXT_TOKENS = 128
"""Tokens the reader takes, those of the template included; klein's takes 512."""

SUFFIX = 9
"""Tokens the template puts behind a text: its end, the answer's beginning, an empty thought."""


def make_words(seed: int, captions: int = 6000) -> Any:
    """A tokenizer trained on captions of the world and the recipes' examples."""
    rng = random.Random(f"words {seed}")
    corpus = [draw_caption(rng, draw_canvas(rng)).text for _ in range(captions)]
    corpus += [*phrases(), *(load_recipe(name).example for name in recipe_names() for _ in "1234")]
    # The template's own words, each to be one token.
    corpus += ["user", "assistant", "\n\n"] * 500
    words = qwen_tokenizer().backend_tokenizer.pre_tokenizer
    return learn_tokenizer(corpus, words, size=1600, longest=TEXT_TOKENS)


def load_words(work: Path, seed: int) -> Any:
    """The tokenizer, made once: other captions later must not renumber the words."""
    folder = work / "words"
    if not folder.is_dir():
        part = work / "words.part"
        make_words(seed).save_pretrained(part)
        part.rename(folder)
    return transformers.Qwen2TokenizerFast.from_pretrained(folder)


def message(tokenizer: Any, text: str) -> str:
    """A text as klein reads it: one message of the user, thinking off."""
    found: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return found
