"""Where sets come from: folders and archives, published data sets, videos, pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from iclora.errors import IcloraError
from iclora.sets.collect.picture import Found
from iclora.sets.collect.sources.folders import read_folder
from iclora.sets.collect.sources.pages import read_pdf, read_pptx
from iclora.sets.collect.sources.tables import read_parquet
from iclora.sets.collect.sources.tars import list_tar
from iclora.sets.collect.sources.video import VIDEO_SUFFIXES, read_video
from iclora.sets.collect.sources.wanted import Wanted
from iclora.sets.listing import Problem, list_files

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
            listing, _ = list_files(path)
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
        listing, problems = list_files(path)
        for problem in problems:
            want.tell(problem)
        return read_folder(source, listing, want)
    except IcloraError as error:
        want.tell(Problem(source, error.problem, error.advice))
        return []


def _reader(name: str) -> Reader | None:
    """What reads a file by its ending; None for pictures, and for archives of them."""
    ending = name.lower()
    if ending.endswith(VIDEO_SUFFIXES):
        return read_video
    return next((read for suffix, read in _READERS.items() if ending.endswith(suffix)), None)


def _read_tar(source: str, path: Path, want: Wanted) -> list[Found]:
    listing, problems = list_tar(path)
    for problem in problems:
        want.tell(problem)
    return read_folder(source, listing, want)


_READERS: dict[str, Reader] = {
    ".tar": _read_tar,
    ".pdf": read_pdf,
    ".pptx": read_pptx,
    ".parquet": read_parquet,
}
