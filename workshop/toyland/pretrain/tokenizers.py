"""Tokenizers: words of the world and of the recipes whole, any other text letter by letter."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from iclora.sets.recipe import load_recipe, recipe_names
from iclora.toyland.wording import draw_caption, phrases
from iclora.toyland.world import draw_canvas
from workshop.toyland.pretrain.stage import Settings

__all__ = ["TEXT_TOKENS", "load_tokenizers", "make_tokenizers", "unigram"]

TEXT_TOKENS = 128
"""Tokens the T5 reads; FLUX.1 reads 512, which two cores could not carry."""


def _corpus(settings: Settings, count: int = 6000) -> list[str]:
    """Captions of the world, every phrase it knows, and the recipes' own examples."""
    rng = random.Random(f"words {settings.seed}")
    captions = [draw_caption(rng, draw_canvas(rng)).text for _ in range(count)]
    recipes = [load_recipe(name) for name in recipe_names()]
    return [*captions, *phrases(), *(r.example for r in recipes for _ in range(4))]


def make_tokenizers(settings: Settings) -> tuple[Any, Any]:
    """CLIP's and T5's tokenizer; both survive any text, letter by letter if need be."""
    corpus = _corpus(settings)
    counts: Counter[str] = Counter()
    rare: Counter[str] = Counter()
    for text in corpus:
        for word in text.split():
            counts.update(_pieces_of(word))
    for recipe in map(load_recipe, recipe_names()):
        for word in re.findall(r"[A-Za-z]+", f"{recipe.instruction} {recipe.example}"):
            rare.update(
                f"▁{word}"[a:b] for a in range(len(word)) for b in range(a + 2, len(word) + 2)
            )
    total = sum(counts.values())
    whole = {w: math.log(n / total) for w, n in counts.items()}
    floor = math.log(1 / total) - 4
    parts = {p: floor - 2 for p, n in rare.items() if n >= 12 and p not in whole}
    singles = {c: floor - 6 for c in ["▁", *map(chr, range(33, 127))] if c not in whole}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += sorted({**singles, **parts, **whole}.items())
    t5 = transformers.T5TokenizerFast(pieces, model_max_length=TEXT_TOKENS)
    return _clip_tokenizer(corpus), t5


def unigram(texts: Sequence[str]) -> Any:
    """A tokenizer with every word of these texts whole, and any other text letter by letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    counts: Counter[str] = Counter()
    for text in texts:
        for word in text.split():
            counts.update(_pieces_of(word))
    total = sum(counts.values())
    whole = {piece: math.log(n / total) for piece, n in counts.items()}
    floor = min(whole.values()) - 6
    singles = {c: floor for c in ["▁", "\n", *map(chr, range(33, 127))] if c not in whole}
    pieces = [(special, 0.0) for special in ("<pad>", "</s>", "<unk>", "<s>")]
    tokenizer = Tokenizer(models.Unigram([*pieces, *sorted({**singles, **whole}.items())], 2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def load_tokenizers(settings: Settings, work: Path) -> tuple[Any, Any]:
    """The tokenizers, made once: other captions later must not renumber the words."""
    folder = work / "tokenizers"
    if not folder.is_dir():
        clip, t5 = make_tokenizers(settings)
        part = work / "tokenizers.part"
        clip.save_pretrained(part / "tokenizer")
        t5.save_pretrained(part / "tokenizer_2")
        part.rename(folder)
    return (
        transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        transformers.T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
    )


def _pieces_of(word: str) -> list[str]:
    """A word as the T5 tokenizer should see it: itself, and the signs around it."""
    if word.startswith("["):
        head, tail = word[: word.index("]") + 1], word[word.index("]") + 1 :]
        return [f"▁{head}", *tail]
    match = re.fullmatch(r"([^\w]*)(.*?)([^\w]*)", word)
    assert match is not None
    front, middle, back = match.groups()
    return [f"▁{front[0]}", *front[1:], middle, *back] if front else [f"▁{middle}", *back]


def _clip_tokenizer(corpus: Sequence[str]) -> Any:
    """A byte-level BPE as CLIP's, trained on the corpus."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    pattern = (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
        r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", **{"unk_token": "<|endoftext|>"}))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [f"{c}</w>" for c in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=1400, initial_alphabet=alphabet, show_progress=False, end_of_word_suffix="</w>"
    )
    learner.train_from_iterator((text.lower() for text in corpus), trainer)
    trained = json.loads(learner.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    tokens = dict.fromkeys([*alphabet, *ends, *("".join(m) for m in merges)])
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocabulary, merges=merges, model_max_length=77)
