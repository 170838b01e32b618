"""Other tools' LoRA files: their keys and kinds read into ours, each key used, or refused by name.

Reading takes two steps. `read_file` needs the file alone: it finds each module's A and B and
multiplies B by the scale. `fit` needs the base: it looks the modules up among the base's own,
whatever they are called, and cuts those that a tool has fused.

What other tools call things, and where they put alpha, is listed in docs/formats.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from iclora.adapter.decompose import loha, loha_size, lokr, lokr_size
from iclora.adapter.keys import group, shown
from iclora.adapter.scale import PeftConfig, alpha_of, peft_config
from iclora.errors import AdapterError
from iclora.files import digest
from iclora.models.names import Names, Place

__all__ = ["LoraFile", "check_fit", "fit", "read_file", "read_tensors"]

Weights = dict[str, Tensor]
"""<module>.lora_A.weight (r, in) and <module>.lora_B.weight (out, r); the update is B @ A."""


@dataclass(frozen=True)
class LoraFile:
    """What a file of any tool holds."""

    weights: Weights
    """Modules by the names they have in the file, without its prefix; `fit` finds them."""
    metadata: Mapping[str, str]
    """The header's own entries."""
    kind: str
    """LoRA, LoHa or LoKr, as it was trained."""
    prefix: str
    """What stood before the modules' names, such as "lora_unet_"; empty if nothing did."""
    scales: tuple[float, ...]
    """Every scale, in order, that has been multiplied into B."""
    notes: tuple[str, ...] = ()
    """What a user should know, a sentence each."""
    sha256: str = ""
    """Of the file; empty for tensors that are in none."""

    @property
    def origin(self) -> str:
        """Its kind, names and scales in words."""
        scales = ", ".join(f"{scale:.4g}" for scale in self.scales[:4])
        more = ", ..." * (len(self.scales) > 4)
        named = f"modules named {self.prefix}" if self.prefix else "modules without a prefix"
        return f"{self.kind}, {named}, scaled by {scales}{more}"


# -- one module ---------------------------------------------------------------------------------

_LARGEST = 2**28
"""Numbers in one module's A and B; FLUX.1's largest needs a quarter of it at full rank."""

_FILE = 2**34
"""Bytes of a file; FLUX.1's at rank 512 in fp32 takes half of it."""

_HEADER = 100_000_000
"""Bytes of a header, as in the safetensors library."""

_NEEDS = {
    "LoRA": ("down", "up"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LoKr": ("lokr_w2_a", "lokr_w2_b"),
}


def _kind(parts: Mapping[str, Tensor], module: str, path: str) -> str:
    """What a module's tensors are together. Raises: AdapterError if they are no whole."""
    roles = set(parts) - {"alpha"}
    kind = "LoKr" if any(r.startswith("lokr") for r in roles) else "LoRA"
    kind = "LoHa" if any(r.startswith("hada") for r in roles) else kind
    if "lokr_w2" in roles:
        raise AdapterError(
            f"module {shown(module)} of {path} is a LoKr with a whole second factor, which has "
            "full rank and so is no LoRA",
            "Merge it into the base with the tool that wrote it, or train it with a small rank.",
        )
    needs = set(_NEEDS[kind])
    if kind == "LoKr":
        needs |= {"lokr_w1"} if "lokr_w1" in roles else {"lokr_w1_a", "lokr_w1_b"}
    if roles != needs:
        what = ", ".join(sorted(needs - roles)) or ", ".join(sorted(roles - needs))
        raise AdapterError(
            f"module {shown(module)} of {path} lacks one half of its {kind}, or has too much "
            f"({what})",
            "The file is incomplete; copy or train it again.",
        )
    return kind


def _checked(tensor: Tensor, role: str, module: str, path: str) -> Tensor:
    """A matrix of a module. Raises: AdapterError if it is none, or not finite."""
    advice = "The file is damaged, or for another kind of model; copy or train it again."
    where = f"{role} of module {shown(module)} in {path}"
    if tensor.ndim != 2:
        shape = "x".join(map(str, tensor.shape)) or "a single number"
        raise AdapterError(f"{where} is no matrix but {shape}", advice)
    if not tensor.is_floating_point():
        raise AdapterError(f"{where} holds {str(tensor.dtype)[6:]}, no weights", advice)
    if 0 in tensor.shape:
        raise AdapterError(f"{where} has rank 0, so it is empty", advice)
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        tensor = tensor.float()  # fp8 cannot be computed in
    if not bool(torch.isfinite(tensor).all()):
        raise AdapterError(f"{where} holds NaN or infinity", advice)
    return tensor


def _matches(kind: str, w: Mapping[str, Tensor]) -> bool:
    """Whether the inner sides of a module's products agree."""
    if kind == "LoRA":
        return w["down"].shape[0] == w["up"].shape[1]
    if kind == "LoHa":
        one_a, one_b, two_a, two_b = (w[role].shape for role in _NEEDS["LoHa"])
        return (one_a, one_b) == (two_a, two_b) and one_a[1] == one_b[0]
    factored = "lokr_w1" in w or w["lokr_w1_a"].shape[1] == w["lokr_w1_b"].shape[0]
    return factored and w["lokr_w2_a"].shape[1] == w["lokr_w2_b"].shape[0]


def _update(
    kind: str, parts: Mapping[str, Tensor], module: str, path: str
) -> tuple[Tensor, Tensor, int]:
    """A, B and the rank that alpha is divided by, before any scale."""
    w = {role: _checked(t, role, module, path) for role, t in parts.items() if role != "alpha"}
    if not _matches(kind, w):
        shapes = ", ".join(f"{role} {'x'.join(map(str, t.shape))}" for role, t in w.items())
        raise AdapterError(
            f"module {shown(module)} of {path} lacks one half of its {kind}, or their ranks "
            f"differ: {shapes}",
            "The file is incomplete; copy or train it again.",
        )
    if kind == "LoRA":
        return w["down"], w["up"], w["down"].shape[0]
    rows, columns, rank = loha_size(w) if kind == "LoHa" else lokr_size(w)
    if rank > min(rows, columns) or rank * (rows + columns) > _LARGEST:
        raise AdapterError(
            f"module {shown(module)} of {path} is a {kind} that as a LoRA has rank {rank}, too "
            f"much for a layer of {rows}x{columns}",
            "Merge it into the base with the tool that wrote it, or train it with a small rank.",
        )
    w = {role: t.float() for role, t in w.items()}
    return loha(w) if kind == "LoHa" else lokr(w)


def _stacked(module: str, up: Tensor) -> int:
    """Modules that sd-scripts' split_qkv has stacked into one: 1 if it has not.

    Each has rows and columns of B of its own, below and right of those before.
    """
    count = 3 if module.endswith("qkv") else 4 if module.endswith("linear1") else 1
    if up.shape[1] % count:
        return 1
    last = -1
    for block in up.chunk(count, 1):
        rows = block.any(1).nonzero()[:, 0]
        if len(rows) and int(rows[0]) <= last:
            return 1
        last = int(rows[-1]) if len(rows) else last
    return count


def _split_qkv(metadata: Mapping[str, str]) -> bool:
    """Whether sd-scripts trained q, k and v apart and stacked them when it saved."""
    try:
        arguments = json.loads(metadata.get("ss_network_args", "{}"))
    except (ValueError, RecursionError):
        return False
    return isinstance(arguments, dict) and arguments.get("split_qkv") in ("True", True)


# -- a file -------------------------------------------------------------------------------------


def read_tensors(
    raw: Mapping[str, Tensor], metadata: Mapping[str, str], config: str | None, path: str
) -> LoraFile:
    """Read the tensors of one file, whoever wrote it.

    Args:
        metadata: the file's header.
        config: text of the adapter_config.json beside it, if there is one.
        path: for messages.
    Raises: AdapterError naming what is damaged, missing, unknown or no LoRA.
    """
    grouped = group(raw, path)
    notes = list(grouped.notes)
    peft: PeftConfig | None = None
    if not all("alpha" in parts for parts in grouped.modules.values()):
        peft = peft_config(metadata, config, path)
        if peft is None and any(p.startswith("base_model.") for p in grouped.prefixes):
            notes.append("It has no adapter_config.json, so alpha is taken to be the rank.")
    split_qkv = _split_qkv(metadata)
    if split_qkv:
        notes.append("It was trained with split_qkv, so its alpha is that of each part.")
    kinds, scales, weights = set(), set(), {}
    for module, parts in grouped.modules.items():
        kind = _kind(parts, module, path)
        down, up, rank = _update(kind, parts, module, path)
        scale = 1.0
        if "alpha" in parts:
            rank //= _stacked(module, up) if split_qkv else 1
            scale = alpha_of(parts["alpha"], rank, module, path)
        elif peft:
            scale = peft.scale(module, rank)
        weights[f"{module}.lora_A.weight"] = down
        weights[f"{module}.lora_B.weight"] = up.float() * scale if scale != 1 else up
        kinds.add(kind)
        scales.add(scale)
    return LoraFile(
        weights,
        dict(metadata),
        ", ".join(sorted(kinds)),
        ", ".join(sorted(grouped.prefixes)),
        tuple(sorted(scales)),
        tuple(notes),
    )


def read_file(path: Path) -> LoraFile:
    """Read a safetensors file, with the adapter_config.json beside it if it is PEFT's.

    Raises: AdapterError if it is missing, no regular file, damaged, a pickle, or as `read_tensors`.
    """
    if path.suffix in (".pt", ".bin", ".ckpt", ".pth"):
        raise AdapterError(
            f"{path} is a pickle file, which runs code when it is opened",
            "Use a .safetensors file.",
        )
    try:
        # Read once: the hash and the weights are of the same bytes, whoever writes meanwhile.
        data, metadata = _whole(path)
        raw = load(data)
        beside = path.with_name("adapter_config.json")
        own = path.name == "adapter_model.safetensors" or any("base_model." in key for key in raw)
        config = beside.read_text(encoding="utf-8") if own and beside.is_file() else None
    except (OSError, ValueError, TypeError, LookupError, RecursionError, SafetensorError) as error:
        raise AdapterError(
            f"adapter {path} cannot be read: {error}",
            "Check the path; if the file is cut short, copy it again.",
        ) from error
    return replace(read_tensors(raw, metadata, config, str(path)), sha256=digest(data))


def _whole(path: Path) -> tuple[bytes, dict[str, str]]:
    """A file's bytes and its metadata, once its size is what its header says.

    Raises: ValueError if it is not, so that nothing large is read in vain; OSError.
    """
    if path.exists() and not path.is_file():  # a pipe or a device would be waited for
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _HEADER):
            raise ValueError("it does not begin as a safetensors file")
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
        if not isinstance(metadata, dict) or not all(isinstance(v, dict) for v in header.values()):
            raise ValueError("its header is damaged")
        ends = [v["data_offsets"][-1] for v in header.values()]
        if 8 + length + max(ends, default=0) != size or size > _FILE:
            raise ValueError(f"it has {size} bytes, not those that its header says")
        file.seek(0)
        return file.read(), metadata


# -- a base -------------------------------------------------------------------------------------


def fit(weights: Mapping[str, Tensor], names: Names, base: str) -> Weights:
    """The weights by the base's own modules, those that were fused cut into their parts.

    A part takes its rows of B and the columns that are not all zero in them, with their rows of A.
    That undoes both ways in which q, k and v come to share one matrix: trained together, they
    share A; stacked by a converter, each has columns of its own. The update stays exactly the same.

    Args:
        weights: as in a LoraFile.
        base: its name, for messages.
    Raises: AdapterError naming modules that the base lacks, that differ in width, or are named
        twice.
    """
    found: Weights = {}
    wrong = []
    for module, place in _placed(weights, names, base).items():
        down, up = weights[module + _A], weights[module + _B]
        for part, (a, b) in _cut(down, up, place, names).items():
            if part + _A in found:
                wrong.append(f"{shown(module)} adapts {part}, which another module does, too")
            found |= {part + _A: a, part + _B: b}
    _refuse(wrong, weights, base)
    return found


def check_fit(weights: Mapping[str, Tensor], names: Names, base: str) -> None:
    """Raises: AdapterError for what `fit` would refuse; nothing is cut unless it must be."""
    places = _placed(weights, names, base)
    parts = [part for place in places.values() for part in place.parts]
    if len(set(parts)) < len(parts):  # Which of them adapts a part stands in its numbers.
        fit(weights, names, base)


def _placed(weights: Mapping[str, Tensor], names: Names, base: str) -> dict[str, Place]:
    """Where each module belongs. Raises: AdapterError naming those that belong nowhere."""
    found, wrong = {}, []
    for module in _modules(weights):
        place = names.places.get(module)
        problem = _misfit(module, weights[module + _A], weights[module + _B], place, names)
        if problem or place is None:
            wrong.append(problem)
        else:
            found[module] = place
    _refuse(wrong, weights, base)
    return found


def _modules(weights: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix(_A) for key in weights if key.endswith(_A)]


def _refuse(wrong: Sequence[str], weights: Mapping[str, Tensor], base: str) -> None:
    """Raises: AdapterError if anything is wrong."""
    if wrong:
        raise AdapterError(
            f"the adapter does not fit {base}: {len(wrong)} of {len(_modules(weights))} modules "
            f"have no place, such as: {wrong[0]}",
            "Use it with the base it was trained on (`iclora info FILE` tells which).",
            setting="adapter",
        )


_A, _B = ".lora_A.weight", ".lora_B.weight"


def _misfit(module: str, down: Tensor, up: Tensor, place: Place | None, names: Names) -> str:
    """Why a module has no place in the base; empty if it has."""
    if place is None:
        return f"{shown(module)} does not exist"
    wide, tall = names.linears[place.parts[0]][1], names.width(place)
    if down.shape[1] != wide:
        return f"{shown(module)} is {wide} wide, not {down.shape[1]}"
    if up.shape[0] != tall:
        return f"{shown(module)} is {tall} wide, not {up.shape[0]}"
    return ""


def _cut(down: Tensor, up: Tensor, place: Place, names: Names) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each split module of a place."""
    if place.swapped:
        up = torch.cat(up.chunk(2)[::-1])
    if len(place.parts) == 1:
        return {place.parts[0]: (down, up)}
    found = {}
    blocks = torch.split(up, [names.linears[part][0] for part in place.parts])
    idle = not bool(up.any())
    for part, rows in zip(place.parts, blocks, strict=True):
        keep = rows.any(0)
        if idle:  # an adapter before its first step: it adapts all of them, by nothing
            keep[0] = True
        if bool(keep.any()):
            found[part] = down[keep], rows[:, keep].contiguous()
    return found
