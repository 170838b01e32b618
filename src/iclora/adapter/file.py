"""Adapters as files: written by iclora, read from any tool.

On disk an adapter is one safetensors file in diffusers' naming
(`transformer.<module>.lora_A.weight`), which diffusers, ComfyUI and the trainers read. Such keys
carry no alpha and readers assume alpha = rank, so alpha / rank is folded into B. Rank, alpha,
base, recipe and layout stand in the file's metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from iclora import __version__
from iclora.adapter import layers
from iclora.errors import AdapterError
from iclora.files import digest, write_bytes
from iclora.models.base import DiffusionModel
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe

__all__ = ["Adapter", "AdapterInfo", "fold"]

_NAME = "iclora"
_PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.")
_HALVES = {
    ".lora_A.weight": ".lora_A.weight",
    ".lora_B.weight": ".lora_B.weight",
    ".lora_down.weight": ".lora_A.weight",
    ".lora_up.weight": ".lora_B.weight",
    ".alpha": ".alpha",
}


class AdapterInfo(BaseModel):
    """The metadata of an adapter file."""

    model_config = ConfigDict(frozen=True)

    base: str
    """Path or hub id of the base it was trained on."""
    family: str
    rank: int
    alpha: float
    """Alpha in training; alpha / rank is already part of the weights."""
    targets: str
    steps: int
    recipe: Recipe
    layout: Layout
    """Canvas to generate on unless told otherwise."""
    conditional: float = 0.0
    """Share of samples it was trained on with some panels given, clean."""
    isolate_given: bool = False
    """True if these attended to themselves alone."""
    iclora: str = __version__


@dataclass(frozen=True)
class Adapter:
    """LoRA weights and, if iclora wrote them, what is known about them."""

    weights: Mapping[str, Tensor]
    """"<module>.lora_A.weight" (r, in) and "<module>.lora_B.weight" (out, r), scaled so that the
    update is B @ A."""
    info: AdapterInfo | None = None
    """None for files of other tools."""
    path: Path | None = None
    """The file it was read from, None if it was not."""
    sha256: str = ""
    """The hash of that file, empty if there is none."""

    @classmethod
    def load(cls, path: str | Path) -> Adapter:
        """Read an adapter of ours, of diffusers, ai-toolkit or PEFT.

        Raises: AdapterError if the file is missing, damaged, no safetensors file, in another
            naming, or incomplete.
        """
        path = Path(path)
        if path.suffix in (".pt", ".bin", ".ckpt", ".pth"):
            raise AdapterError(
                f"{path} is a pickle file, which runs code when it is opened",
                "Use a .safetensors file.",
            )
        try:
            # Read once: the hash and the weights are of the same bytes, whoever writes meanwhile.
            data = path.read_bytes()
            raw, metadata = load(data), _metadata(data)
        except (OSError, SafetensorError) as error:
            raise AdapterError(
                f"adapter {path} cannot be read: {error}",
                "Check the path; if the file is cut short, copy it again.",
            ) from error
        return cls(_normalised(raw, str(path)), _info(metadata, path), path.resolve(), digest(data))

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write it, whole or not at all. Raises: StorageError; AdapterError without info."""
        if self.info is None:
            raise AdapterError("an adapter of unknown origin is not written", "Keep its own file.")
        tensors = {
            f"transformer.{key}": value.detach().to("cpu", dtype).contiguous()
            for key, value in self.weights.items()
        }
        # One metadata entry only: safetensors orders several of them at random, and a run
        # repeated must give the same bytes.
        write_bytes(path, save(tensors, {_NAME: self.info.model_dump_json()}))

    def apply(self, model: DiffusionModel, strength: float = 1.0) -> None:
        """Add it to the base's denoiser, in place of any other.

        Raises: AdapterError naming the modules the base does not have or that differ in shape.
        """
        layers.apply(model, self.weights, strength)


def fold(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Multiply B by alpha / rank, so that readers who assume alpha = rank get the same update."""
    return {key: value * scale if ".lora_B." in key else value for key, value in weights.items()}


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file that `load` has found whole."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    return found


def _info(metadata: Mapping[str, str], path: Path) -> AdapterInfo | None:
    if _NAME not in metadata:
        return None
    try:
        return AdapterInfo.model_validate_json(metadata[_NAME])
    except ValidationError as error:
        raise AdapterError(
            f"the metadata of {path} is not what iclora writes ({error.error_count()} problems)",
            "It may come from a newer version; update iclora.",
        ) from error


def _normalised(raw: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Other tools' keys in ours, their alphas folded in; every key used or refused."""
    modules: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, value in raw.items():
        name = next((key[len(p) :] for p in _PREFIXES if key.startswith(p)), key)
        half = next((h for h in _HALVES if name.endswith(h)), None)
        if half is None or re.match(r"lora_(unet|te|transformer)", name):
            strange.append(key)
            continue
        modules.setdefault(name.removesuffix(half), {})[_HALVES[half]] = value
    if strange:
        kohya = strange[0].startswith(("lora_unet_", "lora_te"))
        raise AdapterError(
            f"{len(strange)} of {len(raw)} keys of {path} are not LoRA weights of a transformer in "
            f"diffusers' naming, such as {strange[0]}",
            "It is in kohya's naming: convert it with sd-scripts' convert_flux_lora.py to "
            "ai-toolkit's."
            if kohya
            else "Nothing was loaded; use an adapter of this base family.",
        )
    weights = {}
    for module, parts in modules.items():
        down, up = parts.get(".lora_A.weight"), parts.get(".lora_B.weight")
        if down is None or up is None or down.ndim != 2 or down.shape[0] != up.shape[-1]:
            raise AdapterError(
                f"module {module} of {path} lacks one half of its LoRA, or their ranks differ",
                "The file is incomplete; copy or train it again.",
            )
        scale = float(parts[".alpha"]) / down.shape[0] if ".alpha" in parts else 1.0
        weights[f"{module}.lora_A.weight"] = down
        weights[f"{module}.lora_B.weight"] = up * scale if scale != 1 else up
    if not weights:
        raise AdapterError(f"{path} holds no LoRA weights", "Use an adapter file.")
    return weights
