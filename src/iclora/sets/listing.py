"""The files of a folder or a zip archive by name, read in place and never unpacked.

Both are other people's: names that lead out of them, links to files elsewhere, pipes and devices,
files of absurd size and folders that lead back to themselves are left out or refused, never
without a word.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import scandir
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from iclora.errors import DatasetError
from iclora.sets.archives import HEAD, container_of
from iclora.sets.clutter import hidden_pictures, is_clutter, names_in
from iclora.sets.kinds import kind_of

__all__ = ["File", "Files", "Problem", "list_files", "open_regular"]

_LARGEST_FILE = 512 * 2**20
_MOST_FILES = 500_000
"""In a folder; more lie behind a link to something that is no dataset."""
_DEEPEST = 64
"""Folders in each other."""


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


@dataclass(frozen=True, slots=True)
class File:
    """One file of a listing, unread."""

    name: str
    """Its path in the folder or archive, with slashes."""
    _open: Callable[[], IO[bytes]]

    def read(self, most: int = _LARGEST_FILE) -> bytes:
        """Its content. Raises: DatasetError if it cannot be read, or has over `most` bytes."""
        data = self._start(most + 1)
        if len(data) > most:
            size = f"{most >> 20} MiB" if most >> 20 else f"{most} bytes"
            raise DatasetError(
                f'"{self.name}" is larger than {size}', "Nothing that large is read; remove it."
            )
        return data

    def head(self, size: int) -> bytes:
        """Its first bytes. Raises: DatasetError if it cannot be read."""
        return self._start(size)

    def _start(self, size: int) -> bytes:
        try:
            with self._open() as file:
                return file.read(size)
        except DatasetError:
            raise
        except Exception as error:
            # Damaged archives make zipfile raise almost anything, zlib.error among it.
            why = getattr(error, "strerror", None) or error
            raise DatasetError(
                f'"{self.name}" cannot be read: {why}', "Copy it, or make the archive, again."
            ) from error


Files = Mapping[str, File]
"""Every file by its path in the folder or archive, with slashes."""


def open_regular(path: Path, most: int = _LARGEST_FILE) -> IO[bytes]:
    """Open a regular file for reading; never wait for a pipe or a device.

    Raises: OSError, also for what is no regular file or has more than `most` bytes.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        file.close()
        raise OSError(0, "it is not a regular file, but a folder, pipe, socket or device")
    if found.st_size > most:
        file.close()
        size = found.st_size / 2**20
        raise OSError(0, f"it is of {size:,.0f} MiB, more than {most / 2**20:,.0f}")
    return file


def list_files(path: Path, *, deck: bool = False) -> tuple[Files, list[Problem]]:
    """List the files of a folder, zip archive or (if `deck`) PPTX, without what systems leave.

    Returns: the files, and what could not be listed.
    Raises: DatasetError if there is neither, or if the archive is damaged or unsafe.
    """
    problems: list[Problem] = []
    try:
        if path.is_file():
            found = _list_zip(path, problems, deck)
        elif path.is_dir():
            real = path.resolve()
            walk = _walk(path, "", (real,), (real,), problems)
            places = list(islice(walk, _MOST_FILES + 1))
            if len(places) > _MOST_FILES:
                raise DatasetError(
                    f"{path} holds more than {_MOST_FILES:,} files",
                    "Give the dataset's own folder.",
                )
            found = [(name, partial(open_regular, place)) for name, place in places]
        else:
            raise DatasetError(f"there is no folder or zip archive {path}", "Check the path.")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{str(path)!a} cannot be read: {error}", "Check the path.") from error
    files = {}
    for name, opener in found:
        if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
            problems.append(_unnamed(name))
        else:
            files[name] = File(name, opener)
    return files, problems


def _unnamed(name: str) -> Problem:
    advice = "Rename it, to letters of UTF-8."
    with suppress(UnicodeError):
        # It is this process that reads names as ASCII, as with LC_ALL=C.
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            advice = f"It is {os.fsencode(name).decode()!a}: set PYTHONUTF8=1, and run it again."
    return Problem(ascii(name)[1:-1], "a file with an unreadable name is not read", advice)


def _hidden(names: Iterable[str]) -> list[Problem]:
    return [
        Problem(
            name,
            f"a leading dot hides {f'{count} pictures' if count > 1 else 'a picture'} here, not "
            "read",
            "Rename it without the dot, or move it out of the dataset.",
        )
        for name, count in hidden_pictures(names).items()
    ]


# -- folders ------------------------------------------------------------------------------------


def _walk(
    folder: Path,
    inside: str,
    above: tuple[Path, ...],
    homes: tuple[Path, ...],
    problems: list[Problem],
) -> Iterator[tuple[str, Path]]:
    """Yield the name and place of every regular file below a folder; linked folders are followed.

    Args:
        inside: the folder as names and problems call it.
        above: the real paths of this folder and of those that hold it.
        homes: the real paths of the dataset and of the linked folders followed to here; a link to
            a file outside them is not read.
        problems: gets what cannot be read, and links that lead back up or out.
    """
    try:
        with scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(_unreadable(inside or str(folder), error))
        return
    if not any(entry for entry in found if not is_clutter(entry.name)) and inside:
        problems.append(
            Problem(inside, "an empty folder", "Put its pictures there, or remove it.", "warning")
        )
    for entry in found:
        if entry.name.endswith(".icloud"):
            problems.append(_in_the_cloud(f"{inside}/{entry.name}".lstrip("/")))
        if is_clutter(entry.name):
            problems += _hidden(names_in(entry, f"{inside}/{entry.name}".lstrip("/")))
            continue
        place, shown = folder / entry.name, f"{inside}/{entry.name}".lstrip("/")
        try:
            is_folder = entry.is_dir()
            is_plain = entry.is_file(follow_symlinks=False)
        except OSError as error:  # a link to a place that must not be looked at
            problems.append(_unreadable(shown, error))
            continue
        if is_folder and len(above) > _DEEPEST:
            problems.append(
                Problem(
                    shown[:200],
                    f"folders lie more than {_DEEPEST} deep here, and are not read",
                    "Move the pictures up.",
                )
            )
        elif is_folder:
            linked = entry.is_symlink()
            real = place.resolve() if linked else above[-1] / entry.name
            # Also to a folder that holds the whole dataset: the disk would be read for it.
            if linked and any(folder.is_relative_to(real) for folder in above):
                problems.append(
                    Problem(
                        shown,
                        "this link leads back to a folder that holds it",
                        "Remove it; it is not followed.",
                        "warning",
                    )
                )
                continue
            own = (*homes, real) if linked else homes
            yield from _walk(place, shown, (*above, real), own, problems)
        elif is_plain or _is_ours(entry, place, shown, homes, problems):
            yield shown, place


def _in_the_cloud(name: str) -> Problem:
    return Problem(
        name,
        "iCloud keeps this file and has left a stub here, so it is not read",
        "Download it: open the folder in the Finder and choose Download Now.",
    )


def _is_ours(
    entry: os.DirEntry[str],
    place: Path,
    shown: str,
    homes: tuple[Path, ...],
    problems: list[Problem],
) -> bool:
    """True for a link to a file inside the dataset; of all else that is not plain, say why not."""
    if not entry.is_symlink():
        problems.append(
            Problem(
                shown,
                "it is a pipe, a socket or a device and not a regular file, so it is not read",
                "Move it out of the dataset.",
            )
        )
        return False
    try:
        real = place.resolve()
        is_odd = real.exists() and not real.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        problems.append(_unreadable(shown, error))
        return False
    if is_odd or not any(real.is_relative_to(home) for home in homes):
        problems.append(
            Problem(
                shown,
                f"this link leads to {'something that is no file' if is_odd else 'a file'} outside "
                "the dataset and is not read",
                "Put a copy of the file there; `cp -rL` copies a folder with what its links mean.",
            )
        )
        return False
    return True


def _unreadable(name: str, error: Exception) -> Problem:
    why = getattr(error, "strerror", None) or error
    return Problem(
        name,
        f"it cannot be read ({why}), so what it holds is missing here",
        "Change its permissions, or move it out of the dataset.",
    )


# -- archives -----------------------------------------------------------------------------------


class _Place(io.RawIOBase):
    """A file that is open only while it is read, so that nobody has to close it."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._at, self._path.stat().st_size if whence == 2 else 0)[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "before the first byte")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read(-1 if size is None else size)
        self._at += len(data)
        return data


def _list_zip(
    path: Path, problems: list[Problem], deck: bool
) -> list[tuple[str, Callable[[], IO[bytes]]]]:
    if not deck and (known := container_of(path.name, b"")) and known.name == "deck":
        raise _no_zip(path, ValueError("deck"))
    try:
        # Its directory is read once, for it grows with its members, and each of them is opened.
        archive = zipfile.ZipFile(_Place(path))
        members = [(_plain_name(m.filename), m) for m in archive.infolist() if not m.is_dir()]
    except Exception as error:
        raise _no_zip(path, error) from error
    found: dict[str, Callable[[], IO[bytes]]] = {}
    # As many older tools write folders: a backslash at the end, no content.
    members = [(n, m) for n, m in members if not (m.filename.endswith("\\") and not m.file_size)]
    problems += _hidden(n for n, _ in members)
    members = [(n, m) for n, m in members if not any(map(is_clutter, n.split("/")))]
    for name, member in members:
        if ".." in PurePosixPath(name).parts or not name:
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
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            problems.append(
                Problem(name, "it is a link and not a file, so it is not read", "Pack the file.")
            )
            continue
        found[name] = partial(archive.open, member)
    problems += [
        Problem(name, f"{count} files of this name lie in the archive", "Make the archive again.")
        for name, count in Counter(name for name, _ in members).items()
        if count > 1
    ]
    return list(found.items())


def _no_zip(path: Path, error: Exception) -> DatasetError:
    """What a file is that is no whole zip archive, and how to get at what it holds."""
    with open_regular(path, sys.maxsize) as file:
        head = file.read(HEAD)
    found, kind = container_of(path.name, head), kind_of(head)
    advice = "Give a folder or a zip archive of image sets."
    if head[:2] == b"PK" and not (found and found.name == "deck"):
        return DatasetError(f"{path} is a damaged zip archive ({error})", "Copy it again.")
    if found and not found.name.startswith("zip"):
        own = found.advice.replace("FILE", shlex.quote(path.name))
        return DatasetError(f"{path} is not a zip archive; it is of this kind: {found.name}", own)
    if kind:
        return DatasetError(f"{path} is one picture ({kind}) and no dataset", advice)
    what = "is empty" if not head else f"is not a zip archive ({error})"
    return DatasetError(f"{path} {what}", advice)


def _plain_name(name: str) -> str:
    """A member's name with slashes between its folders, and none, nor a drive, before them."""
    plain: list[str] = []
    for part in re.sub(r"^[A-Za-z]:(?=[\\/])", "", name.replace("\\", "/")).split("/"):
        if part == ".." and plain and plain[-1] != "..":
            plain.pop()  # x/../0001 stays inside
        elif part not in ("", "."):
            plain.append(part)
    return "/".join(plain)
