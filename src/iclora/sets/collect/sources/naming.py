"""Pictures that belong together by their names: x_before.png with x_after.png, a/1 with b/1.

A name is a list of words. Files are of one set if their names are equal but for one word, and the
set's panels are called by that word, its role. So any words will do; the known ones only decide
the order, and settle what is ambiguous.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from iclora.files import natural_key

__all__ = ["Named", "in_order", "sets_by_name"]

_KNOWN: dict[int, tuple[str, ...]] = {
    -1: (
        "before input inputs source sources src control controls condition conditioning cond",
        "original originals orig old raw photo photos photograph reference ref clear day empty",
        "logo from start left lq low noisy unedited unretouched plain begin first",
    ),
    1: (
        "after output outputs target targets tgt edited edit edits result results new retouched",
        "drawing illustration illustrations sandstorm sparklers night furnished product to end",
        "right hq high gt truth clean final done last applied changed modified",
    ),
}
"""Words of what comes first, and of what comes last."""
_RANKS = {word: rank for rank, lines in _KNOWN.items() for line in lines for word in line.split()}
_BARE = ""
"""The role of a file whose name has one word less than the others': x.png beside x_edited.png."""

Key = tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """Files of one set by their names."""

    key: str
    """What their names share."""
    names: tuple[str, ...]
    """In the order of panels."""
    guessed: bool = False
    """True if the order is no better than the alphabet's."""


def sets_by_name(names: Iterable[str], panels: int) -> tuple[list[Named], list[str]]:
    """Find sets of so many panels by the names of files.

    Args:
        names: paths with slashes.
    Returns: the sets, and the names that are in none.
    """
    left = sorted(names, key=natural_key)
    found: list[Named] = []
    while len(left) >= panels:
        groups = _grouped(left)
        best = _best_roles(groups, panels)
        if best is None:
            break
        sets, used = _take(groups, *best, panels)
        if not sets:
            break
        found += sets
        left = [name for name in left if name not in used]
    more, left = _numbered(left, panels)
    found += more
    found.sort(key=lambda each: natural_key(each.names[0]))
    return found, left


def in_order(names: Iterable[str]) -> list[str]:
    """Names of columns in the order of the panels they hold: source before target."""

    def place(name: str) -> int:
        return next((rank for word in _words(name) if (rank := _rank(word))), 0)

    return sorted(names, key=place)


def _words(name: str) -> list[str]:
    """The words of a path, in small letters: "a/ShotBefore 01.png" is a / shot before 01."""
    stem = PurePosixPath(name).with_suffix("").as_posix() if name else ""
    parts: list[str] = []
    for piece in re.findall(r"/|[^\W\d_]+|\d+", stem):
        # Words written together: shotBefore, ShotA.
        parts += re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+|.", piece)
    return [part.lower() for part in parts]


def _grouped(names: Sequence[str]) -> dict[tuple[Key, int], dict[str, str]]:
    """Files under what is left of their names without one word: {(rest, place): {word: file}}.

    A word that stands first or last may be missing, so both have one place; folders have their own.
    """
    groups: dict[tuple[Key, int], dict[str, str]] = defaultdict(dict)
    for name in names:
        words = _words(name)
        start = len(words) - words[::-1].index("/") if "/" in words else 0
        for at, word in enumerate(words):
            if word == "/":
                continue
            rest = (*words[:at], *words[at + 1 :])
            groups[rest, at if at < start else -1].setdefault(word, name)
        groups[tuple(words), -1].setdefault(_BARE, name)
    return groups


def _best_roles(
    groups: dict[tuple[Key, int], dict[str, str]], panels: int
) -> tuple[Key, int] | None:
    """The words that most sets have for their panels, in their order, and the place of these words
    in names; None if there are none."""
    counts: dict[tuple[Key, int], int] = defaultdict(int)
    for (rest, place), files in groups.items():
        roles = set(files)
        if not _tells(rest) or roles == {_BARE}:
            continue
        if len(roles) == panels:
            counts[tuple(sorted(roles)), place] += 1
        elif len(roles) > panels:
            # Further files of a set, such as masks, have other roles than the known ones.
            usual = {role for role in roles if _rank(role) is not None}
            if len(usual) == panels:
                counts[tuple(sorted(usual)), place] += 1

    def worth(found: tuple[Key, int]) -> tuple[bool, int, bool]:
        roles, place = found
        known = [_rank(role) is not None for role in roles]
        return all(known), counts[found] * (2 if any(known) else 1), place == -1

    for found in sorted(counts, key=worth, reverse=True):
        # Two sets show a habit, one shows it only by words that everybody uses.
        if worth(found)[0] or counts[found] > 1 or _counted(found[0]):
            return _ordered(found[0]), found[1]
    return None


def _tells(rest: Key) -> bool:
    """True if what files share names a set: it is more than folders and nothing."""
    return any(word != "/" for word in rest)


def _counted(roles: Key) -> bool:
    """True for 1, 2, 3 (or 0, 1, 2): the panels of a set are numbered."""
    if not all(role.isdigit() for role in roles):
        return False
    numbers = sorted(map(int, roles))
    return numbers in ([*range(1, len(numbers) + 1)], [*range(len(numbers))])


def _rank(role: str) -> int | None:
    """-1 for words of what comes first, 1 for what comes last, None for others."""
    return _RANKS.get(role)


def _ordered(roles: Key) -> Key:
    def place(role: str) -> tuple[int, bool, object]:
        # What has no word of its own is what the others were made of.
        return _rank(role) or 0, role != _BARE, natural_key(role)

    return tuple(sorted(roles, key=place))


def _take(
    groups: dict[tuple[Key, int], dict[str, str]], roles: Key, place: int, panels: int
) -> tuple[list[Named], set[str]]:
    used: set[str] = set()
    sets = []
    for (rest, own), files in groups.items():
        names = [files[role] for role in roles if role in files]
        if own != place or len(names) < panels or not _tells(rest) or used & set(names):
            continue
        used |= set(names)
        guessed = not any(_rank(r) is not None or r == _BARE or len(r) == 1 for r in roles)
        guessed = guessed and not all(role.isdigit() for role in roles)
        sets.append(Named(" ".join(w for w in rest if w != "/"), tuple(names), guessed))
    return sets, used


def _numbered(names: Sequence[str], panels: int) -> tuple[list[Named], list[str]]:
    """Longer rows of one name and a number: shot-1 to shot-7 are two sets of three."""
    rows: dict[Key, list[str]] = defaultdict(list)
    for name in names:
        words = _words(name)
        if words and words[-1].isdigit() and _tells(tuple(words[:-1])):
            rows[tuple(words[:-1])].append(name)
    rows = {key: found for key, found in rows.items() if len(found) >= panels}
    if len(rows) < 2:  # One row is a folder of pictures from a camera.
        return [], list(names)
    sets: list[Named] = []
    used: set[str] = set()
    for key, found in rows.items():
        for start in range(0, len(found) - panels + 1, panels):
            chosen = found[start : start + panels]
            used |= set(chosen)
            sets.append(Named(" ".join(w for w in key if w != "/"), tuple(chosen)))
    return sets, [name for name in names if name not in used]
