"""Krea 2's modules as its makers' code, trainers and ComfyUI's checkpoints name them.

Nothing is fused there; every module has another name.

Source: `_convert_non_diffusers_krea2_lora_to_diffusers` in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping

from iclora.models.names import Names, Place, expand

__all__ = ["OTHERS", "krea2_names"]

_BLOCKS = {
    "blocks.{n}.": "transformer_blocks.{n}.",
    "txtfusion.layerwise_blocks.{n}.": "text_fusion.layerwise_blocks.{n}.",
    "txtfusion.refiner_blocks.{n}.": "text_fusion.refiner_blocks.{n}.",
}
_INSIDE = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}

OTHERS: dict[str, tuple[str, ...]] = {
    **{
        theirs + inside: (ours + part,)
        for theirs, ours in _BLOCKS.items()
        for inside, part in _INSIDE.items()
    },
    "first": ("img_in",),
    "last.linear": ("final_layer.linear",),
    "tmlp.0": ("time_embed.linear_1",),
    "tmlp.2": ("time_embed.linear_2",),
    "tproj.1": ("time_mod_proj",),
    "txtmlp.1": ("txt_in.linear_1",),
    "txtmlp.3": ("txt_in.linear_2",),
    "txtfusion.projector": ("text_fusion.projector",),
}


def krea2_names(linears: Mapping[str, tuple[int, int]]) -> Names:
    """The names of a Krea 2 with these linear modules."""
    return Names(
        linears,
        {name: Place(parts) for name, parts in expand(OTHERS, linears)},
        header={
            "modelspec.architecture": "krea-2/lora",
            "modelspec.implementation": "https://github.com/krea-ai/krea-2",
            "ss_base_model_version": "krea2",
            "ss_network_module": "networks.lora_krea2",
        },
    )
