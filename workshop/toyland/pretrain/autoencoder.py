"""Pixels to latents, on canvases of every arrangement.

Trained on single panels, colour bleeds between the panels of a canvas: group norm mixes them.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from iclora.toyland.world import ARRANGEMENTS, draw_canvas
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

__all__ = ["join_panels", "new_vae", "panel_pool", "train_vae"]


def new_vae() -> Any:
    """A 4x autoencoder with 8 channels: a token of 2x2 latents is 8 px."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        norm_num_groups=8,
        latent_channels=8,
        layers_per_block=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


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
    device = settings.device
    vae = new_vae().to(device, memory_format=torch.channels_last)
    done = work / "vae.safetensors"
    if not done.is_file():
        pool = panel_pool(settings.seed + 1, 6000)
        kinds = list(ARRANGEMENTS.values())
        optimizers = optimizers_of(vae, settings.vae_lr)
        start, _ = load_state(work / "vae-state.safetensors", vae, *optimizers)
        for step in range(start, settings.vae_steps):
            rng = random.Random(f"vae {settings.seed} {step}")
            chosen = torch.tensor([rng.randrange(len(pool)) for _ in range(settings.vae_panels)])
            x = join_panels(pool[chosen].to(device).float() / 127.5 - 1, rng.choice(kinds).per_row)
            x = x.contiguous(memory_format=torch.channels_last)
            with amp(device):
                posterior = vae.encode(x).latent_dist
                y = vae.decode(posterior.sample()).sample.float()
            kl = posterior.kl().mean() / posterior.mean[0].numel()
            # Edges weigh extra: flat drawings live by their outlines.
            loss = (y - x).abs().mean() + 2 * (y - x).square().mean()
            loss = loss + 0.5 * (_edges(y) - _edges(x)).abs().mean() + 1e-3 * kl
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            take_step(optimizers, settings.vae_lr * warm_then_cosine(step, settings.vae_steps))
            if (step + 1) % 50 == 0:
                db = -10 * math.log10(float((y - x).square().mean()) / 4)
                log(
                    stage="autoencoder",
                    step=step + 1,
                    loss=round(float(loss), 4),
                    kl=round(float(kl), 3),
                    psnr=round(db, 2),
                )
            if (step + 1) % 200 == 0:
                save_state(work / "vae-state.safetensors", step + 1, vae, *optimizers)
        save_done(done, vae.state_dict())
    vae.load_state_dict(load_file(done, str(device)))
    vae.requires_grad_(False).eval()
    shift, scale = _measure_latents(vae, settings.seed)
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return vae


@torch.no_grad()
def _measure_latents(vae: Any, seed: int) -> tuple[float, float]:
    """Mean and reciprocal spread of the latents of fresh canvases."""
    pool = panel_pool(seed + 2, 240).to(vae.device).float() / 127.5 - 1
    found = []
    for arrangement in ARRANGEMENTS.values():
        canvases = join_panels(
            pool[: 240 // arrangement.panels * arrangement.panels], arrangement.per_row
        )
        found.append(vae.encode(canvases[:32]).latent_dist.mode().flatten())
    values = torch.cat(found)
    return round(float(values.mean()), 4), round(1 / float(values.std()), 4)
