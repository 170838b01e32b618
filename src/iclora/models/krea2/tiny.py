"""The base called "tiny-krea": a random Krea 2 of a million parameters.

Its folder has Krea-2-Raw's layout, its classes and its token grid; its text encoder has a layer
more than is read, as the real one has. Its pictures are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from iclora.models.tiny import made_folder, unequal_norms
from iclora.models.tiny_qwen import framed_tokenizer, tiny_qwen_vae

__all__ = ["tiny_krea_folder", "write_tiny_krea"]

_LAYERS = (1, 3)
"""Hidden states that are read, in place of twelve."""


def tiny_krea_folder() -> Path:
    """The folder of the tiny Krea 2; made on first use, in about two seconds."""
    return made_folder("tiny-krea", write_tiny_krea, Path(__file__))


def write_tiny_krea(folder: Path, *, turbo: bool = False, seed: int = 0) -> None:
    """Write a tiny random Krea 2 in diffusers' layout; the same bytes for the same seed.

    Args:
        turbo: True as in Krea-2-Turbo, False as in -Raw.
    """
    tokenizer = framed_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # In this order: each draws its weights from the one generator.
        transformer, vae, encoder = _transformer(), tiny_qwen_vae(), _encoder(len(tokenizer))
    diffusers.Krea2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=6400,
        ),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=_LAYERS,
        is_distilled=turbo,
    ).save_pretrained(folder, safe_serialization=True)


def _transformer() -> Any:
    net = diffusers.Krea2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        timestep_embed_dim=32,
        text_hidden_dim=32,
        num_text_layers=len(_LAYERS),
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=64,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 12, 12),
    )
    draw_tables(net)
    return net


def draw_tables(net: torch.nn.Module) -> None:
    """Draw the tables and the norms' weights, which are 0 in a fresh Krea 2."""
    for name, parameter in net.named_parameters():
        if name.endswith("scale_shift_table") or ("norm" in name and parameter.ndim == 1):
            torch.nn.init.normal_(parameter, std=0.2)


def _encoder(words: int) -> Any:
    """A Qwen3-VL, with the part that sees pictures."""
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": words,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": _LAYERS[-1] + 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000,
                "mrope_section": [4, 2, 2],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 1,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    )
    encoder = transformers.Qwen3VLModel(config)
    unequal_norms(encoder)
    # Else transformers writes no weights in any process of a group but the first.
    encoder.should_save_on_this_rank = lambda *_: True
    return encoder
