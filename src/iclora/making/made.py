"""A set that was made, in memory and on disk.

OUT/0001/composite.png
OUT/0001/panel-1.png ...
OUT/0001/request.json        run again, it makes the same set
OUT/0001/latents.safetensors of its panels: a panel that is given to another set does not drift
"""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iclora.errors import SettingsError, StorageError
from iclora.files import digest, inside, storage_error, write_bytes, write_text
from iclora.making.given import hash_latents
from iclora.making.request import Request
from iclora.sets.images import open_image, write_png

__all__ = ["Cost", "GeneratedSet", "given_latents", "next_folder", "read_latents"]

_LATENTS = "latents.safetensors"


@dataclass(frozen=True)
class Cost:
    """What making a set cost, a batch's cost shared among its sets."""

    seconds: float
    """Without the encoding of texts and the loading of weights."""
    memory: int
    """The most that was in use, bytes: of the GPU's memory if it was made on one, else of the
    whole process since it began."""


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

    def save(self, folder: str | Path) -> Path:
        """Write composite.png, panel-1.png ... and request.json, all or none of them.

        Returns: the folder. Raises: StorageError if it exists or cannot be written.
        """
        folder = Path(folder)
        # A name of its own: another process may be writing a set beside this one.
        work = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        try:
            if folder.exists():
                raise FileExistsError(errno.EEXIST, "it exists already")
            write_png(work / "composite.png", self.composite)
            for number, panel in enumerate(self.panels, 1):
                write_png(work / f"panel-{number}.png", panel)
            write_text(work / "request.json", self.request.model_dump_json(indent=2) + "\n")
            if self.latents:
                write_bytes(work / _LATENTS, self._latents())
            work.rename(folder)
        except OSError as error:
            raise storage_error(folder, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return folder

    def _latents(self) -> bytes:
        tensors = {f"panel-{n}": t.contiguous() for n, t in enumerate(self.latents, 1)}
        pixels = {f"panel-{n}": digest(p.tobytes()) for n, p in enumerate(self.panels, 1)}
        return save(tensors, {"iclora": json.dumps({"vae": self.vae, "pixels": pixels})})

    def save_next(self, out: str | Path) -> Path:
        """`save` under the next free number of a folder: OUT/0001, OUT/0002 and on.

        Returns: the new folder. Raises: StorageError.
        """
        while True:
            folder = next_folder(Path(out))
            try:
                return self.save(folder)
            except StorageError:
                # Somebody else took that number meanwhile; every other reason stands.
                if not folder.exists():
                    raise


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
    taken = [int(p.name) for p in out.glob("[0-9]*") if p.name.isdigit()] if out.is_dir() else []
    return out / f"{max(taken, default=0) + 1:04d}"
