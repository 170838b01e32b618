"""A small multimodal language model that captions toyland's sets from pixels, as LLaVA.

First its eyes learn to tell the traits of single panels, then eyes and decoder together learn to
answer the questions of `iclora caption` and `iclora prompt`, in the words of the tuning sets.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.toyland.drawing import SIZE
from iclora.toyland.world import TRAITS, Canvas, draw_canvas
from workshop.toyland.pretrain.lessons import (
    PATCH,
    answer_batch,
    draw_sets,
    make_processor,
    normalised,
    single_batch,
)
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

__all__ = ["new_captioner", "train_captioner"]


def new_captioner(processor: Any) -> Any:
    """CLIP eyes of 4 layers and width 192, a Llama of 4 layers and width 256."""
    tokenizer = processor.tokenizer
    eyes = transformers.CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
    )
    decoder = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=eyes,
            text_config=decoder,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            pad_token_id=tokenizer.pad_token_id,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=True,
        )
    )


class _Eyes(nn.Module):
    """The vision tower and a head that tells the traits of a panel; the head is thrown away."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.sizes = [len(values) for values in TRAITS.values()]
        self.head = nn.Linear(tower.config.hidden_size, sum(self.sizes))

    def loss(self, pixels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and the share told right; truth is (B, traits), -100 for none."""
        seen = self.tower(pixels).last_hidden_state[:, 1:].mean(1)
        total, right = seen.new_zeros(()), seen.new_zeros(())
        for logits, values in zip(
            self.head(seen.float()).split(self.sizes, -1), truth.unbind(-1), strict=True
        ):
            total = total + F.cross_entropy(logits, values, reduction="sum")
            right = right + ((logits.argmax(-1) == values) & (values >= 0)).sum()
        told = (truth >= 0).sum()
        return total / told, right / told


def _draw_singles(seed: int) -> tuple[list[Canvas], Tensor]:
    """Single panels of every kind, and their pixels (N, 3, SIZE, SIZE) uint8."""
    rng = random.Random(f"eyes {seed}")
    canvases = [draw_canvas(rng, arrangement="single") for _ in range(6000)]
    drawn = np.stack([np.asarray(canvas.panels[0].render()) for canvas in canvases])
    return canvases, torch.from_numpy(drawn).permute(0, 3, 1, 2)


def _train_eyes(settings: Settings, work: Path, log: Log, tower: Any) -> None:
    done = work / "eyes.safetensors"
    eyes = _Eyes(tower).to(settings.device)
    if not done.is_file():
        canvases, pixels = _draw_singles(settings.seed)
        panels = [canvas.panels[0] for canvas in canvases]
        truth = torch.tensor(
            [
                [v.index(p.traits[t]) if t in p.traits else -100 for t, v in TRAITS.items()]
                for p in panels
            ]
        )
        optimizers = optimizers_of(eyes, settings.eyes_lr)
        for step in range(settings.eyes_steps):
            rng = random.Random(f"eyes {settings.seed} {step}")
            chosen = torch.tensor([rng.randrange(len(panels)) for _ in range(64)])
            with amp(settings.device):
                loss, right = eyes.loss(
                    normalised(pixels[chosen].to(settings.device)),
                    truth[chosen].to(settings.device),
                )
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
            take_step(optimizers, settings.eyes_lr * warm_then_cosine(step, settings.eyes_steps))
            if (step + 1) % 50 == 0:
                log(
                    stage="eyes",
                    step=step + 1,
                    loss=round(float(loss.detach()), 4),
                    right=round(float(right), 4),
                )
        save_done(done, tower.state_dict())
    tower.load_state_dict(load_file(done, str(settings.device)))


def train_captioner(
    settings: Settings, work: Path, log: Log, out: Path, warm: Path | None = None
) -> None:
    """Train the captioner and write it to `out`, in transformers' layout, bf16.

    Args:
        warm: a captioner's folder to go on from; its eyes and words are trained already.
    """
    torch.manual_seed(settings.seed + 3)
    device = settings.device
    if warm:
        processor = transformers.AutoProcessor.from_pretrained(warm)
        model = new_captioner(processor)
        kept = transformers.LlavaForConditionalGeneration.from_pretrained(warm)
        model.load_state_dict(kept.state_dict())
        model.to(device)
        _learn_to_answer(settings, work, log, processor, model, out)
        return
    folder = work / "captioner-processor"
    if not folder.is_dir():
        make_processor(settings).save_pretrained(work / "captioner-processor.part")
        (work / "captioner-processor.part").rename(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = new_captioner(processor).to(device)
    _train_eyes(settings, work, log, model.model.vision_tower)
    # Words first: in a set's caption few tokens depend on pixels, and 1,000 steps of those alone
    # had taught it to write, and not to look.
    canvases, pixels = _draw_singles(settings.seed)
    _learn(
        settings,
        work,
        log,
        model,
        "captioner-words",
        settings.words_steps,
        lambda rng: single_batch(rng, processor, canvases, pixels, settings.words_batch),
    )
    _learn_to_answer(settings, work, log, processor, model, out)


def _learn_to_answer(
    settings: Settings, work: Path, log: Log, processor: Any, model: Any, out: Path
) -> None:
    """The last lessons; then the captioner is written."""
    drawn = draw_sets(settings.seed, settings.captioner_sets)
    _learn(
        settings,
        work,
        log,
        model,
        "captioner",
        settings.captioner_steps,
        lambda rng: answer_batch(rng, processor, drawn, settings.captioner_batch),
    )
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    processor.save_pretrained(out)


def _learn(
    settings: Settings,
    work: Path,
    log: Log,
    model: Any,
    stage: str,
    steps: int,
    draw: Callable[[random.Random], dict[str, Tensor]],
) -> None:
    """Train on conversations that `draw` makes; a stopped run goes on."""
    state = work / f"{stage}-state.safetensors"
    optimizers = optimizers_of(model, settings.captioner_lr)
    start, _ = load_state(state, model, *optimizers)
    for step in range(start, steps):
        batch = draw(random.Random(f"{stage} {settings.seed} {step}"))
        with amp(settings.device):
            loss = model(**{k: value.to(settings.device) for k, value in batch.items()}).loss
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        take_step(optimizers, settings.captioner_lr * warm_then_cosine(step, steps))
        if (step + 1) % 25 == 0:
            log(stage=stage, step=step + 1, loss=round(float(loss.detach()), 4))
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(state, step + 1, model, *optimizers)
