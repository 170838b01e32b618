"""Tar archives (webdataset's shards): their files by name, read in place and never unpacked.

A compressed one cannot be read in place, so the archive itself, not its files, is written out once.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from iclora.errors import DatasetError
from iclora.sets.listing import File, Files, Problem

__all__ = ["COMPRESSED", "inflate", "list_tar"]

COMPRESSED: dict[str, Callable[..., Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}

_MOST_FILES = 500_000
_LARGEST_FILE = 512 * 2**20
_INFLATED = 100
"""Times its own size that a compressed archive takes at most: pictures are compressed already."""
_SMALL = 64 * 2**20
"""Bytes that any may take."""
_PIECE = 2**22


def inflate(path: Path, folder: Path) -> None:
    """Write a compressed archive uncompressed into a folder, as data.tar.

    Raises: DatasetError for a damaged one, or one that grows as a bomb does.
    """
    most = max(_SMALL, _INFLATED * path.stat().st_size)
    opener = next(each for end, each in COMPRESSED.items() if path.name.lower().endswith(end))
    done = 0
    try:
        with opener(path) as packed, (folder / "data.tar").open("wb") as out:
            while piece := packed.read(_PIECE):
                done += out.write(piece)
                if done > most:
                    raise DatasetError(
                        f"{path} grows to more than {_INFLATED} times its size, which can fill "
                        "the disk",
                        "Unpack it yourself if you trust it, and give the folder.",
                    )
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DatasetError(
            f"{path} cannot be unpacked: {error}", "Make or download the archive again."
        ) from error


_LARGEST_HEADER = 2**20


def list_tar(path: Path, source: str) -> tuple[Files, list[Problem]]:
    """The files of an uncompressed tar archive, and what is not read of it.

    Args:
        source: the archive as it was named, for messages.
    Raises: DatasetError for an archive that is compressed, damaged from its start, or endless.
    """
    problems: list[Problem] = []
    files: dict[str, File] = {}
    try:
        with path.open("rb", 0) as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:
            for member in archive:
                if len(files) >= _MOST_FILES:
                    raise DatasetError(
                        f"{source} holds more than {_MOST_FILES:,} files", "Give smaller shards."
                    )
                if member.isdir():
                    continue
                parts = PurePosixPath(member.name)
                if parts.is_absolute() or ".." in parts.parts:
                    why = "its name leads out of the archive"
                    problems.append(_refused(source, member.name, why))
                elif member.size < 0:
                    raise tarfile.ReadError("a file of less than no bytes")
                elif not member.isreg():
                    problems.append(_refused(source, member.name, "it is a link or a device"))
                else:
                    if parts.as_posix() in files:
                        why = "an earlier file of the archive has its name"
                        problems.append(_refused(source, member.name, why))
                        continue
                    part = partial(_part, path, member.offset_data, member.size)
                    files[parts.as_posix()] = File(parts.as_posix(), part)
    except (tarfile.TarError, OSError, EOFError) as error:
        if not files:
            raise DatasetError(
                f"{source} is not a tar archive, or a compressed or damaged one ({error})",
                "Name a compressed one as such: .tar.gz, .tgz, .tar.bz2 or .tar.xz.",
            ) from error
        why = f"it is damaged behind its first files ({error})"
        problems.append(_refused(source, PurePosixPath(source).name, why))
    return files, problems


class _Bounded(io.BufferedReader):
    """A file of which no header of hundreds of megabytes is read."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError("a header larger than any program writes")
        return super().read(size)


def _refused(source: str, name: str, why: str) -> Problem:
    return Problem(f"{source}/{name}", f"{why}, so it is not read", "Make the archive again.")


def _part(path: Path, start: int, size: int) -> IO[bytes]:
    if size > _LARGEST_FILE:
        raise OSError(0, f"it has {size >> 20} MiB, more than {_LARGEST_FILE >> 20}")
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(size)
    if len(data) < size:
        raise OSError(0, "the archive ends within it")
    return io.BytesIO(data)
