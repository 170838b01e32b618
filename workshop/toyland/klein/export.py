"""All parts as one folder in the layout of FLUX.2-klein-base-4B."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import torch

from workshop.toyland.klein.reader import Reader, whole_reader

__all__ = ["klein_vae", "write_klein"]


@torch.no_grad()
def klein_vae(vae: Any) -> Any:
    """FLUX.1's toyland autoencoder in klein's class: the same weights, the same latents.

    Klein normalises every number of a token by a mean and a variance of its own; here all have
    those of FLUX.1's two numbers.
    """
    old = vae.config
    new = diffusers.AutoencoderKLFlux2(
        down_block_types=old.down_block_types,
        up_block_types=old.up_block_types,
        block_out_channels=old.block_out_channels,
        layers_per_block=old.layers_per_block,
        norm_num_groups=old.norm_num_groups,
        latent_channels=old.latent_channels,
        sample_size=old.sample_size,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    norm = new.bn.state_dict(prefix="bn.")
    new.load_state_dict({**vae.state_dict(), **norm})
    new.bn.running_mean.fill_(old.shift_factor)
    new.bn.running_var.fill_(old.scaling_factor**-2 - new.config.batch_norm_eps)
    return new


def write_klein(folder: Path, transformer: Any, vae: Any, reader: Reader, tokenizer: Any) -> None:
    """All parts in klein's layout, bf16.

    Args:
        vae: FLUX.1's.
    """
    copies = [
        copy.deepcopy(part).to(torch.bfloat16)
        for part in (transformer, klein_vae(vae), whole_reader(reader))
    ]
    diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        transformer=copies[0],
        vae=copies[1],
        text_encoder=copies[2],
        tokenizer=tokenizer,
        is_distilled=False,
    ).save_pretrained(folder, safe_serialization=True)
