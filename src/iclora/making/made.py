"""A set that was made, in memory and on disk.

OUT/0001/composite.png
OUT/0001/panel-1.png ...
OUT/0001/request.json        run again, it makes the same set
OUT/0001/choice.json         what it is the best of, if it is
OUT/0001/latents.safetensors of its panels: a panel that is given to another set does not drift
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from iclora.errors import IcloraError, ImageError, SettingsError, StorageError
from iclora.files import digest, inside, natural_key, set_aside, work_folder, write_text
from iclora.files.documents import read_json
from iclora.making.given import hash_latents
from iclora.making.request import Request
from iclora.models.stored import Damaged, read_stored, store
from iclora.sets.dataset import LAYOUT_KEY
from iclora.sets.images import open_image, write_png

__all__ = [
    "Choice",
    "Cost",
    "GeneratedSet",
    "find_kept",
    "given_latents",
    "holds",
    "next_folder",
    "read_kept",
    "read_latents",
]

_LATENTS = "latents.safetensors"
_CHOICE = "choice.json"
_ABOUT = ("vae", "pixels")
"""What a file of latents says of itself."""


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
    def load(cls, folder: str | Path, *, unchanged: bool = False) -> GeneratedSet:
        """Read a set that `save` wrote.

        Args:
            unchanged: refuse pictures that are not those that were saved. Else they may have been
                retouched, and their latents are left out.
        Raises: SettingsError, ImageError if something is missing or not its own.
        """
        folder = Path(folder)
        request, given = Request.load(folder / "request.json")
        pictures: dict[str, Image.Image] = {}
        for number in range(1, request.layout.panels + 1):
            name = f"panel-{number}"
            read = number in given and request.given[number].file == f"{name}.png"
            pictures[name] = given[number] if read else open_image(folder / f"{name}.png")
        panels = tuple(pictures.values())
        pictures["composite"] = open_image(folder / "composite.png")
        hashes = {name: digest(picture.tobytes()) for name, picture in pictures.items()}
        stored = _read_latents(folder / _LATENTS)
        if unchanged:
            _check_sizes(folder, request, pictures)
            _check_hashes(folder, hashes, stored)
        made = cls(pictures.pop("composite"), panels, request)
        if not stored or any(stored.pixels.get(name) != hashes[name] for name in pictures):
            return made
        latents = tuple(stored.tensors[name] for name in pictures)
        return replace(made, latents=latents, vae=stored.vae)

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
                self._save_latents(work / _LATENTS)
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
        if request.adapters:
            hashes = [
                f"{Path(a.file or 'adapter').stem}: {a.sha256[:12]}" for a in request.adapters
            ]
            values["Lora hashes"] = f'"{", ".join(hashes)}"'
        lines.append(", ".join(f"{key}: {value}" for key, value in values.items()))
        return {
            "parameters": "\n".join(lines),
            "iclora:request": request.model_dump_json(),
            LAYOUT_KEY: json.dumps(request.layout.to_json()),
        }

    def _save_latents(self, path: Path) -> None:
        tensors = {f"panel-{n}": t for n, t in enumerate(self.latents, 1)}
        pictures = {f"panel-{n}": p for n, p in enumerate(self.panels, 1)}
        pictures["composite"] = self.composite
        pixels = {name: digest(picture.tobytes()) for name, picture in pictures.items()}
        store(path, tensors, {"vae": self.vae, "pixels": pixels})

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
    out: Path,
    wishes: Sequence[Sequence[Request]],
    score: str | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[int, Path]:
    """Sets of a folder that would be made again: those that an earlier, stopped command left.

    Args:
        wishes: for each set that is wanted the requests it is the best of, or the one.
        score: who chooses, if it is the best of several.
        warn: told of damaged sets, which are left alone.
    Returns: whole sets by the number of their wish, from 0; each stands for one wish.
    """
    there = {}
    for folder in sorted(out.glob("[0-9]*"), key=lambda path: natural_key(path.name)):
        if not (folder / "request.json").is_file():
            continue
        try:
            made = GeneratedSet.load(folder, unchanged=True)
        except IcloraError as error:
            warn(f"{folder} is damaged ({error.problem}); it is left alone, and stands for no set")
            continue
        try:
            chosen = read_json(folder / _CHOICE, SettingsError, "choice") if score else {}
        except IcloraError:
            continue  # It was not made as the best of several.
        if isinstance(chosen, dict):
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


def read_kept(
    folder: Path, request: Request, other: str, warn: Callable[[str], None], *, latents: bool
) -> GeneratedSet | None:
    """Read the set that a stopped command left in a folder, if it is whole.

    A damaged one is set aside, and said.

    Args:
        request: of the set that belongs there.
        other: what to call a set of another request.
        latents: True if it is of no use without them.
    Returns: None if there is none.
    Raises: SettingsError for a set of another request; StorageError.
    """
    if not os.path.lexists(folder):
        return None
    holds(folder, request, other)
    try:
        made = GeneratedSet.load(folder, unchanged=True)
        if latents and not made.latents:
            raise SettingsError(f"its {_LATENTS} is gone", "Make it again.")
    except (SettingsError, ImageError) as error:
        place = set_aside(folder)
        warn(
            f"{folder} is damaged ({error.problem}); it is set aside as {place.name} and made again"
        )
        return None
    return made


def holds(folder: Path, request: Request, other: str) -> bool:
    """True if a folder holds a set of a request, by its request.json alone.

    Raises: SettingsError if it holds a set of another one.
    """
    try:
        there = Request.read(folder / "request.json")
    except SettingsError:
        return False  # It is gone or damaged.
    if there.same_pixels(request):
        return True
    raise SettingsError(
        f"{folder} holds {other}, or of this one with other settings",
        "Choose another folder for `out`, or remove this one.",
        setting="out",
    )


def _check_sizes(folder: Path, request: Request, pictures: Mapping[str, Image.Image]) -> None:
    """Raises: SettingsError naming a picture of another size than it was saved in."""
    sizes = {"composite": request.layout.size}
    for number, size in enumerate(request.layout.sizes, 1):
        if number not in request.given:  # Those keep their own size.
            sizes[f"panel-{number}"] = size
    for name, size in sizes.items():
        if pictures[name].size != size:
            raise _not_saved(folder, name)


def _check_hashes(folder: Path, hashes: Mapping[str, str], stored: _Latents | None) -> None:
    """Raises: SettingsError naming a picture that is not the one that was saved, if it is known."""
    for name, found in hashes.items():
        if stored and stored.pixels.get(name, found) != found:
            raise _not_saved(folder, name)


def _not_saved(folder: Path, name: str) -> SettingsError:
    return SettingsError(
        f"{folder / name}.png is not the picture that was saved", "Make the set again."
    )


@dataclass(frozen=True)
class _Latents:
    """A file of latents."""

    tensors: Mapping[str, Tensor]
    vae: str
    pixels: Mapping[str, str]
    """Hashes of the pictures they belong to, and of the composite."""


def _read_latents(path: Path) -> _Latents | None:
    """Raises: SettingsError if the file is damaged."""
    if not path.exists():
        return None
    try:
        tensors, about = read_stored(path, before=_ABOUT)
        pixels = about.get("pixels")
        if not isinstance(pixels, dict) or set(tensors) != set(pixels) - {"composite"}:
            raise Damaged("its header does not fit its content")
    except Damaged as bad:
        raise SettingsError(
            f"{path} is damaged: {bad}",
            "Remove it; panels are then encoded again from their pixels.",
        ) from bad
    return _Latents({n: t.float() for n, t in tensors.items()}, str(about.get("vae")), pixels)


def read_latents(panel: Path, image: Image.Image) -> tuple[Tensor, str] | None:
    """Read the latents a panel of a made set was decoded from, if they lie beside it.

    Args:
        panel: the panel's file.
        image: its picture, as it was read; latents of another picture are not taken.
    Returns: (rows, columns, channels) float32, and the fingerprint of their VAE.
    Raises: SettingsError if the file of latents is damaged.
    """
    stored = _read_latents(panel.with_name(_LATENTS))
    if stored is None or stored.pixels.get(panel.stem) != digest(image.tobytes()):
        return None
    return stored.tensors[panel.stem], stored.vae


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
