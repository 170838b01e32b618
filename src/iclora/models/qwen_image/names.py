"""Qwen-Image's modules as trainers and ComfyUI name them: as diffusers does.

Source: `_convert_non_diffusers_qwen_lora_to_diffusers` in diffusers; the header is that of musubi's
files.
"""

from __future__ import annotations

from collections.abc import Mapping

from iclora.models.names import Names, Place

__all__ = ["qwen_image_names"]


def qwen_image_names(linears: Mapping[str, tuple[int, int]]) -> Names:
    """The names of a Qwen-Image with these linear modules."""
    return Names(
        linears,
        {name: Place((name,)) for name in linears},
        header={
            "modelspec.architecture": "Qwen-Image/lora",
            "modelspec.implementation": "https://github.com/QwenLM/Qwen-Image",
            "ss_base_model_version": "qwen_image",
            "ss_network_module": "networks.lora_qwen_image",
        },
    )
