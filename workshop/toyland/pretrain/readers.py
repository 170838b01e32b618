"""The text encoders, trained alone to tell what a caption says of which panel, then frozen.

Text encoders that are trained along with the transformer never bind clauses to panels.
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
from workshop.toyland.pretrain.stage import (
    Log,
    Settings,
    amp,
    load_state,
    optimizers_of,
    save_done,
    save_state,
    take_step,
    warm_then_cosine,
)
from workshop.toyland.pretrain.tokenizers import TEXT_TOKENS

__all__ = ["Readers", "new_clip", "new_t5", "text_batch", "train_text"]


def new_t5(tokenizer: Any) -> Any:
    """3 layers of width 192."""
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer),
            d_model=192,
            d_kv=32,
            d_ff=384,
            num_layers=3,
            num_heads=6,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            use_cache=False,
            dropout_rate=0.0,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=128,
        )
    )


def new_clip(tokenizer: Any) -> Any:
    """2 layers of width 96."""
    vocabulary = tokenizer.get_vocab()
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=3,
            projection_dim=96,
            max_position_embeddings=77,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
        )
    )


RELATIONS = ("", "same", "storm", "drawn")


class Readers(nn.Module):
    """Both text encoders and the heads they are trained by; the heads are thrown away.

    Every T5 token learns all that is said of its panel, so that one look at any token of a panel
    tells the transformer everything, and which panel that is.
    """

    def __init__(self, t5: Any, clip: Any) -> None:
        super().__init__()
        self.t5, self.clip = t5, clip
        sizes = {
            "panel": 5,
            "arrangement": len(ARRANGEMENTS),
            "relation": len(RELATIONS),
            "topic": len(TOPICS),
            **{name: len(values) + 1 for name, values in TRAITS.items()},
        }
        self.sizes = sizes
        self.token = nn.Linear(t5.config.d_model, sum(sizes.values()))
        self.pooled = nn.Linear(clip.config.hidden_size, sum(sizes.values()))

    def loss(
        self, t5_ids: Tensor, clip_ids: Tensor, labels: Tensor, pooled: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of all heads and the share of stated traits told right.

        Args:
            t5_ids: (B, T).
            clip_ids: (B, 77).
            labels: (B, T, heads), -100 at padding.
            pooled: (B, heads).
        """
        tokens = self.token(self.t5(t5_ids)[0].float()).split(list(self.sizes.values()), -1)
        whole = self.pooled(self.clip(clip_ids).pooler_output.float()).split(
            list(self.sizes.values()), -1
        )
        total, right, asked = torch.zeros(3, device=labels.device).unbind()
        for head, name in enumerate(self.sizes):
            target = labels[..., head].flatten()
            logits = tokens[head].flatten(0, 1)
            total = total + F.cross_entropy(logits, target)
            total = total + 0.3 * F.cross_entropy(whole[head], pooled[:, head])
            if name in TRAITS or name == "panel":
                stated = target > 0
                right = right + (logits.argmax(-1) == target)[stated].sum()
                asked = asked + stated.sum()
        return total / len(self.sizes), right / asked


def text_batch(
    rng: random.Random, count: int, clip_tokenizer: Any, t5_tokenizer: Any
) -> tuple[Tensor, ...]:
    """Captions as ids and the truth about every token, for `Readers.loss`."""
    canvases = [draw_canvas(rng) for _ in range(count)]
    captions = [draw_caption(rng, canvas) for canvas in canvases]
    texts = [caption.text for caption in captions]
    t5 = t5_tokenizer(
        texts,
        padding="max_length",
        max_length=TEXT_TOKENS,
        truncation=True,
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    clip = clip_tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    names = list(TRAITS)
    labels = torch.full((count, TEXT_TOKENS, 4 + len(names)), -100)
    pooled = torch.zeros((count, 4 + len(names)), dtype=torch.long)
    for i, (canvas, caption) in enumerate(zip(canvases, captions, strict=True)):
        told = RELATIONS.index(canvas.relation) if caption.cued else 0
        base = [
            0,
            list(ARRANGEMENTS).index(canvas.arrangement),
            told,
            list(TOPICS).index(canvas.panels[0].topic),
        ]
        common = {
            t: v for t, v in caption.said[0].items() if all(s.get(t) == v for s in caption.said)
        }

        def row(said: Mapping[str, str], base: list[int] = base) -> list[int]:
            return [*base, *(TRAITS[n].index(said[n]) + 1 if n in said else 0 for n in names)]

        rows = torch.tensor([row(caption.shared), *(row(said) for said in caption.said)])
        rows[1:, 0] = torch.arange(1, len(rows))
        pooled[i] = torch.tensor(row(common))
        last = t5["offset_mapping"][i, :, 1] - 1
        real = t5["attention_mask"][i].bool() & (t5["offset_mapping"][i, :, 1] > 0)
        where = torch.zeros(TEXT_TOKENS, dtype=torch.long)
        for number, (start, end) in enumerate(caption.spans, 1):
            where[(last >= start) & (last < end)] = number
        labels[i, real] = rows[where[real]]
    return t5["input_ids"], clip["input_ids"], labels, pooled


def train_text(settings: Settings, work: Path, log: Log, tokenizers: tuple[Any, Any]) -> Readers:
    """The two text encoders, trained and frozen."""
    torch.manual_seed(settings.seed + 1)
    device = settings.device
    clip_tokenizer, t5_tokenizer = tokenizers
    readers = Readers(new_t5(t5_tokenizer), new_clip(clip_tokenizer)).to(device)
    done = work / "text.safetensors"
    if not done.is_file():
        optimizers = optimizers_of(readers, settings.text_lr)
        start, _ = load_state(work / "text-state.safetensors", readers, *optimizers)
        for step in range(start, settings.text_steps):
            rng = random.Random(f"text {settings.seed} {step}")
            batch = text_batch(rng, settings.text_batch, clip_tokenizer, t5_tokenizer)
            rate = settings.text_lr * warm_then_cosine(step, settings.text_steps)
            with amp(device):
                loss, right = readers.loss(*(part.to(device) for part in batch))
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(readers.parameters(), 1.0)
            take_step(optimizers, rate)
            if (step + 1) % 25 == 0:
                log(
                    stage="text",
                    step=step + 1,
                    loss=round(float(loss), 4),
                    right=round(float(right), 4),
                )
            if (step + 1) % 200 == 0:
                save_state(work / "text-state.safetensors", step + 1, readers, *optimizers)
        save_done(done, readers.state_dict())
    readers.load_state_dict(load_file(done, str(device)))
    return readers.requires_grad_(False).eval()
