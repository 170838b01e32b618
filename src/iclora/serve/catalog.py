"""What lies in the served folder, by ids that clients may name.

FOLDER/NAME, FOLDER/data/NAME     datasets: folders and zips of image sets
FOLDER/NAME, FOLDER/runs/NAME     runs: folders with a config.toml
FOLDER/adapters/NAME.safetensors  adapters, beside those of runs
FOLDER/recipes/NAME.toml          recipes, beside those that ship
FOLDER/out                        what jobs make
FOLDER/.iclora                    the server's own: queue, token, uploads, thumbnails, trash

A client names an id and never a path: an id is looked up among what is there. A link that leads out
of the folder is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from iclora.errors import AdapterError, DatasetError, IcloraError, RecipeError, RunError
from iclora.files import digest_file
from iclora.files.names import fault_on_windows
from iclora.files.visible import visible
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe, load_recipe, recipe_names

__all__ = ["AdapterFile", "Catalog"]

T = TypeVar("T")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}(~[A-Za-z0-9][A-Za-z0-9._ -]{0,99})?")
_OWN = frozenset({"out", "data", "runs", "adapters", "recipes"})
_LONGEST_HEADER = 32 * 2**20


class _Carried(BaseModel):
    """What an adapter of ours says of itself, as far as a request can be checked by it."""

    model_config = ConfigDict(extra="ignore")

    base: str
    recipe: Recipe
    layout: Layout
    conditional: float = 0.0
    steps: int = 0
    rank: int = 0


@dataclass(frozen=True)
class AdapterFile:
    """An adapter that jobs may name."""

    id: str
    path: Path
    base: str | None
    """What it was trained on; None for another tool's."""
    recipe: Recipe | None
    layout: Layout | None
    about: dict[str, Any]


class Catalog:
    """The served folder.

    Args:
        folder: FOLDER.
        adapters: further files, from the server's settings.
    """

    def __init__(self, folder: Path, adapters: Sequence[str] = ()) -> None:
        self.folder = folder.resolve()
        self.out = self.folder / "out"
        self.home = self.folder / ".iclora"
        self._further = [Path(path) for path in adapters]
        self._read: dict[Path, tuple[int, AdapterFile]] = {}
        self._hashed: dict[Path, tuple[int, str]] = {}

    def hide(self, text: str) -> str:
        """A text without the places on this machine where things lie: names are enough."""
        for place in (self.folder, *(path.resolve().parent for path in self._further)):
            text = text.replace(f"{place}/", "").replace(str(place), place.name)
        return text

    # -- ids --------------------------------------------------------------------------------------

    def datasets(self) -> dict[str, Path]:
        """Folders and zips that may be datasets, by id."""
        return {
            name: path
            for name, path in self._things("data")
            if (path.is_dir() and not _is_run(path)) or path.suffix.lower() == ".zip"
        }

    def runs(self) -> dict[str, Path]:
        """Run folders by id."""
        return {name: path for name, path in self._things("runs") if _is_run(path)}

    def adapters(self) -> dict[str, AdapterFile]:
        """Adapters by id: a run's is called as the run, a file as it is.

        The one that was best on held-out sets is RUN@best, and of a run that is not finished the
        newest checkpoint is RUN@STEP.
        """
        files: dict[str, Path] = {}
        for name, run in self.runs().items():
            files[name] = run / "adapter.safetensors"
            files[f"{name}@best"] = run / "adapter-best.safetensors"
            saved = max((run / "checkpoints").glob("step-*"), default=None)
            if saved and not files[name].is_file():
                files[f"{name}@{saved.name[5:].lstrip('0') or '0'}"] = saved / "adapter.safetensors"
        for name, path in self._things("adapters"):
            if path.suffix == ".safetensors":
                files.setdefault(name.rpartition("~")[2].removesuffix(".safetensors"), path)
        for path in self._further:
            name = path.resolve().parent.name if path.stem == "adapter" else path.stem
            files.setdefault(re.sub(r"[^A-Za-z0-9._-]", "-", name) or "adapter", path)
        found = {name: self._adapter(name, path) for name, path in files.items() if path.is_file()}
        return {name: each for name, each in found.items() if each}

    def adapters_of(self, sha256: str) -> dict[str, AdapterFile]:
        """The adapters whose file has this hash, as requests hold it; files may be large."""
        return {n: each for n, each in self.adapters().items() if self.hash_of(each.path) == sha256}

    def hash_of(self, path: Path) -> str:
        """The hash of an adapter's file, as requests hold it; empty if it cannot be read."""
        try:
            stamp = path.stat().st_mtime_ns
            if self._hashed.get(path, (0, ""))[0] != stamp:
                self._hashed[path] = stamp, digest_file(path)
            return self._hashed[path][1]
        except OSError:
            return ""

    def recipes(self) -> dict[str, Recipe]:
        """Recipes by name; a file that is none is left out."""
        found = {name: load_recipe(name) for name in recipe_names()}
        for name, path in self._things("recipes"):
            if path.suffix == ".toml" and path.parent.name == "recipes":
                try:
                    found.setdefault(name.rpartition("~")[2][:-5], load_recipe(path))
                except IcloraError:
                    continue
        return found

    def dataset(self, name: str) -> Path:
        """Raises: DatasetError."""
        return _of(self.datasets(), name, "dataset", DatasetError)

    def run(self, name: str) -> Path:
        """Raises: RunError."""
        return _of(self.runs(), name, "run", RunError)

    def adapter(self, name: str) -> AdapterFile:
        """Raises: AdapterError."""
        return _of(self.adapters(), name, "adapter", AdapterError)

    def recipe(self, name: str) -> tuple[Recipe, str]:
        """A recipe, and what a verb is told to find it. Raises: RecipeError."""
        own = self.folder / "recipes" / f"{name}.toml"
        known = self.recipes()
        if name not in known and own in (path for _, path in self._things("recipes")):
            load_recipe(own)  # says what is wrong with it
        found = _of(known, name, "recipe", RecipeError)
        return found, name if name in recipe_names() else str(own)

    def new(self, kind: str, name: str) -> Path:
        """Where a new dataset ("data") or run ("runs") of a name will lie. Raises: RunError."""
        place = self.folder / kind
        if not _ID.fullmatch(name) or "~" in name or not self.inside(place):
            shown = visible(name[:80])
            raise RunError(f'"{shown}" is no name', "Use letters, digits, - and _.", "name")
        if fault := fault_on_windows(name):  # The folder may be copied, or shared with one.
            raise RunError(f'"{name[:80]}" is {fault}', "Use another name.", "name")
        return place / name

    def inside(self, path: Path) -> bool:
        """True for a path that does not lead out of the folder."""
        try:
            return path.resolve().is_relative_to(self.folder)
        except (OSError, RuntimeError):
            return False

    def _things(self, own: str) -> Iterator[tuple[str, Path]]:
        """Visible files and folders of FOLDER and FOLDER/`own`, links that lead out left out."""
        for prefix, place in (("", self.folder), (f"{own}~", self.folder / own)):
            try:
                paths = sorted(place.iterdir()) if self.inside(place) else []
            except OSError:
                continue
            for path in paths:
                if place == self.folder and path.name in _OWN:
                    continue
                name = f"{prefix}{path.name}"
                if _ID.fullmatch(name) and self.inside(path):
                    yield name, path

    def _adapter(self, name: str, path: Path) -> AdapterFile | None:
        """Read a file's header, once for each version of it."""
        try:
            stamp = path.stat().st_mtime_ns
            known = self._read.get(path)
            if known and known[0] == stamp and known[1].id == name:
                return known[1]
            carried = _carried(path)
        except OSError:
            return None
        about = carried.model_dump(include={"conditional", "steps", "rank"}) if carried else {}
        found = AdapterFile(
            name,
            path,
            carried.base if carried else None,
            carried.recipe if carried else None,
            carried.layout if carried else None,
            about,
        )
        self._read[path] = stamp, found
        return found


def _of(known: dict[str, T], name: str, what: str, refuse: type[IcloraError]) -> T:
    if name not in known:
        some = ", ".join(list(known)[:20])
        raise refuse(
            f'there is no {what} "{name[:80]}"',
            f"Use one of {some}." if some else f"There is no {what} here yet.",
        )
    return known[name]


def _is_run(path: Path) -> bool:
    return (path / "config.toml").is_file()


def _carried(path: Path) -> _Carried | None:
    """What iclora wrote into a safetensors file's header; no weights are read, so no torch."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= _LONGEST_HEADER:
            return None
        head = file.read(size)
    try:
        text = json.loads(head)["__metadata__"]["iclora"]
        return _Carried.model_validate_json(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
