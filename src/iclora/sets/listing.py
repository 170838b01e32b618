"""The files of a folder or a zip archive by name, read in place and never unpacked.

Both are other people's: names that lead out of an archive, files of absurd size and folders that
lead back to themselves are refused or left out, never without a word.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import scandir
from pathlib import Path, PurePosixPath
from typing import Literal

from iclora.errors import DatasetError

__all__ = ["Files", "Problem", "list_files"]

Files = Mapping[str, Callable[[], bytes]]
"""A reader for every file, by its path in the folder or archive, with slashes."""

_LARGEST_FILE = 512 * 2**20
_CLUTTER = ("__macosx", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Problem:
    """Something about a set or a file, and what to do about it."""

    subject: str
    """The set or file it is about."""
    text: str
    advice: str
    severity: Literal["error", "warning"] = "error"
    caption: bool = False
    """True if it concerns the words and not the pictures."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}. {self.advice}"


def list_files(path: Path) -> tuple[Files, list[Problem]]:
    """List the files of a folder or zip archive, without what systems leave in them.

    Returns: the files, and what could not be listed.
    Raises: DatasetError if there is neither, or if the archive is damaged or unsafe.
    """
    if path.is_file():
        return _list_zip(path), []
    if not path.is_dir():
        raise DatasetError(f"there is no folder or zip archive {path}", "Check the path.")
    problems: list[Problem] = []
    files = {}
    for file in _walk(path, "", (path.resolve(),), problems):
        relative = file.relative_to(path).as_posix()
        if any(sign < " " or "\ud800" <= sign <= "\udfff" for sign in relative):
            raise DatasetError(
                f"{path} holds a file with an unreadable name, {relative!a}", "Rename it."
            )
        files[relative] = partial(_read_file, file)
    return files, problems


def _is_clutter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any((p.startswith(".") and p != "..") or p.lower() in _CLUTTER for p in parts)


def _walk(
    folder: Path, inside: str, above: tuple[Path, ...], problems: list[Problem]
) -> Iterator[Path]:
    """Yield every file below a folder; links to files and folders are followed.

    Args:
        inside: the folder as problems name it.
        above: the real paths of this folder and of those that hold it.
        problems: gets the folders that cannot be read, and the links that lead back up.
    """
    try:
        with scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(_unreadable(inside or str(folder), error))
        return
    for entry in found:
        if _is_clutter(entry.name):
            continue
        place, shown = folder / entry.name, f"{inside}/{entry.name}".lstrip("/")
        try:
            is_folder = entry.is_dir()
        except OSError as error:  # a link to a place that must not be looked at
            problems.append(_unreadable(shown, error))
            continue
        if not is_folder:
            yield place
            continue
        real = place.resolve()
        if real in above:
            problems.append(
                Problem(
                    shown,
                    "this link leads back to a folder that holds it",
                    "Remove it; it is not followed.",
                    "warning",
                )
            )
            continue
        yield from _walk(place, shown, (*above, real), problems)


def _unreadable(name: str, error: OSError) -> Problem:
    return Problem(
        name,
        f"it cannot be read ({error.strerror or error}), so what it holds is missing here",
        "Change its permissions, or move it out of the dataset.",
    )


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}", "Check it.") from error


def _list_zip(path: Path) -> Files:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                m for m in archive.infolist() if not m.is_dir() and not _is_clutter(m.filename)
            ]
    except Exception as error:
        raise DatasetError(
            f"{path} is not a zip archive, or a damaged one ({error})",
            "Give a folder or a zip archive of image sets.",
        ) from error
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
            raise DatasetError(
                f'{path} holds the unsafe name "{member.filename}", which leads out of the archive',
                "Do not trust this archive; make it again from the images.",
            )
        if member.flag_bits & 1:
            raise DatasetError(f'"{name}" in {path} is encrypted', "Unpack it yourself first.")
        if member.file_size > _LARGEST_FILE:
            raise DatasetError(
                f'"{name}" in {path} unpacks to {member.file_size / 2**20:.0f} MiB',
                f"Files of more than {_LARGEST_FILE // 2**20} MiB are refused.",
            )
    return {member.filename: partial(_read_member, path, member.filename) for member in members}


def _read_member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            return member.read(_LARGEST_FILE)
    except Exception as error:
        # Damaged archives make zipfile raise almost anything, zlib.error among it.
        raise DatasetError(
            f'"{name}" in {path} cannot be read: {error}', "Make the archive again."
        ) from error
