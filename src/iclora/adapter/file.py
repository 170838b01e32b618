"""Adapters as files: written by iclora, read from any tool.

On disk an adapter is one safetensors file in diffusers' naming
(`transformer.<module>.lora_A.weight`), which diffusers, ComfyUI and the trainers read. Such keys
carry no alpha and readers assume alpha = rank, so alpha / rank is folded into B. Rank, alpha,
base, recipe and layout stand in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save
from torch import Tensor

from iclora import __version__
from iclora.adapter import layers
from iclora.adapter.formats import read_file
from iclora.adapter.locate import locate
from iclora.errors import AdapterError
from iclora.files import write_bytes
from iclora.files.documents import parse_json
from iclora.models.base import DiffusionModel
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe
from iclora.settings import TextKind

__all__ = ["Adapter", "AdapterInfo", "fold"]

_NAME = "iclora"


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
    text: TextKind = "joint"
    """What each panel read."""
    iclora: str = __version__


@dataclass(frozen=True)
class Adapter:
    """LoRA weights and, if iclora wrote them, what is known about them."""

    weights: Mapping[str, Tensor]
    """"<module>.lora_A.weight" (r, in) and "<module>.lora_B.weight" (out, r), scaled so that the
    update is B @ A. Modules of other tools' files keep their names until they meet a base."""
    info: AdapterInfo | None = None
    """None for files of other tools."""
    path: Path | None = None
    """The file it was read from, None if it was not."""
    sha256: str = ""
    """The hash of that file, empty if there is none."""
    origin: str = ""
    """How that file names and scales its modules."""
    notes: tuple[str, ...] = ()
    """What a user should know of it, a sentence each."""
    strength: float = 1.0
    """Factor on its update."""
    beside: tuple[Adapter, ...] = ()
    """Further adapters whose updates are added; see `stack`."""

    @property
    def parts(self) -> tuple[Adapter, ...]:
        """All that are added up, each alone: this one, then those beside it."""
        return (replace(self, beside=()), *self.beside)

    @classmethod
    def load(cls, source: str | Path) -> Adapter:
        """Read an adapter of any tool; see docs/formats.md.

        Args:
            source: a file; a run's folder, or PEFT's; or an id of the hub, "name/repository" or
                "name/repository:file".
        Raises: AdapterError if there is none, or if it is damaged, incomplete, or no LoRA.
        """
        path = locate(source)
        file = read_file(path)
        info = _info(file.metadata, path)
        return cls(file.weights, info, path.resolve(), file.sha256, file.origin, file.notes)

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write it, whole or not at all.

        Raises: StorageError; AdapterError without info, or for one of several or at another
            strength than 1, which a file of its own weights would not be.
        """
        if self.beside or self.strength != 1:
            raise AdapterError(
                "adapters that are added up, or stand at a strength, are not written as one",
                "Keep their own files, and name them together.",
            )
        if self.info is None:
            raise AdapterError("an adapter of unknown origin is not written", "Keep its own file.")
        tensors = {
            f"transformer.{key}": value.detach().to("cpu", dtype).contiguous()
            for key, value in self.weights.items()
        }
        # One metadata entry only: safetensors orders several of them at random, and a run
        # repeated must give the same bytes.
        write_bytes(path, save(tensors, {_NAME: self.info.model_dump_json()}))

    def check(self, model: DiffusionModel) -> None:
        """Find out if `apply` would take it, and what is beside it; no weights are loaded.

        Raises: AdapterError as `apply`.
        """
        for part in self.parts:
            layers.check(model, part.weights)

    def apply(self, model: DiffusionModel, strength: float = 1.0) -> None:
        """Add it, and what is beside it, to the base's denoiser, in place of any other.

        Args:
            strength: a further factor on all updates.
        Raises: AdapterError naming the modules the base does not have or that differ in shape.
        """
        layers.apply(model, [(part.weights, part.strength * strength) for part in self.parts])


def fold(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Multiply B by alpha / rank, so that readers who assume alpha = rank get the same update."""
    return {key: value * scale if ".lora_B." in key else value for key, value in weights.items()}


def _info(metadata: Mapping[str, str], path: Path) -> AdapterInfo | None:
    if _NAME not in metadata:
        return None
    try:
        about = parse_json(metadata[_NAME], f"the metadata of {path}", AdapterError)
        return AdapterInfo.model_validate(about)
    except ValidationError as error:
        raise AdapterError(
            f"the metadata of {path} is not what iclora writes ({error.error_count()} problems)",
            "It may come from a newer version; update iclora.",
        ) from error
