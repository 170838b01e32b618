"""FLUX.1's modules as Black Forest Labs' code names and fuses them.

Each fused module lists the split modules whose rows it holds, in order; how many rows follows
from the base's own widths. Input columns are in the same order in both worlds.

Source: the conversion of FLUX.1's checkpoint to diffusers, and sd-scripts' convert_flux_lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from iclora.models.names import Names, Place, expand

__all__ = ["ALIASES", "FUSED", "SWAPPED", "flux_names"]

_TWO, _ONE = "transformer_blocks.{n}.", "single_transformer_blocks.{n}."
_QKV = (f"{_ONE}attn.to_q", f"{_ONE}attn.to_k", f"{_ONE}attn.to_v")
_IMG_QKV = (f"{_TWO}attn.to_q", f"{_TWO}attn.to_k", f"{_TWO}attn.to_v")
_TXT_QKV = (f"{_TWO}attn.add_q_proj", f"{_TWO}attn.add_k_proj", f"{_TWO}attn.add_v_proj")
_EMBED = "time_text_embed"

FUSED: dict[str, tuple[str, ...]] = {
    "double_blocks.{n}.img_attn.qkv": _IMG_QKV,
    "double_blocks.{n}.txt_attn.qkv": _TXT_QKV,
    "double_blocks.{n}.img_attn.proj": (f"{_TWO}attn.to_out.0",),
    "double_blocks.{n}.txt_attn.proj": (f"{_TWO}attn.to_add_out",),
    "double_blocks.{n}.img_mlp.0": (f"{_TWO}ff.net.0.proj",),
    "double_blocks.{n}.img_mlp.2": (f"{_TWO}ff.net.2",),
    "double_blocks.{n}.txt_mlp.0": (f"{_TWO}ff_context.net.0.proj",),
    "double_blocks.{n}.txt_mlp.2": (f"{_TWO}ff_context.net.2",),
    "double_blocks.{n}.img_mod.lin": (f"{_TWO}norm1.linear",),
    "double_blocks.{n}.txt_mod.lin": (f"{_TWO}norm1_context.linear",),
    "single_blocks.{n}.linear1": (*_QKV, f"{_ONE}proj_mlp"),
    "single_blocks.{n}.linear2": (f"{_ONE}proj_out",),
    "single_blocks.{n}.modulation.lin": (f"{_ONE}norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": (f"{_EMBED}.timestep_embedder.linear_1",),
    "time_in.out_layer": (f"{_EMBED}.timestep_embedder.linear_2",),
    "vector_in.in_layer": (f"{_EMBED}.text_embedder.linear_1",),
    "vector_in.out_layer": (f"{_EMBED}.text_embedder.linear_2",),
    "guidance_in.in_layer": (f"{_EMBED}.guidance_embedder.linear_1",),
    "guidance_in.out_layer": (f"{_EMBED}.guidance_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}

SWAPPED = {"final_layer.adaLN_modulation.1"}
"""Shift and scale stand in the other order in diffusers' module."""

ALIASES: dict[str, tuple[str, ...]] = {
    # XLabs' names; its single blocks adapt q, k and v alone.
    "double_blocks.{n}.processor.qkv_lora1": _IMG_QKV,
    "double_blocks.{n}.processor.qkv_lora2": _TXT_QKV,
    "double_blocks.{n}.processor.proj_lora1": (f"{_TWO}attn.to_out.0",),
    "double_blocks.{n}.processor.proj_lora2": (f"{_TWO}attn.to_add_out",),
    "single_blocks.{n}.processor.qkv_lora": _QKV,
    "single_blocks.{n}.processor.proj_lora": (f"{_ONE}proj_out",),
    # ComfyUI's name for the first rows of linear1.
    "single_blocks.{n}.linear1_qkv": _QKV,
}


def flux_names(linears: Mapping[str, tuple[int, int]]) -> Names:
    """The names of a FLUX.1 with these linear modules."""
    # Only -dev and its kin are told the guidance value.
    kind = "dev" if f"{_EMBED}.guidance_embedder.linear_1" in linears else "schnell"
    return Names(
        linears,
        {name: Place(parts, name in SWAPPED) for name, parts in expand(FUSED, linears)},
        {name: Place(parts) for name, parts in expand(ALIASES, linears)},
        {
            "modelspec.architecture": f"flux-1-{kind}/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
            "ss_base_model_version": "flux1",
            "ss_network_module": "networks.lora_flux",
        },
    )
