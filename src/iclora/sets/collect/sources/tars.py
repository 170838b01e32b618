"""Tar archives (webdataset's shards): their files by name, read in place and never unpacked."""

from __future__ import annotations

import io
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from iclora.errors import DatasetError
from iclora.sets.listing import File, Files, Problem

__all__ = ["list_tar"]

_MOST_FILES = 500_000
_LARGEST_FILE = 512 * 2**20
_LARGEST_HEADER = 2**20


def list_tar(path: Path) -> tuple[Files, list[Problem]]:
    """The files of an uncompressed tar archive, and what is not read of it.

    Raises: DatasetError for an archive that is compressed, damaged from its start, or endless.
    """
    problems: list[Problem] = []
    files: dict[str, File] = {}
    try:
        with path.open("rb", 0) as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:
            for member in archive:
                if len(files) >= _MOST_FILES:
                    raise DatasetError(
                        f"{path} holds more than {_MOST_FILES:,} files", "Give smaller shards."
                    )
                if member.isdir():
                    continue
                parts = PurePosixPath(member.name)
                if parts.is_absolute() or ".." in parts.parts:
                    why = "its name leads out of the archive"
                    problems.append(_refused(path, member.name, why))
                elif member.size < 0:
                    raise tarfile.ReadError("a file of less than no bytes")
                elif not member.isreg():
                    problems.append(_refused(path, member.name, "it is a link or a device"))
                else:
                    if parts.as_posix() in files:
                        why = "an earlier file of the archive has its name"
                        problems.append(_refused(path, member.name, why))
                        continue
                    part = partial(_part, path, member.offset_data, member.size)
                    files[parts.as_posix()] = File(parts.as_posix(), part)
    except (tarfile.TarError, OSError, EOFError) as error:
        if not files:
            raise DatasetError(
                f"{path} is not a tar archive, or a compressed or damaged one ({error})",
                "Unpack a .tar.gz first; shards of webdataset are not compressed.",
            ) from error
        why = f"it is damaged behind its first files ({error})"
        problems.append(_refused(path, path.name, why))
    return files, problems


class _Bounded(io.BufferedReader):
    """A file of which no header of hundreds of megabytes is read."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError("a header larger than any program writes")
        return super().read(size)


def _refused(path: Path, name: str, why: str) -> Problem:
    return Problem(f"{path}/{name}", f"{why}, so it is not read", "Make the archive again.")


def _part(path: Path, start: int, size: int) -> IO[bytes]:
    if size > _LARGEST_FILE:
        raise OSError(0, f"it has {size >> 20} MiB, more than {_LARGEST_FILE >> 20}")
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(size)
    if len(data) < size:
        raise OSError(0, "the archive ends within it")
    return io.BytesIO(data)
