"""Adapters written as other tools read them.

diffusers' file serves diffusers, ComfyUI, InvokeAI and ai-toolkit alike, so "comfyui" is the same
file: in the fused names that ComfyUI uses inside, it would be half again as large and open in
fewer tools. sd-scripts, and tools that know its files alone, need "kohya"; PEFT needs a folder.

A format is a function (weights, names, header) -> file contents by name. To add one, write it and
name it under the entry point group "iclora.formats".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from iclora.adapter.formats import fit
from iclora.errors import AdapterError
from iclora.files import work_folder, write_bytes
from iclora.models.names import Names, Place
from iclora.settings.registry import Registry

if TYPE_CHECKING:
    from iclora.adapter.file import AdapterInfo

__all__ = ["EXPORTS", "SAVE_DTYPES", "Exporter", "export", "pack", "shared_name", "write_export"]

Files = dict[str, bytes]
"""Contents by file name."""

Exporter = Callable[[Mapping[str, Tensor], Names, Mapping[str, str]], Files]

EXPORTS: Registry[Exporter] = Registry(
    "iclora.formats",
    "adapter format",
    {
        "diffusers": "iclora.adapter.export:diffusers_files",
        "comfyui": "iclora.adapter.export:diffusers_files",
        "kohya": "iclora.adapter.export:kohya_files",
        "peft": "iclora.adapter.export:peft_files",
    },
)

SAVE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""Number formats of an adapter's weights by name."""

_A, _B = ".lora_A.weight", ".lora_B.weight"


def export(
    weights: Mapping[str, Tensor],
    format: str,
    names: Names,
    info: AdapterInfo | None = None,
    dtype: torch.dtype = torch.float16,
) -> Files:
    """An adapter's files in another tool's format; the same bytes each time.

    Args:
        weights: of an Adapter, in any naming that `fit` knows.
        format: a name in EXPORTS.
        names: of the base it is for.
        info: kept in the header, where iclora finds it again.
        dtype: of the weights.
    Raises: SettingsError for an unknown format; AdapterError for weights that do not fit the base,
        overflow `dtype`, or have no name in the format.
    """
    base = shared_name(info.base) if info else "this base"
    exporter = EXPORTS.load(format)
    fitted = {k: v.detach().to("cpu", dtype) for k, v in fit(weights, names, base).items()}
    for key, value in fitted.items():
        if not bool(torch.isfinite(value).all()):
            raise AdapterError(
                f"{key} holds numbers too large for {str(dtype)[6:]}", "Write it as bf16 or fp32."
            )
    header = {"format": "pt", **names.header}
    if info:
        # Nobody else has the folders of the machine it was trained on.
        header["iclora"] = info.model_copy(update={"base": base}).model_dump_json()
        header["modelspec.sai_model_spec"] = "1.0.1"
        header["modelspec.title"] = info.recipe.name
        header["modelspec.trigger_phrase"] = info.recipe.prefix
        header["modelspec.usage_hint"] = info.recipe.example
        canvas = info.model_dump(mode="json")["layout"]
        header["modelspec.resolution"] = f"{canvas['width']}x{canvas['height']}"
    return exporter(fitted, names, header)


def write_export(path: Path, files: Files) -> None:
    """Write what `export` made: one file at `path`, or several inside it, whole or not at all.

    Raises: StorageError.
    """
    if len(files) == 1:
        write_bytes(path, *files.values())
        return
    with work_folder(path) as work:
        for name, content in files.items():
            write_bytes(work / name, content)


def shared_name(base: str) -> str:
    """A base as it may be named to others: a hub id, or a folder's name without its path."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(base)
        if path.is_absolute() or base.startswith((".", "~")):
            return path.name
    return base


# -- formats ------------------------------------------------------------------------------------


def diffusers_files(
    weights: Mapping[str, Tensor], _names: Names, header: Mapping[str, str]
) -> Files:
    """transformer.<module>.lora_A.weight, split names; alpha = rank, said in the header too."""
    config = {f"transformer.{key}": value for key, value in _peft_settings(weights).items()}
    own = {
        **_without_kohya(header),
        "lora_adapter_metadata": json.dumps(config, indent=2, sort_keys=True),
    }
    tensors = {f"transformer.{key}": value for key, value in weights.items()}
    return {"pytorch_lora_weights.safetensors": pack(tensors, own)}


def peft_files(weights: Mapping[str, Tensor], _names: Names, header: Mapping[str, str]) -> Files:
    """PEFT's folder, for the denoiser alone: adapter_model.safetensors, adapter_config.json."""
    config = {
        **_peft_settings(weights),
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": _base(header),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = {f"base_model.model.{key}": value for key, value in weights.items()}
    return {
        "adapter_model.safetensors": pack(tensors, _without_kohya(header)),
        "adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }


def kohya_files(weights: Mapping[str, Tensor], names: Names, header: Mapping[str, str]) -> Files:
    """lora_unet_<module>.lora_down.weight, fused names, alpha = rank; parts not adapted are zero.

    Raises: AdapterError if a module has no fused name.
    """
    modules = {key.removesuffix(_A) for key in weights if key.endswith(_A)}
    tensors, ranks = {}, []
    for fused, place in names.fused.items():
        if not modules.intersection(place.parts):
            continue
        down, up = _fuse(weights, place, names)
        modules.difference_update(place.parts)
        name = f"lora_unet_{fused.replace('.', '_')}"
        ranks.append(down.shape[0])
        # Not in the weights' dtype: bf16 has no 259.
        tensors[f"{name}.alpha"] = torch.tensor(float(down.shape[0]))
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
    if modules:
        raise AdapterError(
            f"kohya's naming has no name for {len(modules)} modules, such as {min(modules)}",
            "Export it as diffusers.",
        )
    most = str(Counter(ranks).most_common(1)[0][0])
    # The hash by which web interfaces know the file: of the body alone, which ends it.
    body = pack(tensors, {})
    start = 8 + int.from_bytes(body[:8], "little")
    own = {
        **header,
        "ss_network_dim": most,
        "ss_network_alpha": most,
        "sshs_model_hash": hashlib.sha256(body[start:]).hexdigest(),
    }
    return {"lora.safetensors": pack(tensors, own)}


def _fuse(weights: Mapping[str, Tensor], place: Place, names: Names) -> tuple[Tensor, Tensor]:
    """A and B of a fused module: parts stacked, each with rows and columns of its own.

    Parts that share one A, as tools that train fused modules leave them, keep it as one.
    """
    downs = {p: weights[p + _A] for p in place.parts if p + _A in weights}
    first = next(iter(downs.values()))
    shared = all(a.shape == first.shape and torch.equal(a, first) for a in downs.values())
    columns = first.shape[0] if shared else sum(a.shape[0] for a in downs.values())
    up = first.new_zeros(names.width(place), columns)
    row = column = 0
    for part in place.parts:
        height = names.linears[part][0]
        if part in downs:
            rank = downs[part].shape[0]
            up[row : row + height, column : column + rank] = weights[part + _B]
            column += 0 if shared else rank
        row += height
    if place.swapped:
        up = torch.cat(up.chunk(2)[::-1])
    return (first if shared else torch.cat([*downs.values()])), up


def _peft_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The part of PEFT's LoraConfig that says rank and alpha, which are equal."""
    ranks = {k.removesuffix(_A): int(v.shape[0]) for k, v in weights.items() if k.endswith(_A)}
    most = Counter(sorted(ranks.values())).most_common(1)[0][0]
    # PEFT matches the end of a name: ^ keeps proj_out from standing for every block's.
    others = {f"^{re.escape(name)}": r for name, r in sorted(ranks.items()) if r != most}
    return {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
    }


def _without_kohya(header: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in header.items() if not key.startswith("ss_network")}


def _base(header: Mapping[str, str]) -> str | None:
    base = json.loads(header["iclora"])["base"] if "iclora" in header else None
    return base if base is None else str(base)


# -- bytes --------------------------------------------------------------------------------------


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes repeat.

    The library orders several entries of metadata at random. This is its own file with the header
    written again: entries sorted, padded by spaces to a multiple of 8 bytes.
    """
    data = save({key: value.contiguous().clone() for key, value in tensors.items()})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    own = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    text = json.dumps({**own, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
