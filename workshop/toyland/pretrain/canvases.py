"""The transformer's training data: canvases as latents, and a step's draw from them."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from iclora.files import digest
from iclora.toyland.drawing import SIZE
from iclora.toyland.wording import draw_caption
from iclora.toyland.world import ARRANGEMENTS, TRAITS, Canvas, draw_canvas
from workshop.toyland.pretrain.stage import Log, Settings, amp, save_done
from workshop.toyland.pretrain.tokenizers import TEXT_TOKENS

__all__ = [
    "TOKEN",
    "Batch",
    "Encoded",
    "draw_batch",
    "draw_levels",
    "encode_canvases",
    "panel_of_token",
]

TOKEN = 8
"""Token edge, px."""
RELATED = 0.4
"""Share of a step's canvases drawn from the related ones alone; with the others it makes 0.7."""


@dataclass(frozen=True)
class Encoded:
    """Canvases of one arrangement, and their normalised latent tokens."""

    canvases: list[Canvas]
    latents: Tensor
    """(N, n, 32) bf16, tokens row by row."""

    @cached_property
    def truth(self) -> Tensor:
        """Number of every trait's value, -100 for none, (N, panels, traits)."""
        return torch.tensor(
            [
                [
                    [v.index(p.traits[t]) if t in p.traits else -100 for t, v in TRAITS.items()]
                    for p in canvas.panels
                ]
                for canvas in self.canvases
            ]
        )

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
        # The name tells the canvases apart, or others would get these latents.
        shown = digest(*map(repr, canvases))[:12]
        path = work / f"latents-{name.replace(' ', '-')}-{shown}.safetensors"
        if not path.is_file():
            parts = []
            for start in range(0, len(canvases), 32):
                drawn = [np.asarray(c.render()) for c in canvases[start : start + 32]]
                x = torch.from_numpy(np.stack(drawn)).to(vae.device).permute(0, 3, 1, 2)
                x = (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
                with amp(vae.device):
                    z = vae.encode(x).latent_dist.mode().float()
                z = (z - vae.config.shift_factor) * vae.config.scaling_factor
                parts.append(_pack(z).bfloat16().cpu())
            save_done(path, {"latents": torch.cat(parts)})
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
    it can read to paint the ones it cannot, which equal noise hardly ever asks for. Most of the
    lower levels are close below the higher: reading a panel as noisy as one's own, as SDEdit needs,
    is learned from its neighbours. (The base of 5,200 steps knew lower levels far below alone. Of
    24 given panels SDEdit carried 10%; with the given panel ahead by a logit of 0.5, 1 and 2 it
    carried 27%, 79% and 100%.)

    Returns: sigma as the model is told (B,), sigma of every token (B, n), weight of every token
        in its sample's loss (B, n).
    """
    # Towards noise: what a picture shows is settled above 0.8, and copied there.
    panels = int(panel.max()) + 1
    mixed = (torch.rand(count, generator=rng) < 0.5) & (panels > 1)
    logit = 1.0 + mixed.float() + 1.3 * torch.randn(count, generator=rng)
    sigma = torch.sigmoid(logit)
    near = torch.sigmoid(logit - torch.randn(count, generator=rng).abs())
    far = sigma * torch.rand(count, generator=rng) ** 1.5
    lower = torch.where(torch.rand(count, generator=rng) < 0.7, near, far)
    order = torch.rand(count, panels, generator=rng).argsort(-1)
    clean = order < torch.randint(1, max(2, panels), (count, 1), generator=rng)
    chosen = clean & mixed[:, None]
    levels = torch.where(chosen, lower[:, None], sigma[:, None])
    weight = (~chosen).float()[:, panel]
    return sigma, levels[:, panel], weight / weight.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Batch:
    """One step's canvases of one arrangement."""

    x0: Tensor
    """Latents, (B, n, 32)."""
    eps: Tensor
    """Noise, (B, n, 32)."""
    sigma: Tensor
    """The noise level the model is told, (B,)."""
    levels: Tensor
    """The noise level of every token, (B, n)."""
    weight: Tensor
    """Of every token in its sample's loss, (B, n)."""
    asked: Tensor
    """The tokens the teller is asked about, (k,)."""
    truth: Tensor
    """Value of every trait in these tokens' panels, -100 for none, (B, k, traits)."""
    t5_ids: Tensor
    """(B, TEXT_TOKENS)"""
    clip_ids: Tensor
    """(B, 77)"""
    places: Tensor
    """Position ids: row and column of every token, as FLUX.1 numbers them, (n, 3)."""

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def draw_batch(
    rng: random.Random, tokenizers: tuple[Any, Any], data: Encoded, arrangement: str, count: int
) -> Batch:
    """A step's canvases with new captions, noise and noise levels; all on the CPU."""
    clip_tokenizer, t5_tokenizer = tokenizers
    # Copying is the slow part to learn: related canvases come more often than they are drawn.
    wanted = [rng.random() < RELATED for _ in range(count)]
    kinds = {True: data.related, False: range(len(data.canvases))}
    chosen = [rng.choice(kinds[bool(data.related) and want]) for want in wanted]
    texts = [
        "" if rng.random() < 0.05 else draw_caption(rng, data.canvases[i]).text for i in chosen
    ]
    full: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    t5 = t5_tokenizer(texts, max_length=TEXT_TOKENS, **full)
    clip = clip_tokenizer(texts, max_length=77, **full)
    draws = torch.Generator().manual_seed(rng.randrange(2**62))
    x0 = data.latents[chosen].float()
    eps = torch.randn(x0.shape, generator=draws)
    panel = panel_of_token(arrangement)
    sigma, levels, weight = draw_levels(draws, count, panel)
    asked = torch.randperm(len(panel), generator=draws)[: len(panel) // 4]
    truth = data.truth[chosen][:, panel[asked]]
    width, height = ARRANGEMENTS[arrangement].size
    rows, columns = torch.meshgrid(
        torch.arange(height // TOKEN), torch.arange(width // TOKEN), indexing="ij"
    )
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    return Batch(
        x0, eps, sigma, levels, weight, asked, truth, t5["input_ids"], clip["input_ids"], places
    )
