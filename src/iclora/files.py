"""Files that are whole or absent: write to a temporary name, flush, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iclora.errors import StorageError

__all__ = [
    "append_line",
    "cache_home",
    "digest",
    "inside",
    "natural_key",
    "replacing",
    "storage_error",
    "write_bytes",
    "write_text",
]


def digest(*parts: bytes | str) -> str:
    """SHA-256 over length-prefixed parts, as 64 hex digits; ("ab", "c") and ("a", "bc") differ."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        sha.update(len(raw).to_bytes(8, "big"))
        sha.update(raw)
    return sha.hexdigest()


def natural_key(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort key under which panel-2 comes before panel-10."""
    pieces = re.findall(r"\d+|\D+", name.lower())
    return tuple((not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in pieces)


def cache_home() -> Path:
    """The folder for things that can be made again: $ICLORA_CACHE, or ~/.cache/iclora."""
    own = os.environ.get("ICLORA_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(shared, "iclora")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds.

    A killed process or a full disk leaves the old file, or none, never half a file.

    Raises: StorageError if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):  # it was renamed, or its folder could not even be made
            temporary.unlink()


def storage_error(path: Path, error: OSError) -> StorageError:
    """The error to raise for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"cannot write {path}: the disk is full; nothing that was there has been changed",
            "Free some space or choose another folder, then run the same command again.",
        )
    return StorageError(
        f"cannot write {path}: {error.strerror or error}", "Choose a folder you may write to."
    )


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all. Raises: StorageError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with \\n line ends, whole or not at all. Raises: StorageError."""
    write_bytes(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Append one line to a log. Raises: StorageError."""
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
    except OSError as error:
        raise storage_error(path, error) from error


def inside(folder: Path, name: str, refuse: Callable[[str, str], Exception]) -> Path:
    """Resolve `name`, read from a file or a request, below `folder`.

    Args:
        refuse: makes the error to raise from (problem, advice).
    Raises: whatever `refuse` returns, if the name is absolute or leads out of the folder.
    """
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise refuse(f'"{name}" leads out of {folder}', "Use a name inside that folder.")
    return path
