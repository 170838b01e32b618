"""Datasets that clients send, file by file, into a folder of the server's own until they are whole.

An upload that is broken off can go on, and is cleared away after a day. What is sent becomes a
dataset by one rename, so nobody sees half of it.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from iclora import files
from iclora.errors import DatasetError
from iclora.files.names import fault_on_windows
from iclora.files.visible import visible
from iclora.serve.catalog import Catalog
from iclora.serve.jobs import Busy
from iclora.serve.problems import Refused
from iclora.serve.store import new_id
from iclora.sets.dataset import MANIFEST, open_dataset
from iclora.sets.editing import manifest_of
from iclora.sets.kinds import IMAGE_SUFFIXES
from iclora.sets.listing import list_files

__all__ = ["MOST_FILES", "Uploads"]

MOST_FILES = 20_000
_MOST_BYTES = 4 * 10**9
"""Of one dataset, unpacked."""
_MOST_ZIP = 2 * 10**9
_DAY = 86_400.0
_TEXTS = (".txt", ".caption", ".json", ".jsonl", ".csv", ".toml")
_ENDINGS = frozenset({*IMAGE_SUFFIXES, *_TEXTS, ".zip"})
_PART = re.compile(r"[^\x00-\x1f\x7f/\\:*?\"<>|]{1,150}")


class Uploads:
    """Folders of what is on its way."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog, self._home = catalog, catalog.home / "uploads"
        self._taken: dict[str, tuple[int, int]] = {}
        """Files and bytes of each upload, so that they need not be counted at every file."""

    def begin(self) -> str:
        """A new upload. Returns: its id. Raises: StorageError."""
        self._clear()
        upload = new_id()
        try:
            (self._home / upload).mkdir(parents=True)
        except OSError as error:
            raise files.storage_error(self._home, error) from error
        return upload

    def add(self, upload: str, name: str, data: bytes, offset: int | None = None) -> int:
        """Take a file, or a piece of one.

        Args:
            name: its path in the dataset.
            offset: where a piece belongs; None for a whole file. A piece that was there already is
                not added twice.
        Returns: bytes of the file so far.
        Raises: Refused for a name that is unsafe or of no use, or too much; StorageError.
        """
        folder = self._folder(upload)
        path = folder / _safe(name)
        size = path.stat().st_size if path.is_file() else 0
        self._check_room(folder, size if offset is not None else 0, path, len(data))
        if offset is None:
            files.write_bytes(path, data)
            return len(data)
        if offset > size:
            raise Refused(409, f"{size} bytes of {name[:100]} are there", "Go on from there.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if size else "wb") as file:
                file.seek(offset)
                file.write(data)
                file.truncate()
        except OSError as error:
            raise files.storage_error(path, error) from error
        return offset + len(data)

    def finish(self, upload: str, name: str, recipe: str | None) -> str:
        """Make a dataset of what was sent.

        Args:
            name: what it is called.
            recipe: a recipe's name; None if the dataset says its own.
        Returns: the dataset's id.
        Raises: Busy if there is one of that name; DatasetError, RecipeError, SettingsError for what
            is no dataset, and the upload stays so that another recipe can be tried.
        """
        folder = self._folder(upload)
        place = self._catalog.new("data", name)
        if place.exists():
            raise Busy(f'there is a dataset "{name}" already', "Use another name.")
        self._unpack(folder)
        root = _inner(folder)
        if recipe is not None:
            self._write_manifest(root, recipe)
        try:
            open_dataset(root)
        except DatasetError as error:
            problem = error.problem.replace(f"{root}", name)
            raise DatasetError(problem, error.advice, error.setting or "recipe") from error
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            root.rename(place)
        except OSError as error:
            raise files.storage_error(place, error) from error
        self._forget(folder)
        return f"data~{name}"

    def drop(self, upload: str) -> None:
        """Forget an upload. Raises: Refused with 404."""
        self._forget(self._folder(upload))

    # -- parts ------------------------------------------------------------------------------------

    def _forget(self, folder: Path) -> None:
        self._taken.pop(folder.name, None)
        shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, upload: str) -> Path:
        folder = self._home / upload
        if not re.fullmatch(r"[0-9a-z]{8,64}", upload) or not folder.is_dir():
            raise Refused(404, "this upload is not known any more", "Send it again.")
        return folder

    def _check_room(self, folder: Path, there: int, path: Path, more: int) -> None:
        """Raises: Refused with 413 for too much, with 507 if the disk is nearly full."""
        count, total = self._taken.get(folder.name) or _measured(folder)
        if path.suffix.lower() == ".zip" and there + more > _MOST_ZIP:
            raise Refused(413, "this zip has more than 2 GB", "Send its folder, or two zips.")
        if count >= MOST_FILES:
            raise Refused(413, f"there are more than {MOST_FILES:,} files", "Send two datasets.")
        if total + more > _MOST_BYTES:
            raise Refused(413, "this dataset has more than 4 GB", "Scale its pictures down.")
        free = shutil.disk_usage(self._home).free
        if free < more + 512 * 2**20:
            raise Refused(507, f"the disk has {free / 1e6:.0f} MB left", "Free some space.")
        self._taken[folder.name] = (count + (not there), total + more)

    def _unpack(self, folder: Path) -> None:
        """Unpack a zip that was sent alone. Raises: DatasetError, Refused, StorageError."""
        packed = [path for path in _all(folder) if path.suffix.lower() == ".zip"]
        if not packed:
            return
        if len(packed) > 1 or len(list(_all(folder))) > 1:
            raise DatasetError("a zip was sent beside other files", "Send it alone.", "file")
        try:
            listing, unread = list_files(packed[0])
        except DatasetError as error:
            problem = error.problem.replace(str(packed[0]), "this file")
            raise DatasetError(problem, error.advice, "file") from error
        if lost := [each for each in unread if each.severity == "error"]:
            # Once it is unpacked, nobody could tell any more.
            first = f"{lost[0].subject}: {lost[0].text}"
            rest = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            raise DatasetError(f"this zip is not whole: {first}{rest}", lost[0].advice, "file")
        if len(listing) > MOST_FILES:
            raise Refused(413, f"there are more than {MOST_FILES:,} files", "Send two datasets.")
        work, total = folder / "unpacked", 0
        shutil.rmtree(work, ignore_errors=True)
        for name, file in listing.items():
            data = file.read()
            total += len(data)
            if total > _MOST_BYTES:
                shutil.rmtree(work, ignore_errors=True)
                raise Refused(413, "this zip unpacks to more than 4 GB", "Send less.")
            # Also what is no picture and no words: opening the dataset says so.
            files.write_bytes(work / _safe(name, known=False), data)
        packed[0].unlink()

    def _write_manifest(self, root: Path, recipe: str) -> None:
        """Say which recipe the sets follow; one of the served folder goes along."""
        for name, data in manifest_of(*self._catalog.recipe(recipe)).items():
            files.write_bytes(root / name, data or b"")

    def _clear(self) -> None:
        """Remove uploads of which nothing was heard for a day."""
        if not self._home.is_dir():
            return
        for folder in self._home.iterdir():
            if time.time() - folder.stat().st_mtime > _DAY:
                shutil.rmtree(folder, ignore_errors=True)


def _measured(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in _all(folder)]
    return len(sizes), sum(sizes)


def _all(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _inner(folder: Path) -> Path:
    """The folder that holds more than one thing: people send the folder around it, too."""
    while True:
        things = list(folder.iterdir())
        if len(things) != 1 or not things[0].is_dir():
            return folder
        inner = list(things[0].iterdir())
        pictures = {path.stem for path in inner if path.suffix.lower() in IMAGE_SUFFIXES}
        texts = {path.stem for path in inner if path.suffix.lower() in _TEXTS}
        deeper = any(path.is_dir() or path.name == MANIFEST for path in inner)
        if not deeper and 1 < len(pictures) < 10 and not pictures & texts:
            return folder  # The one folder is a set.
        folder = things[0]


def _safe(name: str, *, known: bool = True) -> PurePosixPath:
    """A client's path of a file. Raises: Refused for one that is unsafe or of no use."""
    path = PurePosixPath(name)
    parts = name.split("/")
    unsafe = len(parts) > 8 or any(
        not _PART.fullmatch(part)
        or visible(part) != part
        or part.startswith(".")
        or fault_on_windows(part) is not None
        for part in parts
    )
    if unsafe or path.is_absolute():
        shown = visible(name[:100])
        raise Refused(422, f'"{shown}" is no name of a file here', "Rename it.", "file")
    if known and path.suffix.lower() not in _ENDINGS:
        raise Refused(
            422, f"{path.name[:100]} is neither a picture nor words", "Leave it out.", "file"
        )
    return path
