"""The bases "tiny-klein" and "tiny-flux2": a random FLUX.2 klein and -dev, each under a million
parameters.

Their folders have the layout of FLUX.2-klein-base-4B and of FLUX.2-dev, their classes and their
token grid; a text encoder has a layer more than is read, as the real ones have nine and ten. Their
pictures are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers

from iclora.models.tiny import made_folder, recipe_words, unequal_norms
from iclora.models.tiny_qwen import learn_merges, qwen_tokenizer, tiny_qwen

__all__ = ["tiny_flux2_folder", "tiny_klein_folder", "write_tiny_flux2", "write_tiny_klein"]


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


def tiny_flux2_folder() -> Path:
    """The folder of the tiny FLUX.2-dev; made on first use, in about two seconds."""
    return made_folder("tiny-flux2", write_tiny_flux2, Path(__file__))


def write_tiny_flux2(folder: Path, *, seed: int = 0) -> None:
    """Write a tiny random FLUX.2-dev in diffusers' layout; the same bytes for the same seed."""
    tokenizer = _mistral_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer, vae, encoder = _transformer(guided=True), _vae(), _mistral(len(tokenizer))
    diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)


_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "[SYSTEM_PROMPT]{{ message.content[0].text }}[/SYSTEM_PROMPT]{% else %}"
    "[INST]{{ message.content[0].text }}[/INST]{% endif %}{% endfor %}"
)
"""What Mistral Small's own template makes of a system message and a user's."""


def _mistral_tokenizer() -> Any:
    marks = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]"]
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<s>", "</s>", "<pad>", *marks]
    learnt = learn_merges([recipe_words()], words, size=1200, special=special)
    learnt.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=learnt,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=marks,
        padding_side="left",
        model_max_length=131072,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _mistral(words: int) -> Any:
    """A Mistral 3 that sees pictures, of a layer more than is read."""
    text = {
        "model_type": "mistral",
        "vocab_size": words,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 31,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    encoder = transformers.Mistral3ForConditionalGeneration(config)
    # Else transformers writes no weights in any process of a group but the first.
    for net in (encoder, encoder.model, encoder.model.language_model):
        net.should_save_on_this_rank = lambda *_: True
    return encoder


def _transformer(guided: bool = False) -> Any:
    net = diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=96,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=guided,
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
