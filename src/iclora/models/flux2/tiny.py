"""The base called "tiny-klein": a random FLUX.2 klein of under a million parameters.

Its folder has FLUX.2-klein-base-4B's layout, its classes and its token grid; its text encoder has
a layer more than is read, as the real one has nine. Its pictures are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers

from iclora.models.tiny import made_folder, recipe_words

__all__ = ["tiny_klein_folder", "write_tiny_klein"]

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKS = ("<think>", "</think>")

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
"""What Qwen3's own template makes of messages without tools."""


def tiny_klein_folder() -> Path:
    """The folder of the tiny FLUX.2 klein; made on first use, in about two seconds."""
    return made_folder("tiny-klein", write_tiny_klein, Path(__file__))


def write_tiny_klein(folder: Path, *, distilled: bool = False, seed: int = 0) -> None:
    """Write a tiny random FLUX.2 klein in diffusers' layout; the same bytes for the same seed.

    Args:
        distilled: True as in FLUX.2-klein-4B, False as in -base-4B.
    """
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # In this order: each draws its weights from the one generator.
        transformer, vae, encoder = _transformer(), _vae(), _encoder(len(tokenizer))
    # Else transformers writes no weights in any process of a group but the first.
    encoder.should_save_on_this_rank = lambda *_: True
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
    # A fresh norm multiplies by 1, so a pass that forgot it would do as well.
    for name, parameter in net.named_parameters():
        if "norm_" in name and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1, 0.2)
    return net


def _vae() -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16, 32, 32), norm_num_groups=8, layers_per_block=1
    )
    # As little would be seen of the normalisation of latents.
    torch.nn.init.normal_(vae.bn.running_mean, 0, 0.1)
    torch.nn.init.uniform_(vae.bn.running_var, 2, 4)
    return vae


def _encoder(words: int) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
    )
    return transformers.Qwen3ForCausalLM(config)


def _tokenizer() -> Any:
    """Qwen's tokenizer with merges of the recipes' own words."""
    learnt = tokenizers.Tokenizer(tokenizers.models.BPE())
    learnt.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.train_from_iterator(
        [recipe_words()],
        tokenizers.trainers.BpeTrainer(
            vocab_size=1200,
            special_tokens=list(_SPECIAL),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    import json

    model = json.loads(learnt.to_str())["model"]
    tokenizer = transformers.Qwen2TokenizerFast(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        extra_special_tokens=list(_SPECIAL[1:]),
        model_max_length=131072,
    )
    tokenizer.add_tokens(list(_MARKS))
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
