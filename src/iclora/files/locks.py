"""One process at a time in a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iclora.files import Refusal, storage_error

try:
    import fcntl
except ImportError:  # Windows has no such locks; there the last rename fails for the second.
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "alone", "building", "is_held"]

LOCK = ".lock"
"""Name of the file that a process holds while it writes a folder."""

_BUILDING = threading.RLock()


@contextmanager
def building() -> Iterator[None]:
    """Let one thread at a time build models.

    transformers and diffusers change torch for the whole process meanwhile: another thread's
    modules would get no weights.
    """
    with _BUILDING:
        yield


@contextmanager
def alone(place: Path, folder: Path, refuse: Refusal) -> Iterator[None]:
    """Let one process at a time write a folder.

    The file left by a killed process locks nothing, and is taken over.

    Args:
        place: the file to hold, inside the folder or beside it; its folders are made. All that was
            made is removed at the end, if nothing else is in it.
        refuse: makes the error for the second process.
    Raises: what `refuse` makes; StorageError if the file cannot be written.
    """
    made = [path for path in place.parents if not path.exists()]
    try:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            held = _hold(place, folder, refuse)
        except OSError as error:
            raise storage_error(place, error) from error
        try:
            yield
        finally:
            _release(place, held)
    finally:
        for path in made:
            with suppress(OSError):  # Something is in it now.
                path.rmdir()


def is_held(place: Path) -> bool:
    """True if another process holds this file just now; nothing is written."""
    if not fcntl:
        return place.exists()
    try:
        seen = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(seen, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(seen)
    return False


def _hold(place: Path, folder: Path, refuse: Refusal) -> int:
    while True:
        held = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network disks know no locks.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(held)
                raise refuse(
                    f"another process is writing {folder} just now",
                    "Wait for it, or choose another folder.",
                ) from error
        # The process before may have removed the file between the two calls.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), place.stat()):
                return held
        os.close(held)


def _release(place: Path, held: int) -> None:
    if os.name == "nt":  # An open file is not removed there.
        os.close(held)
    with suppress(OSError):
        place.unlink()
    if os.name != "nt":
        os.close(held)
