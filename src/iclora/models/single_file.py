"""Single checkpoint files, as ComfyUI uses them: what they are a part of.

Such a file holds the denoiser and neither text encoders nor their tokenizer, so it is no base. Its
header says which base it belongs to, so that a user is told what to download instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iclora.errors import ModelError
from iclora.files.documents import parse_json

__all__ = ["whole_of"]

_MOST = 100_000_000
"""Bytes of a header, as in the safetensors library."""

_HUB = "black-forest-labs/"

_KLEIN = {3072: "4B", 4096: "9B"}
"""FLUX.2 klein's sizes by width."""

_QWEN_IMAGE = [18432, 3072]
"""The shape of a modulation of Qwen-Image."""

_ZIMAGE = 3840
"""Z-Image's width; Lumina's blocks are called the same."""


def whole_of(path: Path) -> str | None:
    """The hub id of the base that a file is the denoiser of; None if it does not show."""
    shapes = _shapes(path)
    names = {name.removeprefix("model.diffusion_model."): shape for name, shape in shapes.items()}
    shared = names.get("double_stream_modulation_img.lin.weight")
    if shared:
        size = _KLEIN.get(shared[-1])
        # Base and distilled have the same tensors; the files' own names tell them apart.
        kind = f"klein-{'base-' * ('base' in path.name)}{size}" if size else "dev"
        return f"{_HUB}FLUX.2-{kind}"
    if names.get("noise_refiner.0.attention.qkv.weight", [0])[-1] == _ZIMAGE:
        # As ComfyUI names them; again the file's own name alone tells the two apart.
        return f"Tongyi-MAI/Z-Image{'-Turbo' * ('turbo' in path.name.lower())}"
    if names.get("transformer_blocks.0.img_mod.1.weight") == _QWEN_IMAGE:
        # Its relatives that edit or paint layers, which iclora takes neither way, say so.
        own = path.name.lower()
        known = "edit" not in own and "layered" not in own
        return f"Qwen/Qwen-Image{'-2512' * ('2512' in own)}" if known else None
    if "txtfusion.projector.weight" in names:
        return f"krea/Krea-2-{'Turbo' if 'turbo' in path.name.lower() else 'Raw'}"
    if "double_blocks.0.img_mod.lin.weight" in names:
        kind = "dev" if "guidance_in.in_layer.weight" in names else "schnell"
        return f"{_HUB}FLUX.1-{kind}"
    return None


def _shapes(path: Path) -> dict[str, list[int]]:
    """Shapes by tensor, of a safetensors file's header; empty if it has none."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(size).decode() if size < _MOST else ""
        header: Any = parse_json(text, f"the header of {path}", ModelError)
    except (OSError, ValueError, ModelError):
        return {}
    entries = header.items() if isinstance(header, dict) else ()
    found = {name: about.get("shape") for name, about in entries if isinstance(about, dict)}
    return {
        name: shape
        for name, shape in found.items()
        if isinstance(shape, list) and shape and all(isinstance(edge, int) for edge in shape)
    }
