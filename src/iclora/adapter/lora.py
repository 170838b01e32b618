"""LoRA weights: attach them for training, save them, load them, use them.

On disk an adapter is one safetensors file in diffusers' naming
(`transformer.<module>.lora_A.weight`), which diffusers, ComfyUI and the trainers read. Such keys
carry no alpha and readers assume alpha = rank, so alpha / rank is folded into B. Rank, alpha,
base, recipe and layout stand in the file's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from iclora import __version__
from iclora.errors import AdapterError
from iclora.files import digest, write_bytes
from iclora.models.base import DiffusionModel
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe

__all__ = ["Adapter", "AdapterInfo", "attach", "lora_parameters"]

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
    """What an adapter's metadata says about it."""

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
    """Whether these attended to themselves alone."""
    iclora: str = __version__


@dataclass(frozen=True)
class Adapter:
    """LoRA weights and, where we wrote them, what is known about them.

    Attributes:
        weights: "<module>.lora_A.weight" (r, in) and "<module>.lora_B.weight" (out, r), scaled so
            that the update is B @ A.
        info: None for files of other tools.
        path: of the file it was read from, None if it was not.
        sha256: of that file, empty if there is none.
    """

    weights: Mapping[str, Tensor]
    info: AdapterInfo | None = None
    path: Path | None = None
    sha256: str = ""

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
            data = path.read_bytes()
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                raw = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
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
        if model.applied and model.applied[0] is self.weights and model.applied[1] == strength:
            return
        _check_fit(self.weights, model)
        remove(model)
        weights = {f"transformer.{key}": value for key, value in self.weights.items()}
        denoiser: Any = model.denoiser
        denoiser.load_lora_adapter(weights, prefix="transformer", adapter_name=_NAME)
        denoiser.set_adapters([_NAME], [strength])
        model.applied = (self.weights, strength)


def remove(model: DiffusionModel) -> None:
    """Take any adapter off the base's denoiser."""
    denoiser: Any = model.denoiser
    if getattr(denoiser, "peft_config", None):
        denoiser.unload_lora()
    model.applied = None


def attach(
    model: DiffusionModel, *, rank: int, alpha: float, targets: str, seed: int
) -> dict[str, nn.Parameter]:
    """Add a fresh, trainable LoRA to the base: A random, B zero, both float32.

    Returns: its parameters by "<module>.lora_A.weight" and "<module>.lora_B.weight".
    """
    remove(model)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=model.lora_targets(targets), init_lora_weights=True
    )
    denoiser: Any = model.denoiser
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        denoiser.add_adapter(config, adapter_name=_NAME)
    parameters = lora_parameters(model)
    for parameter in parameters.values():
        # bf16 would lose most of AdamW's small updates.
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


def lora_parameters(model: DiffusionModel) -> dict[str, nn.Parameter]:
    """The LoRA parameters on the base's denoiser, by the names an adapter file uses."""
    return {
        name.replace(f".{_NAME}.", "."): parameter
        for name, parameter in model.denoiser.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def fold(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Multiply B by alpha / rank, so that readers who assume alpha = rank get the same update."""
    return {key: value * scale if ".lora_B." in key else value for key, value in weights.items()}


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
            f"{len(strange)} of {len(raw)} keys of {path} are no LoRA weights of a transformer in "
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


def _check_fit(weights: Mapping[str, Tensor], model: DiffusionModel) -> None:
    linears = {n: m for n, m in model.denoiser.named_modules() if isinstance(m, nn.Linear)}
    wrong = []
    for key, value in weights.items():
        module = re.sub(r"\.lora_[AB]\.weight$", "", key)
        # A layer that already carries LoRA keeps its own weights one level down.
        linear = linears.get(module) or linears.get(f"{module}.base_layer")
        if linear is None:
            wrong.append(f"{module} does not exist")
            continue
        have = value.shape[1] if ".lora_A." in key else value.shape[0]
        want = linear.in_features if ".lora_A." in key else linear.out_features
        if have != want:
            wrong.append(f"{module} is {want} wide, not {have}")
    if wrong:
        raise AdapterError(
            f"the adapter does not fit {model.name}: {len(wrong)} of {len(weights)} weights have "
            f"no place, such as: {wrong[0]}",
            "Use it with the base it was trained on (`iclora info FILE` tells which).",
        )
