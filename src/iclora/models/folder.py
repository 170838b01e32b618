"""A base as a folder in diffusers' layout: settings, parts loaded on demand, fingerprints.

model_index.json   names the pipeline, by which the family is found
transformer/ vae/ text_encoder/ tokenizer/ ...   config.json, and weights as safetensors
"""

from __future__ import annotations

import gc
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import psutil
import torch
from torch import Tensor, nn

from iclora.errors import ModelError, SettingsError
from iclora.files import digest
from iclora.files.documents import read_json
from iclora.files.locks import building
from iclora.models.base import Compiling, DiffusionModel, Part, Text
from iclora.models.complete import check_loaded, check_numbers
from iclora.models.names import Names, linears_of
from iclora.models.network import Network
from iclora.models.passes import Shapes
from iclora.models.quantize import quantize, quicken
from iclora.models.sizes import check_sizes
from iclora.models.widened import narrow
from iclora.settings import Offload, Precision

__all__ = ["FolderModel", "files_read"]

_SETTINGS = (
    "config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Files that `from_pretrained` reads of a part beside its weights."""

_WEIGHTS = ("diffusion_pytorch_model", "model")
"""Names of weights in diffusers and transformers."""

_SPARE = 2**32
"""Bytes of memory that parts at rest leave free."""

_SMALL = 2**22
"""Bytes up to which a file is hashed whole."""

_AGAIN = "Download the model again, whole and in diffusers' layout."


def files_read(folder: Path) -> list[Path]:
    """The files of one part that `from_pretrained` reads, by name.

    Hidden files, backups, pickles and other variants of the weights lie there unread.

    Raises: OSError if the folder cannot be read; ModelError for an index that is damaged or leads
        to other files than safetensors beside it.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()}
    found = names & set(_SETTINGS)
    for stem in _WEIGHTS:
        found |= names & {f"{stem}.safetensors"}
        index = f"{stem}.safetensors.index.json"
        if index in names:
            found |= {index, *(names & _shards(folder / index))}
    return [folder / name for name in sorted(found)]


def _shards(index: Path) -> set[str]:
    """The files that an index names. Raises: ModelError."""
    read = read_json(index, ModelError, "index")
    shards = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(shards, dict):
        raise ModelError(f"{index} is damaged", "Download the model again.")
    for name in shards.values():
        # Loaders follow whatever it names: a pickle, or a file elsewhere.
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\]+\.safetensors", name):
            raise ModelError(
                f"{index} names {name!r}, which is no safetensors file beside it",
                "Download the model again from a place you trust.",
            )
    return set(shards.values())


class FolderModel(DiffusionModel):
    """A base whose parts lie in the subfolders of a diffusers layout.

    Families say which subfolders a part has and under which cached properties its modules are
    held; each is loaded when it is first needed.

    Args:
        folder: the layout's.
        name: what the user called it; recorded in adapters and requests.
        device: where it computes.
        dtype: of its weights.
        precision: of the denoiser's blocks.
    """

    folders: ClassVar[Mapping[Part, tuple[str, ...]]]
    """The subfolders of each part."""
    held: ClassVar[Mapping[Part, tuple[str, ...]]]
    """The cached properties that hold a part's modules."""
    network: ClassVar[Any]
    """The denoiser's class, or the name of one of diffusers, imported when it is needed."""
    targets: ClassVar[Mapping[str, str]]
    """Patterns of the names of linear layers in blocks, by the choice of LoRA targets."""
    passes: ClassVar[Network | None] = None
    """Its forward pass, by which its blocks are spread or come to the device one ahead; None for a
    family that can do neither."""
    by_token: ClassVar[tuple[str, ...]] = ("prompt",)
    """The tensors of a text that have a row a token."""

    def __init__(
        self,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        precision: Precision = "full",
    ) -> None:
        self.folder, self.name, self.device, self.dtype = folder, name, device, dtype
        self.precision = precision
        self._loaded: dict[str, tuple[str, ...]] = {}
        self._resting: dict[str, nn.Module] = {}
        """Modules that stay when they are released, if `rests`."""
        self._hashed: dict[str, tuple[object, tuple[str, ...]]] = {}
        self._joined: deque[tuple[Sequence[Text], dict[str, Tensor]]] = deque(maxlen=2)
        self.shapes = Shapes()
        """Those that blocks are compiled for."""

    # -- reading --------------------------------------------------------------------------------

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """The settings of a subfolder. Raises: ModelError if they are unreadable or absurd."""
        try:
            config = read_json(self.folder / part / file, ModelError, "settings")
        except ModelError as error:
            raise ModelError(
                f"{self.name} lacks a readable {part}/{file} ({error.problem})", _AGAIN
            ) from error
        if not isinstance(config, dict):
            raise ModelError(f"{part}/{file} of {self.name} holds no settings", _AGAIN)
        check_sizes(config, f"{part}/{file} of {self.name}")
        return config

    @building()
    def load(self, part: str, cls: Any, **options: Any) -> Any:
        """A module, tokenizer or scheduler from a subfolder, modules on `device` and frozen.

        Raises: ModelError if it is missing, damaged or not in safetensors.
        """
        device = self.text_device if part in self.folders["text"] else self.device
        if part in self._resting:
            return self._resting[part].to(device)
        try:
            options |= {"use_safetensors": True, "local_files_only": True}
            if issubclass(cls, nn.Module):
                # Hashed with what is loaded now, whatever becomes of the file.
                self._loaded[part] = self._hash(part)
                model, said = cls.from_pretrained(
                    self.folder / part, output_loading_info=True, **options
                )
                what, alone = f"{part} of {self.name}", part in self.folders["denoiser"]
                check_loaded(said, what, alone=alone)
                if alone:
                    check_numbers((self.folder / part).glob("*.safetensors"), what)
            else:
                model = cls.from_pretrained(self.folder / part, **options)
        except (ModelError, MemoryError):
            raise
        except Exception as error:
            # Libraries build what a file says, and fail by whatever exception comes of it.
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{part} of {self.name} cannot be loaded: {why}",
                "Download it again as safetensors; weights in pickle files (.bin, .pt) are never "
                "opened.",
            ) from error
        if isinstance(model, nn.Module):
            model.requires_grad_(False).eval()
            if device.type == "cpu":
                quicken(model)
            streams = part in self.folders["denoiser"] and self.offload == "blocks"
            if part in self.folders["denoiser"]:
                # Layer by layer, so that the device never holds them whole.
                place = torch.device("cpu") if streams else device
                quantize(model, self.precision, place, self.block_prefixes)
                if self.mesh is not None:
                    self._spread(model)
            if streams:
                self.check_offload("blocks")
                assert self.passes is not None
                self.passes.stream(model, device)
            model.to(device)
            # What streams lies in the machine's memory already, bound to its places on the device.
            if self.rests and not streams:
                self._resting[part] = model
        return model

    @property
    def network_class(self) -> Any:
        """The denoiser's class."""
        named = isinstance(self.network, str)
        return getattr(diffusers, self.network) if named else self.network

    @cached_property
    def denoiser(self) -> nn.Module:
        model = self.load("transformer", self.network_class, dtype=self.dtype)
        assert isinstance(model, nn.Module)
        return model

    def check_offload(self, kind: Offload) -> None:
        if self.passes is None:
            super().check_offload(kind)

    def _spread(self, net: nn.Module) -> None:
        """Spread the denoiser's weights over `mesh`. Raises: ModelError if the family cannot."""
        if self.passes is None:
            raise ModelError(
                f"a base of the family {self.family} cannot be spread over several processes",
                "Leave `shard` out.",
                setting="shard",
            )
        self.passes.shard(net, self.mesh)

    def compiling(self) -> Shapes | None:
        """The shapes that this pass's blocks are compiled for; None if they are not compiled."""
        kind: Compiling = "training" if torch.is_grad_enabled() else "sampling"
        return self.shapes if kind in self.compiled else None

    def release(self, *parts: Part) -> None:
        if "denoiser" in parts:
            self._joined.clear()
            self.shapes = Shapes()
            self.applied, self.primed = None, False
            if self.graphs is not None:
                self.graphs.clear()
        freed = False
        for part in parts:
            held = [self.__dict__.pop(attribute, None) for attribute in self.held[part]]
            rest = [self._rest(folder) for folder in self.folders[part]]
            for folder, rests in zip(self.folders[part], rest, strict=True):
                if not rests:
                    self._loaded.pop(folder, None)
            # What rests on the CPU stays where it is.
            stays = all(rest) and self.device.type == "cpu"
            freed |= not stays and any(module is not None for module in held)
        if not freed:
            return
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    def _rest(self, folder: str) -> bool:
        """Bring a part into the machine's memory, if it may rest and there is room."""
        module = self._resting.get(folder)
        if module is None:
            return False
        size = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
        available = psutil.virtual_memory().available
        if not self.rests or (self.device.type != "cpu" and size + _SPARE > available):
            del self._resting[folder]
            return False
        narrow(module)
        module.to("cpu")
        return True

    # -- texts ----------------------------------------------------------------------------------

    def join_texts(self, texts: Sequence[Text]) -> Text:
        # One after the other, in the order of panels. What is one vector a text and goes to all
        # tokens (FLUX.1's pooled one) is their mean: that of one text, or of equal ones, is it.
        joined = {key: torch.cat([text[key] for text in texts]) for key in self.by_token}
        for key, like in texts[0].items():
            if key not in joined:
                mean = torch.stack([text[key].float() for text in texts]).mean(0)
                joined[key] = mean.to(like.dtype)
        return joined

    # -- what passes read and adapters name -----------------------------------------------------

    def on_device(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """The tensors of texts, joined and in the base's precision; those of two passes are kept.

        All steps of a sampling read the same texts, which are moved for the first one.

        Args:
            texts: of one length, so that each tensor has the same shape in all of them.
        """
        for last, joined in self._joined:
            if list(map(id, last)) == list(map(id, texts)):
                return joined
        joined = {
            key: torch.stack([text[key] for text in texts]).to(self.device, self.dtype)
            for key in texts[0]
        }
        # The texts themselves are kept as well, or another could get the id of one that is gone.
        # Training reads others at every step, and has no memory to spare in its backward pass.
        if torch.is_grad_enabled():
            self._joined.clear()
        else:
            self._joined.append((tuple(texts), joined))
        return joined

    @cached_property
    def names(self) -> Names:
        # Of the settings alone: an adapter is converted without the base's weights.
        try:
            with building(), torch.device("meta"):
                net = self.network_class.from_config(self.config("transformer"))
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"transformer/config.json of {self.name} describes no model ({error!r})", _AGAIN
            ) from error
        return self.names_of(linears_of(net))

    def names_of(self, linears: Mapping[str, tuple[int, int]]) -> Names:
        """The names of a denoiser with these linear modules; a family adds those of its tools."""
        return Names(linears)

    def lora_targets(self, kind: str) -> list[str]:
        if kind not in self.targets:
            raise SettingsError(
                f'"{kind}" is not a choice of LoRA targets',
                f"Use one of {', '.join(self.targets)}.",
                setting="targets",
            )
        return [
            name
            for name, module in self.denoiser.named_modules()
            if isinstance(module, nn.Linear)
            and name.startswith(self.block_prefixes)
            and re.fullmatch(self.targets[kind], name)
        ]

    # -- fingerprints ---------------------------------------------------------------------------

    def fingerprint(self, part: Part) -> str:
        pieces = list(self.beside(part))
        try:
            for folder in self.folders[part]:
                pieces += self._loaded.get(folder) or self._hash(folder)
        except (OSError, ValueError) as error:
            said = f"{self.name} lacks a readable {part} part ({error})"
            raise ModelError(said, _AGAIN) from error
        return digest(*pieces)

    def beside(self, part: Part) -> Iterator[str]:  # noqa: ARG002
        """Yield settings that decide what a part computes, apart from its files."""
        yield from ()

    def _hash(self, folder: str) -> tuple[str, ...]:
        """Names and hashes of the files that are read of a subfolder; again only if they change."""
        paths = files_read(self.folder / folder)
        stamp = [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in paths]
        known = self._hashed.get(folder)
        if known is None or known[0] != stamp:
            pieces = tuple(x for p in paths for x in (f"{folder}/{p.name}", _content(p)))
            known = stamp, pieces
            self._hashed[folder] = known
        return known[1]


def _content(path: Path) -> str:
    """Hash a file for a fingerprint: all of a small one, 64 samples of a large one.

    Reading 9 GB of T5 at every start would take longer than what the cache saves.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SMALL:
            return digest(file.read())
        samples = []
        for i in range(64):
            file.seek(i * (size - 4096) // 63)
            samples.append(file.read(4096))
    return digest(str(size), *samples)
