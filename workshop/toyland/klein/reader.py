"""The reader: a Qwen3, trained alone to tell what a caption says of which panel, then frozen.

A Qwen3 looks back only: the last words of a panel, and what the template puts behind the text, are
where all that is said of a panel can be known. These tokens are asked; each of the template's
last ones answers for one panel.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.toyland.wording import draw_caption
from iclora.toyland.world import ARRANGEMENTS, TOPICS, TRAITS, draw_canvas
from workshop.toyland.klein.words import SUFFIX, TEXT_TOKENS, message
from workshop.toyland.pretrain.stage import (
    Log,
    amp,
    load_state,
    optimizers_of,
    save_done,
    save_state,
    take_step,
    warm_then_cosine,
)

__all__ = ["ANSWERS", "WIDTH", "Reader", "read_ids", "reader_batch", "train_reader", "whole_reader"]

WIDTH = 64
_TAPS = (9, 18, 27)
"""Hidden states that are klein's text."""
_BUSY = 3
"""Layers before each tap that do something; the others pass on what they get, for speed."""
_RELATIONS = ("", "same", "storm", "drawn")
ANSWERS = (0, 0, 1, 2, 3, 4, 1, 2, 3)
"""The panel that each of the template's last tokens tells of; 0 is what is said of all."""


def _config(words: int, layers: int) -> Any:
    return transformers.Qwen3Config(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_cache=False,
        # Its backward pass takes a tenth of the fused one on a CPU.
        attn_implementation="eager",
    )


class Reader(nn.Module):
    """The busy layers and the head they are trained by; the head is thrown away."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.qwen = transformers.Qwen3Model(_config(words, _BUSY * len(_TAPS)))
        self.qwen.norm = nn.Identity()
        self.sizes = {
            "panel": 5,
            "arrangement": len(ARRANGEMENTS),
            "relation": len(_RELATIONS),
            "topic": len(TOPICS),
            **{name: len(values) + 1 for name, values in TRAITS.items()},
        }
        self.tell = nn.Linear(len(_TAPS) * WIDTH, sum(self.sizes.values()))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The text's states, (B, T, 3 * WIDTH)."""
        states = self.qwen(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.cat([states[_BUSY * (n + 1)] for n in range(len(_TAPS))], -1)

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over heads, and the share of stated traits told right.

        Args:
            ids, mask: (B, T).
            labels: (B, T, heads), -100 where a token is not asked.
        """
        asked = labels[..., 0] >= 0
        told = self.tell(self(ids, mask)[asked].float()).split(list(self.sizes.values()), -1)
        total, right, stated = torch.zeros(3, device=ids.device).unbind()
        for head, (name, logits) in enumerate(zip(self.sizes, told, strict=True)):
            target = labels[asked][:, head]
            total = total + F.cross_entropy(logits, target)
            if name in TRAITS or name == "panel":
                right = right + (logits.argmax(-1) == target)[target > 0].sum()
                stated = stated + (target > 0).sum()
        return total / len(self.sizes), right / stated


def read_ids(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and offsets of captions in the template, padded to `TEXT_TOKENS`."""
    read = tokenizer(
        [message(tokenizer, text) for text in texts],
        padding="max_length",
        max_length=TEXT_TOKENS,
        truncation=True,
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    return read["input_ids"], read["attention_mask"], read["offset_mapping"]


def reader_batch(rng: random.Random, count: int, tokenizer: Any) -> tuple[Tensor, ...]:
    """Captions as ids and the truth about the tokens that are asked, for `Reader.loss`."""
    canvases = [draw_canvas(rng) for _ in range(count)]
    captions = [draw_caption(rng, canvas) for canvas in canvases]
    ids, mask, offsets = read_ids(tokenizer, [caption.text for caption in captions])
    front = message(tokenizer, "\0").index("\0")
    names = list(TRAITS)
    labels = torch.full((count, TEXT_TOKENS, 4 + len(names)), -100)
    for i, (canvas, caption) in enumerate(zip(canvases, captions, strict=True)):
        told = _RELATIONS.index(canvas.relation) if caption.cued else 0
        base = [
            list(ARRANGEMENTS).index(canvas.arrangement),
            told,
            list(TOPICS).index(canvas.panels[0].topic),
        ]

        def row(number: int, said: Mapping[str, str], base: list[int] = base) -> list[int]:
            traits = [TRAITS[n].index(said[n]) + 1 if n in said else 0 for n in names]
            return [number, *base, *traits]

        rows = [row(0, caption.shared), *(row(n, s) for n, s in enumerate(caption.said, 1))]
        length = int(mask[i].sum())
        for place, number in enumerate(ANSWERS):
            known = number if number < len(rows) else 0
            labels[i, length - SUFFIX + place] = torch.tensor(rows[known])
        ends = offsets[i, : length - SUFFIX, 1] - front
        for number, (start, end) in enumerate(caption.spans, 1):
            inside = ((ends > start) & (ends <= end)).nonzero().flatten()[-3:]
            labels[i, inside] = torch.tensor(rows[number])
    return ids, mask, labels


def train_reader(
    work: Path, log: Log, tokenizer: Any, *, seed: int, steps: int, batch: int, rate: float
) -> Reader:
    """The reader, trained and frozen."""
    torch.manual_seed(seed + 1)
    reader = Reader(len(tokenizer))
    done = work / "reader.safetensors"
    if not done.is_file():
        optimizers = optimizers_of(reader, rate)
        start, _ = load_state(work / "reader-state.safetensors", reader, *optimizers)
        for step in range(start, steps):
            rng = random.Random(f"reader {seed} {step}")
            lessons = reader_batch(rng, batch, tokenizer)
            with amp(torch.device("cpu")):
                loss, right = reader.loss(*lessons)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            take_step(optimizers, rate * warm_then_cosine(step, steps))
            if (step + 1) % 25 == 0:
                told = {"loss": round(float(loss.detach()), 4), "right": round(float(right), 4)}
                log(stage="reader", step=step + 1, **told)
            if (step + 1) % 200 == 0:
                save_state(work / "reader-state.safetensors", step + 1, reader, *optimizers)
        save_done(done, reader.state_dict())
    reader.load_state_dict(load_file(done))
    return reader.requires_grad_(False).eval()


@torch.no_grad()
def whole_reader(reader: Reader) -> Any:
    """The Qwen3 of klein's depth: one layer more than is read, most of them idle."""
    words = reader.qwen.config.vocab_size
    whole = transformers.Qwen3ForCausalLM(_config(words, _TAPS[-1] + 1))
    whole.model.embed_tokens.load_state_dict(reader.qwen.embed_tokens.state_dict())
    for number, layer in enumerate(whole.model.layers):
        part, inside = divmod(number, _TAPS[0])
        if part < len(_TAPS) and inside < _BUSY:
            layer.load_state_dict(reader.qwen.layers[part * _BUSY + inside].state_dict())
        else:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return whole
