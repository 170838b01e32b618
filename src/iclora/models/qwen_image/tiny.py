"""The base called "tiny-qwen": a random Qwen-Image of a million parameters.

Its folder has Qwen-Image's layout, its classes and its token grid. Its pictures are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from iclora.models.tiny import made_folder, unequal_norms
from iclora.models.tiny_qwen import framed_tokenizer, tiny_qwen_vae

__all__ = ["tiny_qwen_image_folder", "write_tiny_qwen_image"]


def tiny_qwen_image_folder() -> Path:
    """The folder of the tiny Qwen-Image; made on first use, in about two seconds."""
    return made_folder("tiny-qwen", write_tiny_qwen_image, Path(__file__))


def write_tiny_qwen_image(folder: Path, *, seed: int = 0) -> None:
    """Write a tiny random Qwen-Image in diffusers' layout; the same bytes for the same seed."""
    tokenizer = framed_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # In this order: each draws its weights from the one generator.
        transformer, vae, encoder = _transformer(), tiny_qwen_vae(), _encoder(len(tokenizer))
    diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)


def _transformer() -> Any:
    net = diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12),
    )
    unequal_norms(net)
    return net


def _encoder(words: int) -> Any:
    """A Qwen2.5-VL with a head, and with the part that sees pictures."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": words,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 1,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    )
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
    unequal_norms(encoder)
    # Else transformers writes no weights in any process of a group but the first.
    encoder.should_save_on_this_rank = lambda *_: True
    return encoder
