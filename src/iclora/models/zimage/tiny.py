"""The base called "tiny-zimage": a random Z-Image of under a million parameters.

Its folder has Z-Image's layout, its classes and its token grid. Its pictures are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from iclora.models.tiny import made_folder, tiny_vae, unequal_norms
from iclora.models.tiny_qwen import qwen_tokenizer, tiny_qwen

__all__ = ["tiny_zimage_folder", "write_tiny_zimage"]


def tiny_zimage_folder() -> Path:
    """The folder of the tiny Z-Image; made on first use, in about two seconds."""
    return made_folder("tiny-zimage", write_tiny_zimage, Path(__file__))


def write_tiny_zimage(folder: Path, *, turbo: bool = False, seed: int = 0) -> None:
    """Write a tiny random Z-Image in diffusers' layout; the same bytes for the same seed.

    Args:
        turbo: True with the schedule of Z-Image-Turbo, False with the base's.
    """
    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # In this order: each draws its weights from the one generator.
        transformer, vae, encoder = _transformer(), tiny_vae(), tiny_qwen(len(tokenizer), 3)
    diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if turbo else 6.0),
        vae=vae,
        # The true one is without a head.
        text_encoder=encoder.model,
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)


def _transformer() -> Any:
    net = diffusers.ZImageTransformer2DModel(
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 512, 512],
    )
    unequal_norms(net)
    # Fresh ones are 0, so little would be seen of what fills a canvas up.
    for token in (net.x_pad_token, net.cap_pad_token):
        torch.nn.init.normal_(token)
    return net
