"""The base called "tiny-klein": a random FLUX.2 klein of under a million parameters.

Its folder has FLUX.2-klein-base-4B's layout, its classes and its token grid; its text encoder has
a layer more than is read, as the real one has nine. Its pictures are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from iclora.models.tiny import made_folder, unequal_norms
from iclora.models.tiny_qwen import qwen_tokenizer, tiny_qwen

__all__ = ["tiny_klein_folder", "write_tiny_klein"]


def tiny_klein_folder() -> Path:
    """The folder of the tiny FLUX.2 klein; made on first use, in about two seconds."""
    return made_folder("tiny-klein", write_tiny_klein, Path(__file__))


def write_tiny_klein(folder: Path, *, distilled: bool = False, seed: int = 0) -> None:
    """Write a tiny random FLUX.2 klein in diffusers' layout; the same bytes for the same seed.

    Args:
        distilled: True as in FLUX.2-klein-4B, False as in -base-4B.
    """
    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # In this order: each draws its weights from the one generator.
        transformer, vae, encoder = _transformer(), _vae(), tiny_qwen(len(tokenizer), 28)
    diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=distilled,
    ).save_pretrained(folder, safe_serialization=True)


def _transformer() -> Any:
    net = diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=96,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    unequal_norms(net)
    return net


def _vae() -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16, 32, 32), norm_num_groups=8, layers_per_block=1
    )
    # As little would be seen of the normalisation of latents.
    torch.nn.init.normal_(vae.bn.running_mean, 0, 0.1)
    torch.nn.init.uniform_(vae.bn.running_var, 2, 4)
    return vae
