"""Z-Image's modules as its authors' code, and ComfyUI's checkpoints, name and fuse them.

Trainers name the split modules as diffusers does; only some adapters made for ComfyUI's files have
q, k and v in one.

Source: `convert_z_image_transformer_checkpoint_to_diffusers` in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping

from iclora.models.names import Names, Place, expand

__all__ = ["ALIASES", "zimage_names"]

_KINDS = ("layers.{n}.", "noise_refiner.{n}.", "context_refiner.{n}.")

ALIASES: dict[str, tuple[str, ...]] = {
    **{f"{at}attention.qkv": tuple(f"{at}attention.to_{x}" for x in "qkv") for at in _KINDS},
    **{f"{at}attention.out": (f"{at}attention.to_out.0",) for at in _KINDS},
    "x_embedder": ("all_x_embedder.2-1",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
}


def zimage_names(linears: Mapping[str, tuple[int, int]]) -> Names:
    """The names of a Z-Image with these linear modules."""
    return Names(
        linears,
        # kohya's trainers leave its modules as they are.
        {name: Place((name,)) for name in linears},
        {name: Place(parts) for name, parts in expand(ALIASES, linears)},
        {
            "modelspec.architecture": "z-image/lora",
            "modelspec.implementation": "https://github.com/Tongyi-MAI/Z-Image",
            "ss_base_model_version": "z_image",
            "ss_network_module": "networks.lora_zimage",
        },
    )
