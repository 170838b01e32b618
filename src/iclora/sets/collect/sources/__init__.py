"""Where sets come from: folders and archives, published data sets, videos, pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from iclora.errors import IcloraError
from iclora.sets.collect.picture import Found
from iclora.sets.collect.sources.folders import read_folder
from iclora.sets.collect.sources.pages import read_pdf, read_pptx
from iclora.sets.collect.sources.tables import read_parquet
from iclora.sets.collect.sources.tars import COMPRESSED, inflate, list_tar
from iclora.sets.collect.sources.video import VIDEO_SUFFIXES, read_video
from iclora.sets.collect.sources.wanted import Wanted
from iclora.sets.listing import Files, Problem, list_files
from iclora.sets.unread import is_image, name_unread

__all__ = ["Wanted", "read_source"]

Reader = Callable[[str, Path, Wanted], list[Found]]


def read_source(source: str, want: Wanted) -> list[Found]:
    """Find the sets in one source, and in the videos, decks and tables that a folder holds.

    What is wrong with one is told, and ends nothing else.
    """
    path = Path(source)
    found: list[Found] = []
    inside: list[str] = []
    if path.is_dir():
        try:
            listing = _listed(path, want)[0]
        except IcloraError:
            listing = {}
        inside = [name for name in listing if _reader(name) is not None]
    for name in inside:
        found += _read(f"{source}/{name}", path / name, want)
    if not path.is_dir() and not path.is_file():
        want.tell(Problem(source, "there is no such file or folder", "Check the path."))
        return []
    return found + _read(source, path, want)


def _read(source: str, path: Path, want: Wanted) -> list[Found]:
    reader = _reader(path.name) if path.is_file() else None
    try:
        if reader is not None:
            return reader(source, path, want)
        listing, problems = _listed(path, want)
        unread = [n for n in listing if not _is_read(n)]
        for problem in [*problems, *name_unread(listing, unread, PurePosixPath())]:
            want.tell(problem)
        return read_folder(source, listing, want)
    except IcloraError as error:
        want.tell(Problem(source, error.problem, error.advice))
        return []


def _listed(path: Path, want: Wanted) -> tuple[Files, list[Problem]]:
    """The files of a source without those of the collection itself, which may lie inside it."""
    listing, problems = list_files(path)
    real = path.resolve()
    if path.is_dir() and want.pool.out.is_relative_to(real):
        own = want.pool.out.relative_to(real).as_posix()
        listing = {
            n: file for n, file in listing.items() if not n.startswith((f"{own}/", own + "-"))
        }
        problems = [p for p in problems if p.subject != own and not p.subject.startswith(f"{own}/")]
    return listing, problems


def _is_read(name: str) -> bool:
    """True for pictures, words, and what holds them."""
    return is_image(name) or name.lower().endswith((*_WORDS, *_READERS, *VIDEO_SUFFIXES))


def _reader(name: str) -> Reader | None:
    """What reads a file by its ending; None for pictures, and for archives of them."""
    ending = name.lower()
    if ending.endswith(VIDEO_SUFFIXES):
        return read_video
    return next((read for suffix, read in _READERS.items() if ending.endswith(suffix)), None)


def _read_tar(source: str, path: Path, want: Wanted) -> list[Found]:
    listing, problems = list_tar(path, source)
    for problem in problems:
        want.tell(problem)
    return read_folder(source, listing, want)


def _read_compressed(source: str, path: Path, want: Wanted) -> list[Found]:
    about = path.stat()
    key = ("tar", str(path.resolve()), str(about.st_size), str(about.st_mtime_ns))
    folder = want.pool.folder(*key, make=partial(inflate, path))
    return _read_tar(source, folder / "data.tar", want)


_WORDS = (".txt", ".caption", ".json", ".jsonl", ".csv", ".toml")
_READERS: dict[str, Reader] = {
    ".tar": _read_tar,
    **dict.fromkeys(COMPRESSED, _read_compressed),
    ".pdf": read_pdf,
    ".pptx": read_pptx,
    ".parquet": read_parquet,
}
