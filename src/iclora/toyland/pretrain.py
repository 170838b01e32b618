"""Rebuild the embedded base from nothing: `python -m iclora.toyland.pretrain --out DIR`.

Four stages, each seeded, each going on where it was stopped:

    tokenizers    words of the world and of the recipes; any other text falls back to letters
    autoencoder   pixels to 4 px latents, on canvases of every arrangement
    text          T5 and CLIP learn to read the captions: what is said of which panel; then frozen
    transformer   rectified flow on canvases, with captions that leave things out

DIR becomes a folder in the layout of FLUX.1-dev. DIR/work holds checkpoints and logs, and can be
deleted in the end; while it is there, the command goes on where it stopped, also with more
`--steps` than before.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.recipe import load_recipe, recipe_names
from iclora.toyland.drawing import SIZE
from iclora.toyland.world import (
    ARRANGEMENTS,
    TOPICS,
    TRAITS,
    Canvas,
    draw_canvas,
    draw_caption,
    phrases,
)

__all__ = ["Settings", "main"]

STAGES = ("autoencoder", "canvases", "text")


@dataclass(frozen=True)
class Settings:
    """How the base is made. Defaults made the base that ships."""

    seed: int = 0
    vae_steps: int = 900
    vae_panels: int = 12
    """Panels in an autoencoder step."""
    vae_lr: float = 2e-3
    text_steps: int = 800
    text_batch: int = 32
    text_lr: float = 2e-3
    flow_canvases: int = 12_000
    """Different canvases the transformer sees; their captions are new each time."""
    flow_steps: int = 2700
    flow_cooldown: int = 600
    """Last steps, over which the learning rate falls to zero."""
    flow_tokens: int = 10_240
    """Tokens in a transformer step, words included; canvases of one arrangement."""
    flow_lr: float = 2e-3
    flow_ema: float = 0.998
    export_every: int = 500


# -- running a stage ----------------------------------------------------------------------------


class Log:
    """One JSON line per report, and the same on the screen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.monotonic()

    def __call__(self, **values: Any) -> None:
        row = {"s": round(time.monotonic() - self._began, 1), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def _warm_then_cosine(step: int, steps: int, warm: int = 100) -> float:
    """Share of the learning rate at a step: a linear start, a cosine to 2%."""
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def _save_state(path: Path, step: int, model: nn.Module, *optimizers: torch.optim.Optimizer,
                extra: Mapping[str, Tensor] | None = None) -> None:  # fmt: skip
    """A checkpoint as safetensors; replaced as a whole, so that a kill leaves the last one."""
    tensors = {f"model/{k}": v.detach().contiguous() for k, v in model.state_dict().items()}
    for key, value in (extra or {}).items():
        tensors[f"extra/{key}"] = value.contiguous()
    for which, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{which}/{number}/{name}"] = value.contiguous()
    part = path.with_suffix(".part")
    save_file({k: v.clone() for k, v in tensors.items()}, part, {"step": str(step)})
    part.rename(path)


def _load_state(
    path: Path, model: nn.Module, *optimizers: torch.optim.Optimizer
) -> tuple[int, dict[str, Tensor]]:
    """Take up a checkpoint. Returns: its step and extra tensors; 0 if there is none."""
    if not path.is_file():
        return 0, {}
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    for which, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{which}/"):
                number, name = key.split("/")[2:]
                state.setdefault(int(number), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return step, {k[6:]: v for k, v in tensors.items() if k.startswith("extra/")}


class Muon(torch.optim.Optimizer):
    """Momentum whose every update has all singular values near one, for matrices and kernels.

    Read for it: torch.optim.Muon, which refuses convolutions. A kernel counts as the matrix
    (out, in * height * width). Updates are scaled to the size of AdamW's.
    Source: Jordan 2024, kellerjordan.github.io/posts/muon; scale from arXiv 2502.16982.
    """

    def __init__(self, parameters: Sequence[Tensor], rate: float, decay: float = 0.02) -> None:
        super().__init__(parameters, {"lr": rate, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                grad = parameter.grad
                mean = state.setdefault("mean", torch.zeros_like(grad))
                mean.lerp_(grad, 0.05)
                update = _orthogonal(grad.lerp(mean, 0.95).flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["decay"])
                parameter.sub_(update.view(parameter.shape), alpha=group["lr"] * scale)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values moved near one, by five Newton-Schulz steps."""
    x = matrix.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    result: Tensor = (x if wide else x.mT).float()
    return result


def _optimizers(model: nn.Module, rate: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices and kernels inside of blocks, AdamW for the rest.

    Here it needs well under half of AdamW's steps, for a tenth more time a step.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = "block" in name or "layers." in name
        plain = parameter.ndim in (2, 4) and "norm" not in name and "bias" not in name
        (matrices if inner and plain else rest).append(parameter)
    adam = torch.optim.AdamW(rest, rate, (0.9, 0.98), weight_decay=0.0, fused=True)
    return Muon(matrices, rate), adam


def _step(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """One update at this learning rate; gradients are cleared."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def _amp() -> Any:
    """bf16 matrix products: on a CPU with AVX512-BF16 six times as fast as fp32."""
    return torch.autocast("cpu", torch.bfloat16)


# -- autoencoder --------------------------------------------------------------------------------


def new_vae() -> Any:
    """A 4x autoencoder with 8 channels: a token of 2x2 latents is 8 px."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96), norm_num_groups=8, latent_channels=8, layers_per_block=1,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False,
        sample_size=128, scaling_factor=1.0, shift_factor=0.0,
    )  # fmt: skip


def panel_pool(seed: int, count: int) -> Tensor:
    """Rendered panels of all topics, (count, 3, SIZE, SIZE) uint8."""
    rng = random.Random(seed)
    pixels = [np.asarray(draw_canvas(rng, arrangement="single").render()) for _ in range(count)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def join_panels(panels: Tensor, per_row: tuple[int, ...]) -> Tensor:
    """Join panels (B * n, c, h, w) to B canvases of equal rows."""
    n, across = sum(per_row), per_row[0]
    b, (c, h, w) = len(panels) // n, panels.shape[1:]
    grid = panels.view(b, n // across, across, c, h, w).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(b, c, n // across * h, across * w)


def _edges(x: Tensor) -> Tensor:
    return torch.cat([x.diff(dim=-1).flatten(1), x.diff(dim=-2).flatten(1)], 1)


def train_vae(settings: Settings, work: Path, log: Log) -> Any:
    """The trained autoencoder, its latents' mean and spread in its config."""
    torch.manual_seed(settings.seed)
    vae = new_vae().to(memory_format=torch.channels_last)
    done = work / "vae.safetensors"
    if not done.is_file():
        pool = panel_pool(settings.seed + 1, 6000)
        kinds = list(ARRANGEMENTS.values())
        optimizers = _optimizers(vae, settings.vae_lr)
        start, _ = _load_state(work / "vae-state.safetensors", vae, *optimizers)
        for step in range(start, settings.vae_steps):
            rng = random.Random(f"vae {settings.seed} {step}")
            chosen = torch.tensor([rng.randrange(len(pool)) for _ in range(settings.vae_panels)])
            x = pool[chosen].float() / 127.5 - 1
            x = join_panels(x, rng.choice(kinds).per_row).contiguous(
                memory_format=torch.channels_last
            )
            with _amp():
                posterior = vae.encode(x).latent_dist
                y = vae.decode(posterior.sample()).sample.float()
            kl = posterior.kl().mean() / posterior.mean[0].numel()
            # Edges weigh extra: flat drawings live by their outlines.
            loss = (y - x).abs().mean() + 2 * (y - x).square().mean()
            loss = loss + 0.5 * (_edges(y) - _edges(x)).abs().mean() + 1e-3 * kl
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            _step(optimizers, settings.vae_lr * _warm_then_cosine(step, settings.vae_steps))
            if (step + 1) % 50 == 0:
                db = -10 * math.log10(float((y - x).square().mean()) / 4)
                log(stage="autoencoder", step=step + 1, loss=round(float(loss), 4),
                    kl=round(float(kl), 3), psnr=round(db, 2))  # fmt: skip
            if (step + 1) % 200 == 0:
                _save_state(work / "vae-state.safetensors", step + 1, vae, *optimizers)
        save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, done)
    vae.load_state_dict(load_file(done))
    vae.requires_grad_(False).eval()
    shift, scale = _measure_latents(vae, settings.seed)
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return vae


@torch.no_grad()
def _measure_latents(vae: Any, seed: int) -> tuple[float, float]:
    """Mean and reciprocal spread of the latents of fresh canvases."""
    pool = panel_pool(seed + 2, 240).float() / 127.5 - 1
    found = []
    for arrangement in ARRANGEMENTS.values():
        canvases = join_panels(
            pool[: 240 // arrangement.panels * arrangement.panels], arrangement.per_row
        )
        found.append(vae.encode(canvases[:32]).latent_dist.mode().flatten())
    values = torch.cat(found)
    return round(float(values.mean()), 4), round(1 / float(values.std()), 4)


# -- words to numbers ---------------------------------------------------------------------------

TEXT_TOKENS = 128
"""Tokens the T5 reads; FLUX.1 reads 512, which two cores could not carry."""


def _corpus(settings: Settings, count: int = 6000) -> list[str]:
    """Captions of the world, every phrase it knows, and the recipes' own examples."""
    rng = random.Random(f"words {settings.seed}")
    captions = [draw_caption(rng, draw_canvas(rng)).text for _ in range(count)]
    recipes = [load_recipe(name) for name in recipe_names()]
    return [*captions, *phrases(), *(r.example for r in recipes for _ in range(4))]


def make_tokenizers(settings: Settings) -> tuple[Any, Any]:
    """CLIP's and T5's tokenizer; both survive any text, letter by letter where need be."""
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
    """A byte-level BPE as CLIP's, learnt on the corpus."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    pattern = (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
        r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", **{"unk_token": "<|endoftext|>"}))
    learner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [f"{c}</w>" for c in alphabet]
    trainer = trainers.BpeTrainer(vocab_size=1400, initial_alphabet=alphabet, show_progress=False,
                                  end_of_word_suffix="</w>")  # fmt: skip
    learner.train_from_iterator((text.lower() for text in corpus), trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    tokens = dict.fromkeys([*alphabet, *ends, *("".join(m) for m in merges)])
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocabulary, merges=merges, model_max_length=77)


# -- text encoders ------------------------------------------------------------------------------


def new_t5(tokenizer: Any) -> Any:
    """3 layers of width 192."""
    return transformers.T5EncoderModel(transformers.T5Config(
        vocab_size=len(tokenizer), d_model=192, d_kv=32, d_ff=384, num_layers=3, num_heads=6,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, use_cache=False,
        dropout_rate=0.0, relative_attention_num_buckets=32, relative_attention_max_distance=128,
    ))  # fmt: skip


def new_clip(tokenizer: Any) -> Any:
    """2 layers of width 96."""
    vocabulary = tokenizer.get_vocab()
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=96, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=3, projection_dim=96, max_position_embeddings=77,
        bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    ))  # fmt: skip


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
            "panel": 5, "arrangement": len(ARRANGEMENTS), "relation": len(RELATIONS),
            "topic": len(TOPICS), **{name: len(values) + 1 for name, values in TRAITS.items()},
        }  # fmt: skip
        self.sizes = sizes
        self.token = nn.Linear(t5.config.d_model, sum(sizes.values()))
        self.pooled = nn.Linear(clip.config.hidden_size, sum(sizes.values()))

    def loss(
        self, t5_ids: Tensor, clip_ids: Tensor, labels: Tensor, pooled: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of all heads and the share of stated traits told right.

        Args:
            t5_ids: (B, T). clip_ids: (B, 77).
            labels: (B, T, heads), -100 at padding. pooled: (B, heads).
        """
        tokens = self.token(self.t5(t5_ids)[0].float()).split(list(self.sizes.values()), -1)
        whole = self.pooled(self.clip(clip_ids).pooler_output.float()).split(
            list(self.sizes.values()), -1
        )
        total = torch.zeros(())
        right, asked = torch.zeros(()), torch.zeros(())
        for head, name in enumerate(self.sizes):
            target = labels[..., head].flatten()
            logits = tokens[head].flatten(0, 1)
            total = total + F.cross_entropy(logits, target)
            total = total + 0.3 * F.cross_entropy(whole[head], pooled[:, head])
            if name in TRAITS or name == "panel":
                stated = target > 0
                right += (logits.argmax(-1) == target)[stated].sum()
                asked += stated.sum()
        return total / len(self.sizes), right / asked


def text_batch(
    rng: random.Random, count: int, clip_tokenizer: Any, t5_tokenizer: Any
) -> tuple[Tensor, ...]:
    """Captions as ids and the truth about every token, for `Readers.loss`."""
    canvases = [draw_canvas(rng) for _ in range(count)]
    captions = [draw_caption(rng, canvas) for canvas in canvases]
    texts = [caption.text for caption in captions]
    t5 = t5_tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True,
                      return_tensors="pt", return_offsets_mapping=True)  # fmt: skip
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
    clip_tokenizer, t5_tokenizer = tokenizers
    readers = Readers(new_t5(t5_tokenizer), new_clip(clip_tokenizer))
    done = work / "text.safetensors"
    if not done.is_file():
        optimizers = _optimizers(readers, settings.text_lr)
        start, _ = _load_state(work / "text-state.safetensors", readers, *optimizers)
        for step in range(start, settings.text_steps):
            rng = random.Random(f"text {settings.seed} {step}")
            batch = text_batch(rng, settings.text_batch, clip_tokenizer, t5_tokenizer)
            rate = settings.text_lr * _warm_then_cosine(step, settings.text_steps)
            with _amp():
                loss, right = readers.loss(*batch)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(readers.parameters(), 1.0)
            _step(optimizers, rate)
            if (step + 1) % 25 == 0:
                log(
                    stage="text",
                    step=step + 1,
                    loss=round(float(loss), 4),
                    right=round(float(right), 4),
                )
            if (step + 1) % 200 == 0:
                _save_state(work / "text-state.safetensors", step + 1, readers, *optimizers)
        save_file({k: v.clone() for k, v in readers.state_dict().items()}, done)
    readers.load_state_dict(load_file(done))
    return readers.requires_grad_(False).eval()


# -- transformer --------------------------------------------------------------------------------

TOKEN = 8
"""Token edge, px."""
RELATED = 0.4
"""Share of a step's canvases drawn from the related ones alone; with the others it makes 0.7."""
_SHARES = {"single": 0.06, "side by side": 0.2, "stacked": 0.16, "storyboard": 0.36, "grid": 0.22}
"""How often a step is of each arrangement."""


def new_transformer() -> Any:
    """2 double and 4 single blocks of width 192."""
    return diffusers.FluxTransformer2DModel(
        in_channels=32, num_layers=2, num_single_layers=4, attention_head_dim=48,
        num_attention_heads=4, joint_attention_dim=192, pooled_projection_dim=96,
        guidance_embeds=True, axes_dims_rope=(8, 20, 20),
    )  # fmt: skip


def _norm_and_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS norm and rotary embedding of queries or keys.

    Args:
        x: (B, S, heads, d). weight: (d,). cos, sin: (1, S, 1, d / 2).
    Returns: (B, heads, S, d) in x's type.
    """
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight
    a, b = y.view(*y.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(3)
    return turned.to(x.dtype).transpose(1, 2).contiguous()


class PlainAttention:
    """Attention as two matrix products.

    On a CPU in bf16 this takes a third of the time of scaled_dot_product_attention forth and back.
    It is used for pre-training alone; a test holds it equal to diffusers' own.
    """

    def __init__(self, *, compiled: bool) -> None:
        self._rotate = (
            torch.compile(_norm_and_rotate, dynamic=True) if compiled else _norm_and_rotate
        )

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        assert image_rotary_emb is not None
        cos, sin = (t[None, :, None, ::2] for t in image_rotary_emb)
        d = attn.head_dim

        def project(x: Tensor, layers: tuple[Any, ...], part: slice) -> list[Tensor]:
            q, k, v = (layer(x).unflatten(-1, (-1, d)) for layer in layers[:3])
            c, s = cos[:, part], sin[:, part]
            q, k = self._rotate(q, layers[3].weight, c, s), self._rotate(k, layers[4].weight, c, s)
            return [q, k, v.transpose(1, 2)]

        own = (attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        if encoder_hidden_states is None:
            q, k, v = project(hidden_states, own, slice(None))
            return self._attend(q, k, v, d)
        words = encoder_hidden_states.shape[1]
        added = (
            attn.add_q_proj,
            attn.add_k_proj,
            attn.add_v_proj,
            attn.norm_added_q,
            attn.norm_added_k,
        )
        text = project(encoder_hidden_states, added, slice(words))
        image = project(hidden_states, own, slice(words, None))
        q, k, v = (torch.cat(pair, 2) for pair in zip(text, image, strict=True))
        out = self._attend(q, k, v, d)
        return attn.to_out[0](out[:, words:]), attn.to_add_out(out[:, :words])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, d: int) -> Tensor:
        scores = q @ (k.transpose(-1, -2) * d**-0.5)
        # Under autocast softmax would go to fp32 and double the traffic; bf16 is exact enough.
        return (torch._softmax(scores, -1, False) @ v).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Encoded:
    """Canvases of one arrangement: what they show, and their normalised latent tokens."""

    canvases: list[Canvas]
    latents: Tensor
    """(N, n, 32) bf16, tokens row by row."""

    @cached_property
    def related(self) -> list[int]:
        """Numbers of the canvases whose panels are related."""
        return [i for i, canvas in enumerate(self.canvases) if canvas.relation]


@torch.no_grad()
def encode_canvases(settings: Settings, work: Path, vae: Any, log: Log) -> dict[str, Encoded]:
    """Draw and encode the canvases the transformer is trained on, by arrangement."""
    by_arrangement: dict[str, list[Canvas]] = {name: [] for name in ARRANGEMENTS}
    for i in range(settings.flow_canvases):
        rng = random.Random(f"canvas {settings.seed} {i}")
        canvas = draw_canvas(rng)
        by_arrangement[canvas.arrangement].append(canvas)
    found = {}
    for name, canvases in by_arrangement.items():
        path = work / f"latents-{name.replace(' ', '-')}.safetensors"
        if not path.is_file():
            parts = []
            for start in range(0, len(canvases), 32):
                drawn = [np.asarray(c.render()) for c in canvases[start : start + 32]]
                x = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
                with _amp():
                    z = vae.encode(
                        x.contiguous(memory_format=torch.channels_last)
                    ).latent_dist.mode()
                z = (z.float() - vae.config.shift_factor) * vae.config.scaling_factor
                parts.append(_pack(z).bfloat16())
            save_file({"latents": torch.cat(parts)}, path)
            log(stage="canvases", arrangement=name, count=len(canvases))
        found[name] = Encoded(canvases, load_file(path)["latents"])
    return found


def _pack(z: Tensor) -> Tensor:
    """Latents (B, c, h, w) to tokens (B, h/2 * w/2, 4c), as `FluxModel` packs them."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)


def panel_of_token(arrangement: str) -> Tensor:
    """The number of the panel each token of a canvas lies in, (n,)."""
    edge = SIZE // TOKEN
    per_row = ARRANGEMENTS[arrangement].per_row
    numbers = torch.arange(sum(per_row)).view(len(per_row), per_row[0])
    return numbers.repeat_interleave(edge, 0).repeat_interleave(edge, 1).flatten()


def draw_levels(rng: torch.Generator, count: int, panel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise levels of `count` canvases.

    Half of those with several panels have some panels less noisy than the rest. The model is told
    the higher level, and only those at it count in the loss: so it learns to look at the panels
    it can read to paint the ones it cannot, which equal noise hardly ever asks for.

    Returns: sigma as the model is told (B,), sigma of every token (B, n), weight of every token
        in its sample's loss (B, n).
    """
    # Towards noise: what a picture shows is settled above 0.8.
    sigma = torch.sigmoid(1.0 + 1.3 * torch.randn(count, generator=rng))
    panels = int(panel.max()) + 1
    levels = sigma[:, None].expand(-1, panels).clone()
    noisy = torch.ones(count, panels)
    if panels > 1:
        mixed = torch.rand(count, generator=rng) < 0.5
        order = torch.rand(count, panels, generator=rng).argsort(-1)
        clean = order < torch.randint(1, panels, (count, 1), generator=rng)
        lower = sigma * torch.rand(count, generator=rng)
        chosen = clean & mixed[:, None]
        levels = torch.where(chosen, lower[:, None], levels)
        noisy = (~chosen).float()
    weight = noisy[:, panel]
    return sigma, levels[:, panel], weight / weight.sum(-1, keepdim=True)


def flow_loss(model: Any, readers: Readers, tokenizers: tuple[Any, Any], data: Encoded,
              arrangement: str, rng: random.Random, count: int) -> Tensor:  # fmt: skip
    """The mean loss of one step's canvases."""
    clip_tokenizer, t5_tokenizer = tokenizers
    # Copying is the slow part to learn: related canvases come more often than they are drawn.
    wanted = [rng.random() < RELATED for _ in range(count)]
    kinds = {True: data.related, False: range(len(data.canvases))}
    chosen = [rng.choice(kinds[bool(data.related) and want]) for want in wanted]
    texts = [
        "" if rng.random() < 0.05 else draw_caption(rng, data.canvases[i]).text for i in chosen
    ]
    draws = torch.Generator().manual_seed(rng.randrange(2**62))
    x0 = data.latents[chosen].float()
    eps = torch.randn(x0.shape, generator=draws)
    sigma, levels, weight = draw_levels(draws, count, panel_of_token(arrangement))
    z = (1 - levels[..., None]) * x0 + levels[..., None] * eps
    t5 = t5_tokenizer(
        texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
    )
    clip = clip_tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    width, height = ARRANGEMENTS[arrangement].size
    rows, columns = torch.meshgrid(
        torch.arange(height // TOKEN), torch.arange(width // TOKEN), indexing="ij"
    )
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    with _amp():
        with torch.no_grad():
            words = readers.t5(t5["input_ids"])[0].float()
            pooled = readers.clip(clip["input_ids"]).pooler_output.float()
        v = model(
            hidden_states=z, encoder_hidden_states=words, pooled_projections=pooled, timestep=sigma,
            guidance=torch.ones(count), img_ids=places, txt_ids=torch.zeros(TEXT_TOKENS, 3),
            return_dict=False,
        )[0]  # fmt: skip
    error = (v.float() - (eps - x0)).square().mean(-1)
    loss: Tensor = (error * weight).sum(-1).mean()
    return loss


def train_flow(settings: Settings, work: Path, log: Log, readers: Readers,
               tokenizers: tuple[Any, Any], data: dict[str, Encoded],
               export: Callable[[Any], None]) -> None:  # fmt: skip
    """Train the transformer; `export` is called with its averaged weights now and then."""
    torch.manual_seed(settings.seed + 2)
    model = new_transformer()
    model.set_attn_processor(PlainAttention(compiled=True))
    # In fp32 from the first layer on, or the noise level would be told in bf16's coarse steps.
    model.x_embedder.register_forward_hook(lambda _module, _args, out: out.float())
    optimizers = _optimizers(model, settings.flow_lr)
    start, extra = _load_state(work / "flow-state.safetensors", model, *optimizers)
    names = list(dict(model.named_parameters()))
    parameters = list(model.parameters())
    average = [
        extra[n] if start else p.detach().clone() for n, p in zip(names, parameters, strict=True)
    ]
    recent: list[float] = []
    began = time.monotonic()
    for step in range(start, settings.flow_steps):
        rng = random.Random(f"flow {settings.seed} {step}")
        arrangement = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
        length = TEXT_TOKENS + (SIZE // TOKEN) ** 2 * ARRANGEMENTS[arrangement].panels
        count = settings.flow_tokens // length
        left = (settings.flow_steps - step) / settings.flow_cooldown
        rate = settings.flow_lr * min(1.0, (step + 1) / 200, left)
        loss = flow_loss(model, readers, tokenizers, data[arrangement], arrangement, rng, count)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        _step(optimizers, rate)
        decay = min(settings.flow_ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - decay)
        recent.append(float(loss.detach()))
        last = step + 1 == settings.flow_steps
        if (step + 1) % 50 == 0:
            log(stage="transformer", step=step + 1, loss=round(sum(recent) / len(recent), 4),
                norm=round(float(norm), 2), rate=round(rate, 6),
                seconds=round((time.monotonic() - began) / len(recent), 3))  # fmt: skip
            recent, began = [], time.monotonic()
        if (step + 1) % 250 == 0 or last:
            ema = dict(zip(names, average, strict=True))
            _save_state(work / "flow-state.safetensors", step + 1, model, *optimizers, extra=ema)
        if (step + 1) % settings.export_every == 0 or last:
            averaged = new_transformer()
            averaged.load_state_dict(dict(zip(names, average, strict=True)))
            export(averaged)


# -- the folder ---------------------------------------------------------------------------------


@torch.no_grad()
def still_guidance(transformer: Any) -> None:
    """Make the guidance embedding give at every value what it gives at 1, the only one it saw.

    Samplers ask for 3.5: an embedding of values never trained would be noise in every layer.
    """
    embed = transformer.time_text_embed
    wave = embed.time_proj(torch.tensor([1000.0])).to(embed.guidance_embedder.linear_1.weight.dtype)
    constant = embed.guidance_embedder(wave)[0]
    last = embed.guidance_embedder.linear_2
    last.weight.zero_()
    last.bias.copy_(constant)


def write_base(
    folder: Path, transformer: Any, vae: Any, readers: Readers, tokenizers: tuple[Any, Any]
) -> None:
    """All parts in FLUX.1-dev's layout, bf16."""
    clip_tokenizer, t5_tokenizer = tokenizers
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=1.1, max_shift=1.4,
        base_image_seq_len=64, max_image_seq_len=256,
    )  # fmt: skip
    transformer = copy.deepcopy(transformer)
    still_guidance(transformer)
    copies = [
        copy.deepcopy(part).to(torch.bfloat16)
        for part in (transformer, vae, readers.clip, readers.t5)
    ]
    pipeline = diffusers.FluxPipeline(
        scheduler=scheduler, transformer=copies[0], vae=copies[1], text_encoder=copies[2],
        text_encoder_2=copies[3], tokenizer=clip_tokenizer, tokenizer_2=t5_tokenizer,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the base")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--stage", choices=STAGES, help="train this stage alone")
    parser.add_argument("--steps", type=int, default=Settings.flow_steps, help="transformer steps")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = Settings(seed=args.seed, flow_steps=args.steps)
    work = args.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    log = Log(work / "log.jsonl")
    # The two first stages do not need each other: two machines, or cores, can share them.
    vae = None if args.stage == "text" else train_vae(settings, work, log)
    data = encode_canvases(settings, work, vae, log) if args.stage in (None, "canvases") else {}
    if args.stage in ("autoencoder", "canvases"):
        return
    tokenizers = load_tokenizers(settings, work)
    readers = train_text(settings, work, log, tokenizers)
    if vae is None:
        return
    train_flow(settings, work, log, readers, tokenizers, data,
               lambda model: write_base(args.out, model, vae, readers, tokenizers))  # fmt: skip


if __name__ == "__main__":
    main()
