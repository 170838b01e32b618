"""All parts as one folder in the layout of FLUX.1-dev."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import torch

from workshop.toyland.pretrain.readers import Readers
from workshop.toyland.pretrain.stage import save_done

__all__ = ["still_guidance", "warm_start", "write_base"]


@torch.no_grad()
def still_guidance(transformer: Any) -> None:
    """Make the guidance embedding the same at every value as at 1, the only one it saw.

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
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=1.1,
        max_shift=1.4,
        base_image_seq_len=64,
        max_image_seq_len=256,
    )
    transformer = copy.deepcopy(transformer)
    still_guidance(transformer)
    copies = [
        copy.deepcopy(part).to(torch.bfloat16)
        for part in (transformer, vae, readers.clip, readers.t5)
    ]
    pipeline = diffusers.FluxPipeline(
        scheduler=scheduler,
        transformer=copies[0],
        vae=copies[1],
        text_encoder=copies[2],
        text_encoder_2=copies[3],
        tokenizer=clip_tokenizer,
        tokenizer_2=t5_tokenizer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def warm_start(base: Path, work: Path) -> None:
    """Fill a new `work` folder from an exported base: all but the transformer is done there.

    The transformer's training begins again from its weights, with new optimizers. Files that are
    in `work` already stay as they are.
    """
    pipeline = diffusers.FluxPipeline.from_pretrained(base, dtype=torch.float32)
    if not (work / "tokenizers").is_dir():
        pipeline.tokenizer.save_pretrained(work / "tokenizers" / "tokenizer")
        pipeline.tokenizer_2.save_pretrained(work / "tokenizers" / "tokenizer_2")
    readers = Readers(pipeline.text_encoder_2, pipeline.text_encoder)
    parts = {"vae": pipeline.vae, "text": readers, "warm": pipeline.transformer}
    for name, part in parts.items():
        path = work / f"{name}.safetensors"
        if not path.is_file():
            save_done(path, part.state_dict())
