"""Training every weight of a denoiser, for small bases: the result is a base of its own.

The state of a run (`state`) holds the denoiser's weights as it otherwise holds a LoRA's: live,
averaged, with two moments of AdamW, all float32. Loop, checkpoints and resuming are the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from iclora.adapter import remove
from iclora.errors import ModelError, SettingsError
from iclora.files import work_folder, write_bytes, write_text
from iclora.files.documents import read_json
from iclora.models.base import DiffusionModel
from iclora.settings import TrainSettings

__all__ = ["check_dtype", "check_whole", "folder_of", "free", "save_base", "too_large"]

_INDEX = "model_index.json"
_DENOISER = "transformer"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def free(model: DiffusionModel) -> dict[str, nn.Parameter]:
    """Let every weight of the denoiser be trained. Returns: all by their names, float32."""
    remove(model)
    model.denoiser.requires_grad_(True)
    return dict(model.denoiser.named_parameters())


def folder_of(model: DiffusionModel) -> Path:
    """The base's folder in diffusers' layout. Raises: SettingsError if it has none."""
    folder = getattr(model, "folder", None)
    if not isinstance(folder, Path) or not (folder / _INDEX).is_file():
        raise SettingsError(
            f"{model.name} does not lie in a folder of diffusers' layout, of which a tuned base "
            "is a copy",
            "Train a LoRA instead: leave `targets` out.",
            setting="targets",
        )
    return folder


def check_whole(
    settings: TrainSettings, model: DiffusionModel, warn: Callable[[str], None]
) -> None:
    """Refuse what cannot be trained whole, before weights are loaded.

    Args:
        warn: told of settings that have no effect.
    Raises: SettingsError for weights that are not float32, for a base without a folder, or where
        weights, gradient, moments and average do not fit this machine.
    """
    # Here, since costs count with the state's own functions.
    from iclora.models.outline import OUTLINES, outline_of
    from iclora.train.card import find_card
    from iclora.train.costs import Costs

    folder_of(model)
    check_dtype(model.dtype)
    own = [f"`{name}`" for name in ("rank", "alpha") if _set(settings, name)]
    if own:
        warn(f"no LoRA is trained: {' and '.join(own)} have no effect")
    if settings.text != "joint":
        warn(
            f"a base does not remember what panels read, as an adapter does: make sets of this one "
            f"with `text` {settings.text}"
        )
    if model.family not in OUTLINES or model.device.type == "mps":
        return
    card = find_card(settings.model_copy(update={"vram": None}), here=True)
    costs = Costs(outline_of(model, torch.float32, "full"), settings, card.kernels)
    if costs.held > card.usable:
        raise too_large(model.name, costs.lora, costs.held, card.usable)


def too_large(name: str, count: int, held: int, usable: int) -> SettingsError:
    """What to raise where all weights of a base, trained, do not fit into `usable` bytes."""
    return SettingsError(
        f"training all {count:,} weights of {name} holds {held / 1e9:.1f} GB, each in float32 with "
        f"its gradient, two moments and the average; {usable / 1e9:.1f} GB can be filled",
        "Train a LoRA instead: leave `targets` out.",
        setting="targets",
    )


def _set(settings: TrainSettings, name: str) -> bool:
    """Whether a setting differs from its default; a run's own file sets all of them."""
    return bool(getattr(settings, name) != TrainSettings.model_fields[name].default)


def check_dtype(dtype: torch.dtype) -> None:
    """Raises: SettingsError unless weights are kept in float32."""
    if dtype != torch.float32:
        raise SettingsError(
            f"in {str(dtype).removeprefix('torch.')} the small steps of a whole denoiser's weights "
            "would be rounded away",
            "Set `dtype` to fp32.",
            setting="dtype",
        )


def save_base(
    folder: Path, source: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, card: str
) -> None:
    """Write a base with these weights of its denoiser, whole or not at all.

    Every other part is copied from the base it was tuned from.

    Args:
        folder: the new one; an older one of that name is replaced.
        source: the base's own, in diffusers' layout.
        weights: the denoiser's, by their names.
        card: its README.md.
    Raises: StorageError; ModelError if the source's index cannot be read.
    """
    index: Any = read_json(source / _INDEX, ModelError, "settings")
    # The older one stays until this one is whole.
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    with work_folder(new) as work:
        for part in index:
            inside = "/" not in part and "\\" not in part and part not in (".", "..")
            if inside and part != _DENOISER and (source / part).is_dir():
                shutil.copytree(source / part, work / part)
        (work / _DENOISER).mkdir()
        for name in (_INDEX, f"{_DENOISER}/config.json"):
            shutil.copyfile(source / name, work / name)
        kept = {
            name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()
        }
        write_text(work / "README.md", card)
        write_bytes(work / _DENOISER / _WEIGHTS, save(kept, {"format": "pt"}))
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
