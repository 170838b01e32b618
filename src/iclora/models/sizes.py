"""What the settings of a base may say, so that nothing is built of a million layers or of text.

A config.json is somebody else's file. Libraries build what it says, whatever that is, and fail
somewhere inside if it is no number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from iclora.errors import ModelError

__all__ = ["check_sizes"]

_WIDTH = 2**18
"""Of a layer or a vocabulary's share of one; the widest of today's have some ten thousand."""
_RANGES = {
    # Blocks and layers: FLUX.1 has 19 and 38.
    "num_layers": 1000,
    "num_single_layers": 1000,
    "n_layers": 1000,
    "n_refiner_layers": 1000,
    "num_text_layers": 1000,
    "num_layerwise_text_blocks": 1000,
    "num_refiner_text_blocks": 1000,
    "num_res_blocks": 100,
    "num_hidden_layers": 1000,
    "num_decoder_layers": 1000,
    "layers_per_block": 100,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "num_heads": 1024,
    "n_heads": 1024,
    "n_kv_heads": 1024,
    "text_num_attention_heads": 1024,
    "text_num_key_value_heads": 1024,
    "attention_head_dim": 4096,
    "head_dim": 4096,
    "d_kv": 4096,
    "dim": _WIDTH,
    "cap_feat_dim": _WIDTH,
    "base_dim": _WIDTH,
    "text_hidden_dim": _WIDTH,
    "text_intermediate_size": _WIDTH,
    "timestep_embed_dim": _WIDTH,
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "projection_dim": _WIDTH,
    "d_model": _WIDTH,
    "d_ff": _WIDTH,
    "joint_attention_dim": _WIDTH,
    "pooled_projection_dim": _WIDTH,
    "in_channels": _WIDTH,
    "out_channels": _WIDTH,
    "latent_channels": 4096,
    "z_dim": 4096,
    "norm_num_groups": 4096,
    "patch_size": 1024,
    "image_size": 2**16,
    "sample_size": 2**16,
    "max_position_embeddings": 2**22,
    "vocab_size": 2**24,
    "relative_attention_num_buckets": 2**16,
    "num_train_timesteps": 10**6,
    "base_image_seq_len": 2**20,
    "max_image_seq_len": 2**20,
}
"""The greatest number by key; the least is 1."""
_LISTS = dict.fromkeys(
    (
        "all_f_patch_size",
        "all_patch_size",
        "axes_dims",
        "axes_dims_rope",
        "axes_lens",
        "block_out_channels",
        "dim_mult",
        "decoder_block_out_channels",
    ),
    16,
)
"""The most sizes of a list by key."""
_EDGES = ("patch_size", "sample_size", "image_size")
"""Sizes that may be a list of two, rows and columns."""
_NUMBERS = ("shift_factor", "scaling_factor", "model_max_length", "layer_norm_eps", "rope_theta")
_POSITIVE = ("shift", "scaling_factor", "rope_theta", "base_shift", "max_shift")
"""Numbers that others are divided by, or of which a logarithm is taken."""
_SHARES = ("shift_terminal",)
_MAY_LACK = (
    "out_channels",
    "decoder_block_out_channels",
    "shift_factor",
    "scaling_factor",
    "shift_terminal",
    "sample_size",
    "model_max_length",
)
"""May be null."""


def check_sizes(config: Mapping[str, Any], source: str) -> None:
    """Refuse settings that describe no module that anybody could have.

    Args:
        config: of one part; keys that are unknown here are not judged.
        source: what to call it in the error.
    Raises: ModelError naming the key.
    """
    for key, value in config.items():
        if value is None and key in _MAY_LACK:
            continue
        why = ""
        edges = value if key in _EDGES and isinstance(value, list) and len(value) == 2 else [value]
        if key in _RANGES and not all(_is_size(edge, _RANGES[key]) for edge in edges):
            why = f"a whole number from 1 to {_RANGES[key]:,}"
        elif key in _LISTS and not (
            isinstance(value, list)
            and 1 <= len(value) <= _LISTS[key]
            and all(_is_size(each, _WIDTH) for each in value)
        ):
            why = f"a list of 1 to {_LISTS[key]} sizes"
        elif key in _NUMBERS and not _is_number(value):
            why = "a number"
        elif key == "shift_terminal" and not (
            value is None or (_is_number(value) and 0 <= value < 1)
        ):
            why = "a number from 0 to below 1"
        elif key in _POSITIVE and not (_is_number(value) and value > 0):
            why = "a number above 0"
        if why:
            raise ModelError(
                f"{source} has {str(value)[:60]!r} for {key}, where {why} must stand",
                "Download the model again, whole and in diffusers' layout.",
            )
    _check_together(config, source)


def _check_together(config: Mapping[str, Any], source: str) -> None:
    """Raises: ModelError for numbers that are possible alone and not beside each other."""
    axes = config.get("axes_dims_rope") or config.get("axes_dims")
    width, heads = config.get("attention_head_dim"), 1
    if width is None:
        width, heads = config.get("dim"), config.get("n_heads") or 1
    if axes and width and sum(axes) * heads != width:
        raise ModelError(
            f"{source} has positions of {sum(axes)} numbers (its axes) for heads of "
            f"{width / heads:g}",
            "Download the model again, whole and in diffusers' layout.",
        )
    few, many = config.get("base_image_seq_len"), config.get("max_image_seq_len")
    if few and many and few >= many:
        raise ModelError(
            f"{source} has a base_image_seq_len of {few} and a max_image_seq_len of {many}",
            "Download the model again, whole and in diffusers' layout.",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
