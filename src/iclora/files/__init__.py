"""Files that are whole or absent: write to a temporary name, flush, rename."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TypeAlias

from iclora.errors import IcloraError, StorageError
from iclora.files.digests import digest, digest_each, digest_file
from iclora.files.names import fault_on_windows

try:
    import fcntl
except ImportError:  # Windows has no such locks; what a killed process left stays there.
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Refusal",
    "append_line",
    "cache_home",
    "check_file",
    "check_folder",
    "clear_leftovers",
    "damaged_name",
    "digest",
    "digest_each",
    "digest_file",
    "inside",
    "is_leftover",
    "make_cache",
    "natural_key",
    "place",
    "replacing",
    "set_aside",
    "storage_error",
    "work_folder",
    "write_bytes",
    "write_text",
]

Refusal: TypeAlias = Callable[[str, str], IcloraError]
"""Makes the error to raise from (problem, advice), such as SettingsError."""


def natural_key(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort key under which panel-2 comes before panel-10; numbers may have any length."""
    found = []
    for piece in re.findall(r"[0-9]+|[^0-9]+", name.lower()):
        number = piece[0] in "0123456789"
        plain = piece.lstrip("0") if number else ""
        found.append((not number, len(plain), f"{plain}\0{piece}"))
    return tuple(found)


def cache_home() -> Path:
    """The folder for things that can be made again: $ICLORA_CACHE, or ~/.cache/iclora."""
    own = os.environ.get("ICLORA_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return Path(shared, "iclora")
    try:
        return Path.home() / ".cache" / "iclora"
    except RuntimeError as error:  # Users of containers often have no home at all.
        raise StorageError(
            "there is no home folder to keep downloads and caches in",
            "Set the environment variable ICLORA_CACHE to a folder you may write to.",
        ) from error


# -- paths and places -----------------------------------------------------------------------------


def place(path: str, *, windows: bool = os.name == "nt") -> str:
    """A path as people write it, `~` expanded.

    Args:
        windows: True if its names must be such as Windows has.
    Raises: ValueError in plain words for a path that no file can have: an unknown user's home, a
        null character, a loop of links, a name that is too long; and for one that would make a
        folder nobody meant, such as $HOME or C:.
    """
    if "\0" in path:
        raise ValueError("the path holds a null character")
    if path.startswith("~"):
        home = os.path.expanduser(path)  # noqa: PTH111 (Path's own raises RuntimeError)
        if home.startswith("~"):
            user = path.split("/", 1)[0]
            raise ValueError(
                f'there is no home folder "{user}"; write ./{user} for a file so named'
            )
        folder = os.path.expanduser(path.split("/", 1)[0])  # noqa: PTH111
        if not Path(folder).is_dir():
            raise ValueError(f"the home folder {folder} is not there")
        path = home
    for name in re.split(r"[\\/]", re.sub(r"^[A-Za-z]:", "", path)) if windows else ():
        if name and (fault := fault_on_windows(name)):
            raise ValueError(f'"{name}" is {fault}; use another name')
    try:
        os.stat(path)  # noqa: PTH116 (a string that may be no path at all)
    except UnicodeEncodeError:
        raise ValueError("the name is not UTF-8; rename the file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError("the path is longer than this system allows") from None
        if error.errno == errno.ELOOP:
            raise ValueError("the path is a link that leads back to itself") from None
        for form, problem in _UNMEANT:
            if found := re.search(form, path):
                raise ValueError(problem.format(found[0])) from None
    return path


_UNMEANT = (
    (
        r"\$\{?[A-Z_]{2,}\}?|%[A-Z_]{2,}%",
        "{} is not filled in here, as a shell would; write the whole path, or ~ for your home",
    ),
    (r"^[\"'\u201c\u2018].*[\"'\u201d\u2019]$", "the quotes around {} would be part of its name"),
    (r"^(?:file|smb|nfs|afp)://", "it is an address ({}) and no path; leave that out"),
    (r"^\s|\s$", "the path begins or ends with white space"),
    (
        "[\b\t\n\v\f\r]",
        "{!r} stands in it: a backslash in double quotes begins an escape; write forward slashes, "
        "or single quotes",
    ),
    *(
        ((r"^[A-Za-z]:[\\/]|^\\\\", "{} begins a path of Windows; in WSL, C:\\ is /mnt/c/"),)
        if os.name != "nt"
        else ()
    ),
)
"""What nobody means by a path that is not there."""


# -- writing ------------------------------------------------------------------------------------


def check_folder(path: str | Path, setting: str | None = None) -> None:
    """Find out whether things can be written into a folder that may not be there yet.

    Nothing is left behind.

    Args:
        setting: the one that names it.
    Raises: StorageError.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        problem = f"{path} is an address, and only folders of this machine are written to"
        raise StorageError(problem, "Choose a folder, and copy it there afterwards.", setting)
    path = Path(path)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # Names that no file can have are refused here.
        near = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
        if not near.is_dir():
            what = "a file" if near.is_file() else "not a folder"
            raise StorageError(f"{near} is {what}", "Choose a folder you may write to.", setting)
        with tempfile.TemporaryFile(dir=near):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise StorageError(
            f"cannot write into {path}: {why}", "Choose a folder you may write to.", setting
        ) from error


def check_file(path: str | Path, setting: str | None = None) -> None:
    """Find out whether a file can be written or replaced; clear what a kill left of it.

    Args:
        setting: the one that names it.
    Raises: StorageError, for folders and devices too.
    """
    path = Path(path)
    check_folder(path.parent, setting)
    _refuse_special(path, setting)
    clear_leftovers(path.parent, path.name)


def _refuse_special(path: Path, setting: str | None = None) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "not a regular file"
            raise StorageError(f"{path} is {what}", "Choose another file.", setting)


def make_cache() -> Path:
    """`cache_home`, made if it was not there. Raises: StorageError."""
    home = cache_home()
    try:
        check_folder(home)
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, StorageError) as error:
        why = error.problem if isinstance(error, StorageError) else str(error)
        raise StorageError(
            f"nothing can be kept between runs: {why}",
            "Set the environment variable ICLORA_CACHE to a folder you may write to.",
        ) from error
    return home


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds.

    A killed process or a full disk leaves the old file, or none, never half a file; what a killed
    process left beside it, `clear_leftovers` removes.

    Raises: StorageError if the disk is full, the folder cannot be written, or `path` is a device.
    """
    # Its own name counts for little: it is cut so that a name of 255 bytes can be written too. The
    # number of a process is not unique among containers that share a folder.
    own = path.name.encode(errors="surrogateescape")[:200].decode(errors="ignore")
    if not own:  # "." and "/"
        _refuse_special(path)
    temporary = path.with_name(f".{own}.{uuid.uuid4().hex[:12]}.tmp")
    held = -1
    try:
        _refuse_special(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _lock(held)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if os.name == "nt":  # An open file is not renamed there.
            os.close(held)
            held = -1
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if held != -1:
            os.close(held)
        with suppress(OSError):  # it was renamed, or its folder could not even be made
            temporary.unlink()


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `folder`; rename it to `folder` if the block succeeds.

    Raises: StorageError if `folder` exists or cannot be written.
    """
    work = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}.tmp")
    held = -1
    try:
        if os.path.lexists(folder):
            raise FileExistsError(errno.EEXIST, "it exists already")
        work.mkdir(parents=True)
        if fcntl:
            held = os.open(work, os.O_RDONLY)
            _lock(held)
        yield work
        work.rename(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        if held != -1:
            os.close(held)
        shutil.rmtree(work, ignore_errors=True)


def clear_leftovers(folder: Path, name: str | None = None, *, alone: bool = False) -> None:
    """Remove what killed processes left half-written in a folder; what is being written stays.

    Every writer holds a lock on what it writes, which ends with its process.

    Args:
        name: of the file or folder that was to be written; by default any.
        alone: True if no other process writes into the folder now (`locks.alone`).
    """
    if not fcntl or not folder.is_dir():
        return
    for path in folder.glob(
        ".*.tmp" if name is None else f".{glob.escape(name)}[.-]????????????.tmp"
    ):
        if not is_leftover(path.name) or path.is_symlink():
            continue
        with suppress(OSError):
            if not alone and time.time() - path.stat().st_mtime < 1:
                continue  # It may be another process's, not locked yet.
            held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(held)


def is_leftover(name: str) -> bool:
    """True for names that only a killed process leaves behind, or one that writes just now."""
    return bool(re.fullmatch(r"\..+[.-][0-9a-f]{12}\.tmp", name))


def damaged_name(path: Path) -> Path:
    """A free name for what is damaged of a file: damaged-NAME, or damaged-NAME-2 and on."""
    names = (f"damaged-{path.name}" + (f"-{n}" if n > 1 else "") for n in count(1))
    return next(place for place in map(path.with_name, names) if not os.path.lexists(place))


def set_aside(path: Path) -> Path:
    """Rename what is damaged: nothing finds it any more, and nobody has lost it.

    Returns: its new place beside the old one. Raises: StorageError.
    """
    free = damaged_name(path)
    try:
        path.rename(free)
    except OSError as error:
        raise storage_error(free, error) from error
    return free


def _lock(held: int) -> None:
    """Show others that this is being written; the lock ends with the process, however that ends."""
    if fcntl:
        with suppress(OSError):  # Some network disks know no locks.
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
    """Append one line to a log, also to one that a kill cut short. Raises: StorageError."""
    try:
        with path.open("ab+") as file:
            torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")
    except OSError as error:
        raise storage_error(path, error) from error


def inside(folder: Path, name: str, refuse: Callable[[str, str], Exception]) -> Path:
    """Resolve `name`, read from a file or a request, below `folder`.

    Args:
        refuse: makes the error to raise from (problem, advice).
    Raises: whatever `refuse` returns, if the name is absolute or leads out of the folder.
    """
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise refuse(f'"{name}" is no name of a file: {error}', "Use another name.") from error
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise refuse(f'"{name}" leads out of {folder}', "Use a name inside that folder.")
    return path
