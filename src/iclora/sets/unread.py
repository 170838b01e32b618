"""What lies in a dataset and is not read, by kind, each with its reason and the way out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal

from iclora.errors import DatasetError
from iclora.sets.archives import HEAD, container_of
from iclora.sets.kinds import HEIC_ADVICE, IMAGE_SUFFIXES, kind_of
from iclora.sets.listing import Files, Problem
from iclora.sets.words import JOINT

__all__ = ["as_lost_sets", "is_image", "name_unread"]

_PICTURES = (
    "avif gif jxl jp2 j2k jpf jpx psd psb xcf kra svg eps ai tga exr hdr dds ico dib",
    "raw cr2 cr3 nef arw dng orf rw2 raf pef qoi ppm pgm pnm pcx apng clip procreate",
)
_TABLES = ("parquet arrow feather tfrecord tfrecords lance h5 hdf5 lmdb mdb beton sqlite db",)
_FILMS = ("mp4 mov webm mkv avi m4v",)
# Documents, programs and what iclora itself writes beside sets.
_QUIET = ("md rst html htm py ipynb sh license gitattributes cff",)
_TEXTS = ("md rst rtf doc docx odt html htm text log json yaml yml",)
_QUIET_NAMES = ("readme readme.txt license license.txt licence licence.txt caption-failures.json",)
_ENDINGS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WebP": ".webp",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "HEIC": ".heic",
}

Kind = tuple[str, str, Literal["error", "warning"]]


def name_unread(listing: Files, names: Iterable[str], root: PurePosixPath) -> list[Problem]:
    """Say of files that nothing reads what they are and what to do, once a folder and kind.

    Args:
        names: of the files.
        root: the folder whose pictures are read.
    """
    groups: dict[tuple[str, Kind], list[str]] = defaultdict(list)
    for name in names:
        kind = _kind(listing, name, root)
        if kind is not None:
            groups[PurePosixPath(name).parent.as_posix(), kind].append(name)
    problems = []
    for (folder, (what, advice, severity)), members in groups.items():
        subject = members[0] if len(members) == 1 or folder == "." else folder
        several = f"{len(members)} {what}" if len(members) > 1 else f"one {what}"
        several = several.replace("{s}", "s" if len(members) > 1 else "")
        told = ", ".join(PurePosixPath(m).name for m in members[:4])
        told += ", ..." if len(members) > 4 else ""
        verb = "are" if len(members) > 1 else "is"
        problems.append(Problem(subject, f"{several} {verb} not read ({told})", advice, severity))
    return problems


def _kind(listing: Files, name: str, root: PurePosixPath) -> Kind | None:
    path = PurePosixPath(name)
    if _is_one_of(path.name.lower(), _QUIET_NAMES):
        return None
    ending = path.suffix.lower().lstrip(".")
    if is_image(name):
        where = f'outside "{root}", the folder of its iclora.toml'
        return _of(f"picture{{s}} {where}", f"Open one dataset at a time: {path.parts[0]}.")
    named, found = _is_one_of(ending, _PICTURES), _sniff(listing, name)
    if named and found == "TIFF":  # as what cameras write raw begins
        found = None
    right = _ENDINGS.get(found or "", "")
    if found and right in IMAGE_SUFFIXES:
        shown = path.suffix or "(none)"
        return _of(f"{found} picture{{s}} with the ending {shown}", f"Rename to {right}.")
    if found == "HEIC" or (not found and ending in ("heic", "heif", "hif")):
        return _of(f"{'HEIC' if found else ending.upper()} picture{{s}}", HEIC_ADVICE)
    if found or named:
        kind = ending.upper() if named else found
        return _of(f"{kind} picture{{s}}", "Export as PNG or JPEG, or remove.")
    if _is_one_of(ending, _TABLES):
        return _of(
            f".{ending} file{{s}} of a dataset in another form",
            "Write its pictures into files and its texts beside them, or into metadata.jsonl.",
        )
    if container := container_of(path.name, _head(listing, name)):
        shown = "" if ending in container.name.lower() else f" ({path.suffix})"
        advice = f"{container.advice[:-1]}; or remove it."
        if container.name.startswith("zip"):
            advice = "Unpack it with `unzip FILE`, or give it by itself, or remove it."
        return _of(f"{container.name}{{s}}{shown}", advice)
    if ending == "npz":
        beside = any(
            is_image(other) and PurePosixPath(other).parent == path.parent for other in listing
        )
        return _of(
            "file{s} of numbers, perhaps another trainer's cache",
            "Remove it, or write its pictures into files.",
            "warning" if beside else "error",
        )
    if path.stem.lower() in JOINT and (not ending or _is_one_of(ending, _TEXTS)):
        return _of("text{s} of another kind", "Save it as plain text: caption.txt.", "warning")
    own = any(path.with_suffix(image).as_posix() in listing for image in IMAGE_SUFFIXES)
    if own and _is_one_of(ending, _TEXTS):
        return _of("text{s} of another kind", "Save each as plain text, with .txt.", "warning")
    if _is_one_of(ending, _QUIET):
        return None
    if _is_one_of(ending, _FILMS):
        return _of(
            "film{s}",
            "`iclora collect FILE` makes image sets of it; or save the frames you mean as PNG, or "
            "remove it.",
            "warning",
        )
    what = f"file{{s}} with the ending {path.suffix}" if ending else "file{s} without an ending"
    return _of(what, "Remove what does not belong here.", "warning")


def is_image(name: str) -> bool:
    """True if a file is read as a picture."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def as_lost_sets(problems: Iterable[Problem], sets: Iterable[str]) -> list[Problem]:
    """Warnings as errors where what they concern is a folder called as those of sets are.

    A set whose pictures are gone is no matter to pass over.

    Args:
        sets: the folders of sets.
    """
    sets = set(sets)
    usual = {re.sub(r"\d+", "0", folder) for folder in sets}

    def is_lost(problem: Problem) -> bool:
        path = PurePosixPath(problem.subject)
        folders = {path.as_posix(), path.parent.as_posix()} - sets
        return any(re.sub(r"\d+", "0", folder) in usual for folder in folders)

    return [
        replace(p, severity="error") if p.severity == "warning" and is_lost(p) else p
        for p in problems
    ]


def _is_one_of(word: str, lists: Sequence[str]) -> bool:
    return any(word in words.split() for words in lists)


def _of(what: str, advice: str, severity: Literal["error", "warning"] = "error") -> Kind:
    return what, advice, severity


def _sniff(listing: Files, name: str) -> str | None:
    """The kind of a picture by its first bytes."""
    return kind_of(_head(listing, name)[:64])


def _head(listing: Files, name: str) -> bytes:
    try:
        return listing[name].head(HEAD)
    except DatasetError:
        return b""
