"""A set that was made, in memory and on disk.

OUT/0001/composite.png
OUT/0001/panel-1.png ...
OUT/0001/request.json        run again, it makes the same set
OUT/0001/choice.json         what it is the best of, if it is
OUT/0001/latents.safetensors of its panels: a panel that is given to another set does not drift
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iclora.errors import IcloraError, SettingsError, StorageError
from iclora.files import digest, inside, natural_key, work_folder, write_bytes, write_text
from iclora.files.documents import read_json
from iclora.making.given import hash_latents
from iclora.making.request import Request
from iclora.sets.dataset import LAYOUT_KEY
from iclora.sets.images import open_image, write_png

__all__ = [
    "Choice",
    "Cost",
    "GeneratedSet",
    "find_kept",
    "given_latents",
    "next_folder",
    "read_latents",
]

_LATENTS = "latents.safetensors"
_CHOICE = "choice.json"


@dataclass(frozen=True)
class Cost:
    """What making a set cost, a batch's cost shared among its sets."""

    seconds: float
    """Without the encoding of texts and the loading of weights."""
    memory: int
    """The most that was in use, bytes: of the GPU's memory if it was made on one, else of the
    whole process since it began."""


@dataclass(frozen=True)
class Choice:
    """What a set is the best of."""

    score: str
    """Who chose it."""
    of: int
    """Sets there were to choose from."""


@dataclass(frozen=True)
class GeneratedSet:
    """A composite, its panels, and the request that made them."""

    composite: Image.Image
    panels: tuple[Image.Image, ...]
    """Given ones as they were given."""
    request: Request
    latents: tuple[Tensor, ...] = ()
    """Of every panel, (rows, columns, channels) float32; empty if nobody kept them."""
    vae: str = ""
    """Fingerprint of the VAE they are for."""
    cost: Cost | None = field(default=None, compare=False)
    """None for a set that was read from disk."""

    @classmethod
    def load(cls, folder: str | Path) -> GeneratedSet:
        """Read a set that `save` wrote.

        Raises: SettingsError, ImageError if something is missing or not its own.
        """
        folder = Path(folder)
        request, given = Request.load(folder / "request.json")
        panels, kept = [], []
        for number in range(1, request.layout.panels + 1):
            file = folder / f"panel-{number}.png"
            read = number in given and request.given[number].file == file.name
            panels.append(given[number] if read else open_image(file))
            kept.append(read_latents(file, panels[-1]))
        whole = [k for k in kept if k]
        latents = tuple(k[0] for k in whole) if len(whole) == len(panels) else ()
        composite = open_image(folder / "composite.png")
        return cls(composite, tuple(panels), request, latents, whole[0][1] if latents else "")

    def save(self, folder: str | Path, choice: Choice | None = None) -> Path:
        """Write composite.png, panel-1.png ... and request.json, all or none of them.

        Args:
            choice: what it is the best of; choice.json.
        Returns: the folder. Raises: StorageError if it exists or cannot be written.
        """
        folder = Path(folder)
        with work_folder(folder) as work:
            write_png(work / "composite.png", self.composite, self._text())
            for number, panel in enumerate(self.panels, 1):
                write_png(work / f"panel-{number}.png", panel)
            write_text(work / "request.json", self.request.model_dump_json(indent=2) + "\n")
            if self.latents:
                write_bytes(work / _LATENTS, self._latents())
            if choice:
                write_text(work / _CHOICE, json.dumps(asdict(choice)) + "\n")
        return folder

    def _text(self) -> dict[str, str]:
        """What other tools read in a composite: A1111's parameters; and what we do."""
        request = self.request.shared()
        words = " ".join(request.prompt.split())
        lines = [words, f"Negative prompt: {request.negative}"] if request.negative else [words]
        values = {
            "Steps": request.steps,
            "Sampler": "Euler",
            "CFG scale": f"{request.guidance:g}",
            "Seed": request.seeds[0],
            "Size": "{}x{}".format(*self.composite.size),
            "Model": request.base,
        }
        if request.adapter_sha256:
            name = Path(request.adapter or "adapter").stem
            values["Lora hashes"] = f'"{name}: {request.adapter_sha256[:12]}"'
        lines.append(", ".join(f"{key}: {value}" for key, value in values.items()))
        return {
            "parameters": "\n".join(lines),
            "iclora:request": request.model_dump_json(),
            LAYOUT_KEY: json.dumps(request.layout.to_json()),
        }

    def _latents(self) -> bytes:
        tensors = {f"panel-{n}": t.contiguous() for n, t in enumerate(self.latents, 1)}
        pixels = {f"panel-{n}": digest(p.tobytes()) for n, p in enumerate(self.panels, 1)}
        return save(tensors, {"iclora": json.dumps({"vae": self.vae, "pixels": pixels})})

    def save_next(self, out: str | Path, choice: Choice | None = None) -> Path:
        """`save` under the next free number of a folder: OUT/0001, OUT/0002 and on.

        Returns: the new folder. Raises: StorageError.
        """
        while True:
            folder = next_folder(Path(out))
            try:
                return self.save(folder, choice)
            except StorageError:
                # Somebody else took that number meanwhile; every other reason stands.
                if not folder.exists():
                    raise


def find_kept(
    out: Path, wishes: Sequence[Sequence[Request]], score: str | None = None
) -> dict[int, Path]:
    """Sets of a folder that would be made again: those that an earlier, stopped command left.

    Args:
        wishes: for each set that is wanted the requests it is the best of, or the one.
        score: who chooses, if it is the best of several.
    Returns: whole sets by the number of their wish, from 0; each stands for one wish.
    """
    there = {}
    for folder in sorted(out.glob("[0-9]*"), key=lambda path: natural_key(path.name)):
        try:
            made = GeneratedSet.load(folder)
            chosen = read_json(folder / _CHOICE, SettingsError, "choice") if score else {}
            whole = made.composite.size == made.request.layout.size
            sizes = tuple(panel.size for panel in made.panels)
            whole &= all(
                size == box or number in made.request.given
                for number, (size, box) in enumerate(
                    zip(sizes, made.request.layout.sizes, strict=True), 1
                )
            )
        except IcloraError:
            continue  # Not a whole set; it is left alone, and made again beside it.
        if whole and isinstance(chosen, dict):
            there[folder] = made.request, chosen
    kept: dict[int, Path] = {}
    for number, requests in enumerate(wishes):
        for folder, (request, chosen) in there.items():
            same = any(request.same_pixels(r) and request.versions == r.versions for r in requests)
            if same and (not score or chosen == {"score": score, "of": len(requests)}):
                kept[number] = folder
                del there[folder]
                break
    return kept


def read_latents(panel: Path, image: Image.Image) -> tuple[Tensor, str] | None:
    """Read the latents a panel of a made set was decoded from, if they lie beside it.

    Args:
        panel: the panel's file.
        image: its picture, as it was read; latents of another picture are not taken.
    Returns: (rows, columns, channels) float32, and the fingerprint of their VAE.
    Raises: SettingsError if the file of latents is damaged.
    """
    path = panel.with_name(_LATENTS)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["iclora"])
            if about["pixels"].get(panel.stem) != digest(image.tobytes()):
                return None
            return file.get_tensor(panel.stem).float(), str(about["vae"])
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise SettingsError(
            f"{path} cannot be read: {error!r}",
            "Remove it; panels are then encoded again from their pixels.",
        ) from error


def given_latents(
    request: Request, folder: Path, given: Mapping[int, Image.Image]
) -> dict[int, Tensor]:
    """Read the latents of a request's given panels that were made before.

    Args:
        folder: where the request and its panels lie.
        given: the pictures that `Request.load` read there.
    Raises: SettingsError if they are gone or not those the request was made with.
    """
    found = {}
    for number, panel in request.given.items():
        if not panel.latents:
            continue
        file = inside(folder, panel.file, SettingsError)
        kept = read_latents(file, given[number])
        if kept is None or hash_latents(kept[0]) != panel.latents:
            raise SettingsError(
                f"the latents of given panel {number} are not beside {file} any more",
                f"Restore {_LATENTS}, or start again with `iclora complete`.",
            )
        found[number] = kept[0]
    return found


def next_folder(out: Path) -> Path:
    """OUT/0001, or the number after the highest there: nothing is overwritten."""
    names = [p.name for p in out.glob("[0-9]*")] if out.is_dir() else []
    # Longer numbers are no counting of ours.
    taken = [int(name) for name in names if re.fullmatch(r"[0-9]{1,9}", name)]
    return out / f"{max(taken, default=0) + 1:04d}"
