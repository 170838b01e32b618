"""What a base's linear modules are called: by us and diffusers, and by tools that fuse some.

Black Forest Labs' own code, and the trainers built on it, keep q, k and v in one matrix: the
fused module. diffusers, and with it iclora, keeps them apart: the split modules. An adapter for
one reads as an adapter for the other once it is known which rows belong to whom.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

__all__ = ["Names", "Place", "expand", "linears_of"]


@dataclass(frozen=True)
class Place:
    """What a module's name stands for: split modules in the order of the fused rows."""

    parts: tuple[str, ...]
    swapped: bool = False
    """True if the two halves of the fused module's rows are exchanged in the split module."""


@dataclass(frozen=True)
class Names:
    """The linear modules of a base's denoiser, in every spelling.

    A family gives its own; one whose other tools fuse nothing needs `linears` alone.
    """

    linears: Mapping[str, tuple[int, int]]
    """Outputs and inputs of every linear module, by its split name."""
    fused: Mapping[str, Place] = field(default_factory=dict)
    """Places by fused name, covering the modules that an export can name."""
    aliases: Mapping[str, Place] = field(default_factory=dict)
    """More names, of tools whose files are read only; they may cover some of the rows."""
    header: Mapping[str, str] = field(default_factory=dict)
    """Entries that tell other tools, in a file's header, which base it is for."""

    @cached_property
    def places(self) -> dict[str, Place]:
        """Places by every name, with dots and flat.

        Flat names have underscores for dots. They are looked up and never turned back by a rule,
        since names hold underscores of their own ("attn_to_out_0").
        """
        found = {**self.aliases, **self.fused, **{name: Place((name,)) for name in self.linears}}
        flat: dict[str, Place] = {}
        for name, place in found.items():
            other = flat.setdefault(name.replace(".", "_"), place)
            assert other.parts == place.parts, f"{name} is not the only one so called"
        return flat | found

    def width(self, place: Place) -> int:
        """Rows of the module at a place."""
        return sum(self.linears[part][0] for part in place.parts)


def linears_of(net: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of a net's linear modules by name, whether or not they carry a LoRA."""
    return {
        name.removesuffix(".base_layer"): (module.out_features, module.in_features)
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and not re.search(r"\.lora_[AB]\.", name)
    }


def expand(
    patterns: Mapping[str, tuple[str, ...]], linears: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield fused names and their parts for every block a base has.

    Args:
        patterns: as in flux/names.py, with {n} for a block's number in names of both kinds.
    """
    for fused, parts in patterns.items():
        first = re.escape(parts[0]).replace(r"\{n\}", r"(\d+)")
        for name in linears:
            match = re.fullmatch(first, name)
            if match is None:
                continue
            number = match.group(1) if match.groups() else ""
            own = tuple(part.replace("{n}", number) for part in parts)
            if all(part in linears for part in own):
                yield fused.replace("{n}", number), own
