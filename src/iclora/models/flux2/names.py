"""FLUX.2's modules as Black Forest Labs' code names and fuses them.

As in `iclora.models.flux.names`; here a single block's two layers are fused in diffusers as well.

Source: `convert_flux2_transformer_checkpoint_to_diffusers` in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping

from iclora.models.names import Names, Place, expand

__all__ = ["FUSED", "SWAPPED", "flux2_names"]

_TWO, _ONE = "transformer_blocks.{n}.", "single_transformer_blocks.{n}."
_EMBED = "time_guidance_embed"

FUSED: dict[str, tuple[str, ...]] = {
    "double_blocks.{n}.img_attn.qkv": tuple(f"{_TWO}attn.to_{x}" for x in "qkv"),
    "double_blocks.{n}.txt_attn.qkv": tuple(f"{_TWO}attn.add_{x}_proj" for x in "qkv"),
    "double_blocks.{n}.img_attn.proj": (f"{_TWO}attn.to_out.0",),
    "double_blocks.{n}.txt_attn.proj": (f"{_TWO}attn.to_add_out",),
    "double_blocks.{n}.img_mlp.0": (f"{_TWO}ff.linear_in",),
    "double_blocks.{n}.img_mlp.2": (f"{_TWO}ff.linear_out",),
    "double_blocks.{n}.txt_mlp.0": (f"{_TWO}ff_context.linear_in",),
    "double_blocks.{n}.txt_mlp.2": (f"{_TWO}ff_context.linear_out",),
    "single_blocks.{n}.linear1": (f"{_ONE}attn.to_qkv_mlp_proj",),
    "single_blocks.{n}.linear2": (f"{_ONE}attn.to_out",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": (f"{_EMBED}.timestep_embedder.linear_1",),
    "time_in.out_layer": (f"{_EMBED}.timestep_embedder.linear_2",),
    "guidance_in.in_layer": (f"{_EMBED}.guidance_embedder.linear_1",),
    "guidance_in.out_layer": (f"{_EMBED}.guidance_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}

SWAPPED = {"final_layer.adaLN_modulation.1"}
"""Shift and scale stand in the other order in diffusers' module."""


def flux2_names(linears: Mapping[str, tuple[int, int]]) -> Names:
    """The names of a FLUX.2 with these linear modules."""
    # Only -dev is told the guidance value; klein's sizes differ in width.
    if f"{_EMBED}.guidance_embedder.linear_1" in linears:
        kind = "flux-2-dev"
    else:
        kind = "flux-2-klein-9b" if linears["x_embedder"][0] > 3072 else "flux-2-klein-4b"
    return Names(
        linears,
        {name: Place(parts, name in SWAPPED) for name, parts in expand(FUSED, linears)},
        header={
            "modelspec.architecture": f"{kind}/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
            "ss_base_model_version": kind.replace("-", "_"),
            "ss_network_module": "networks.lora_flux_2",
        },
    )
