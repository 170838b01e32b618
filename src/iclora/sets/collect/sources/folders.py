"""Folders and archives of pictures: sets by what their files say, are called, or look like."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from iclora.errors import IcloraError
from iclora.files import natural_key
from iclora.sets.canvas import find_panels
from iclora.sets.caption import has_markers
from iclora.sets.collect.likeness import families, grouped, is_grey, near_duplicates
from iclora.sets.collect.picture import Found, Look, Origin, Picture
from iclora.sets.collect.sources.naming import sets_by_name
from iclora.sets.collect.sources.rows import sets_by_rows
from iclora.sets.collect.sources.wanted import Wanted
from iclora.sets.listing import Files, Problem
from iclora.sets.unread import is_image
from iclora.sets.words import Library, Words

__all__ = ["loose_pictures", "read_folder"]

_MOST_ALIKE = 4000
"""Pictures that are compared with each other at once: all their differences take 128 MB."""
_SHEET = 0.25
"""Difference of a sheet's shape from the canvas's, as a share."""


def read_folder(source: str, listing: Files, want: Wanted) -> list[Found]:
    """Find the sets among the pictures of a folder or an archive.

    In this order: pictures with joint captions are whole sets; what names tell; folders of one
    picture a panel; sheets, in which all gutters show; families that look alike.

    Args:
        source: the folder as it was named.
        listing: its files.
    """
    library = Library(listing, want.recipe)
    # Warnings are of tables of captions; these may be of pairs.
    for problem in (each for each in library.problems if each.severity == "error"):
        want.tell(replace(problem, subject=f"{source}/{problem.subject}"))
    images = [name for name in listing if is_image(name)]
    pictures = {name: _picture(source, listing, library, name, want) for name in images}
    found: list[Found] = []
    left = sorted(pictures, key=natural_key)
    if want.by == "auto":
        joint = [name for name in left if library.has_joint_text(name)]
        for name in joint:
            whole = (replace(pictures[name], words=""),)
            scene = pictures[name].origin.name
            found.append(Found(whole, scene, "joint caption", pictures[name].words, True))
        used = set(joint)
        for row in sets_by_rows(listing, want.panels):
            if not used & set(row.names):
                used |= set(row.names)
                found.append(
                    _of_row(source, [pictures[name] for name in row.names], row.words, want)
                )
        left = [name for name in left if name not in used]
    if want.by in ("auto", "name"):
        found, left = _by_name(source, pictures, library, left, want, found)
    elif want.by == "order":
        found, left = _by_order(source, pictures, left, want)
    if want.by in ("auto", "sheet"):
        sheets = [name for name in left if _is_sheet(pictures[name], want)]
        found += [
            Found((pictures[n],), pictures[n].origin.name, "a sheet", composite=True)
            for n in sheets
        ]
        left = [name for name in left if name not in set(sheets)]
    if want.by in ("auto", "likeness") and left:
        more, left = _by_likeness(source, [pictures[name] for name in left], want)
        found += more
    _tell_left(source, left, want)
    return found


def _picture(source: str, listing: Files, library: Library, name: str, want: Wanted) -> Picture:
    text = _words(library, name, source, want)
    return Picture(Origin(f"{source}/{name}", _repeats(name)), listing[name].read, text)


def _words(library: Library, name: str, source: str, want: Wanted) -> str:
    return _read(library.use(library.beside(name)), source, want)


def _read(words: Words | None, source: str, want: Wanted) -> str:
    """Words, or none if they cannot be read, which is told."""
    try:
        return words.read() if words else ""
    except IcloraError as error:
        where = f"{source}/{words.files[0] if words else ''}"
        want.tell(Problem(where, error.problem, error.advice, "warning", caption=True))
        return ""


def _repeats(name: str) -> dict[str, int]:
    """How often sd-scripts would train on it, as its folder says: 10_subject."""
    match = re.match(r"(\d{1,4})_", PurePosixPath(name).parent.name)
    return {"repeats": int(match[1])} if match else {}


def _of_row(source: str, pictures: Sequence[Picture], words: str, want: Wanted) -> Found:
    """A set that a table names; its words are of all panels, or of what was made last."""
    joint = has_markers(words, want.recipe.markers)
    own = [replace(picture, words="") for picture in pictures]
    own[-1] = replace(own[-1], words="" if joint else words)
    scene = f"{source}, {PurePosixPath(pictures[0].origin.file).stem}"
    return Found(tuple(own), scene, "a row of a table", words if joint else "")


def _by_name(
    source: str,
    pictures: dict[str, Picture],
    library: Library,
    left: Sequence[str],
    want: Wanted,
    found: list[Found],
) -> tuple[list[Found], list[str]]:
    """What names tell: words in them, or folders of one picture a panel."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in left:
        folders[PurePosixPath(name).parent.as_posix()].append(name)
    sets, rest = sets_by_name(left, want.panels)
    whole = [names for names in folders.values() if len(names) == want.panels]
    # A folder a set says it more plainly than what files in it are called, unless a known word
    # (input, target) or two folders of equal names say that they are columns.
    crossing = any(len({PurePosixPath(n).parent for n in each.names}) > 1 for each in sets)
    if len(whole) == len(folders) > 1 and not crossing:
        found += [
            Found(
                tuple(pictures[name] for name in names),
                f"{source}/{PurePosixPath(names[0]).parent}",
                "a folder",
                _joint(library, names, source, want),
            )
            for names in whole
        ]
        return found, []
    for each in sets:
        chosen = tuple(pictures[name] for name in each.names)
        if not any(picture.words for picture in chosen):
            # 7.txt beside 7.input.png and 7.target.png tells of what was made.
            stem = _shared_start(each.names).rstrip(" ._-([")
            words = _words(library, f"{stem}.png", source, want)
            chosen = (*chosen[:-1], replace(chosen[-1], words=words))
        found.append(Found(chosen, f"{source}, {each.key}", "by name"))
    if guessed := [each for each in sets if each.guessed]:
        want.tell(
            Problem(
                f"{source}/{guessed[0].names[0]}",
                f"names tell which pictures belong together in {len(guessed)} sets, but not which "
                "comes first; the alphabet decides",
                "Look at the sets; rename files to before and after, or to 1 and 2.",
                "warning",
            )
        )
    return found, rest


def _shared_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    return first[: next((i for i, sign in enumerate(first) if last[i : i + 1] != sign), len(first))]


def _joint(library: Library, names: Sequence[str], source: str, want: Wanted) -> str:
    folder = PurePosixPath(names[0]).parent
    words = library.use(library.of_folder("" if folder.name == "" else folder.as_posix(), names))
    return _read(words, source, want)


def _by_order(
    source: str, pictures: dict[str, Picture], left: Sequence[str], want: Wanted
) -> tuple[list[Found], list[str]]:
    """Every so many pictures of a folder, as they come."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in left:
        folders[PurePosixPath(name).parent.as_posix()].append(name)
    found, rest = [], []
    for names in folders.values():
        whole = len(names) // want.panels * want.panels
        for start in range(0, whole, want.panels):
            chosen = names[start : start + want.panels]
            scene = f"{source}/{chosen[0]}"
            found.append(Found(tuple(pictures[n] for n in chosen), scene, "by order"))
        rest += names[whole:]
    return found, rest


def _is_sheet(picture: Picture, want: Wanted) -> bool:
    """True for a joined picture: of the canvas's shape, with a gutter at every seam."""
    look = want.looks.of(picture)
    if look is None:
        return False
    canvas = want.recipe.canvas
    off = (look.size[0] / look.size[1]) / (canvas.width / canvas.height)
    if want.by == "auto" and not 1 - _SHEET < off < 1 / (1 - _SHEET):
        return False
    try:
        panels = find_panels(canvas, picture.open())
    except IcloraError:
        return False
    return panels.unseen == 0 and (want.by == "sheet" or panels.bars > 1)


def _by_likeness(
    source: str, pictures: Sequence[Picture], want: Wanted
) -> tuple[list[Found], list[str]]:
    """Families of pictures that look alike, cut into sets in the order of their names."""
    seen = [
        (picture, look)
        for picture, look in zip(pictures, want.looks.of_all(pictures), strict=True)
        if look is not None
    ]
    twins = {other for _, other in near_duplicates([look for _, look in seen])}
    seen = [pair for number, pair in enumerate(seen) if number not in twins]
    if twins:
        many = "pictures are near-duplicates of others" if len(twins) > 1 else "picture is a copy"
        want.note(f"{source}: {len(twins)} {many} and left out")
    found: list[Found] = []
    rest: list[str] = []
    for start in range(0, len(seen), _MOST_ALIKE):
        portion, found_alike, alone = _alike(source, seen[start : start + _MOST_ALIKE], want)
        rest += [picture.origin.name for picture in alone]
        for number, family in enumerate(found_alike, 1):
            scene = f"{source}, family {start + number}"
            whole = len(family) // want.panels * want.panels
            for first in range(0, whole, want.panels):
                chosen = family[first : first + want.panels]
                found.append(Found(tuple(portion[i][0] for i in chosen), scene, "by likeness"))
            rest += [portion[i][0].origin.name for i in family[whole:]]
    return found, rest


def _alike(
    source: str, seen: Sequence[tuple[Picture, Look]], want: Wanted
) -> tuple[Sequence[tuple[Picture, Look]], list[list[int]], list[Picture]]:
    """The pictures that can be compared, their families, and those that cannot.

    Colours are compared, or what the model sees if there is one.
    """
    if want.looks.seer is None:
        coloured = [pair for pair in seen if not is_grey(pair[1])]
        grey = [picture for picture, look in seen if is_grey(look)]
        if grey:
            first = PurePosixPath(grey[0].origin.file).name
            want.tell(
                Problem(
                    source,
                    f"{len(grey)} without colour, such as {first}, found no family: greys tell "
                    "little of what a picture shows",
                    "Go by name or order, or choose a model as `likeness`.",
                    "warning",
                )
            )
        return coloured, families([look for _, look in coloured]), grey
    rows = want.looks.embedded([picture for picture, _ in seen])
    seen = [pair for pair, row in zip(seen, rows, strict=True) if row is not None]
    known = np.array([row for row in rows if row is not None], dtype=np.float32)
    away = 1 - known @ known.T if len(known) else np.zeros((0, 0), dtype=np.float32)
    return seen, grouped(away, want.looks.seer.most), []


def loose_pictures(source: str, pictures: Sequence[Picture], want: Wanted) -> list[Found]:
    """Sets of pictures that have no names to go by: by order if that is asked for, or likeness."""
    if want.by == "order":
        sets = [pictures[i : i + want.panels] for i in range(0, len(pictures), want.panels)]
        sets = [own for own in sets if len(own) == want.panels]
        return [Found(tuple(own), source, "by order") for own in sets]
    found, rest = _by_likeness(source, pictures, want)
    _tell_left(source, rest, want)
    return found


def _tell_left(source: str, left: Sequence[str], want: Wanted) -> None:
    if left:
        shown = ", ".join(PurePosixPath(name).name for name in left[:4])
        shown += ", ..." if len(left) > 4 else ""
        want.tell(
            Problem(
                source,
                f"{len(left)} picture{'s' * (len(left) > 1)} found no partners ({shown})",
                "Name those that belong together alike, as in x_before.png and x_after.png.",
                "warning",
            )
        )
