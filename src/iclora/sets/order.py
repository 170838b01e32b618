"""Which picture of a folder is which panel, by their names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

from iclora.files import natural_key

__all__ = ["panel_order"]

_RANKS = {
    word: rank
    for rank, words in (
        (1, "first one begin beginning start opening before input original source top upper left"),
        (2, "second two middle center centre mid"),
        (3, "third three"),
        (4, "fourth four"),
        (5, "fifth five"),
        (6, "sixth six"),
        (9, "end ending last final finish closing after output result target bottom lower right"),
    )
    for word in words.split()
}
_SHORT = {
    **{"tl": ("top", "left"), "tr": ("top", "right"), "bl": ("bottom", "left")},
    **{"br": ("bottom", "right"), "l": ("left",), "r": ("right",)},
}
_ROWS = ("top", "upper", "bottom", "lower")
_HAN = "一二三四五六七八九十"


def panel_order(names: Sequence[str], markers: Sequence[str]) -> tuple[list[str], bool]:
    """The pictures of one set in the order of its panels.

    In this order, what is the first to tell all of them apart: the names of the markers (top-left),
    numbers in any script, words for places in a row (first, middle, before), the alphabet.

    Args:
        names: paths of pictures.
        markers: of the recipe, such as "[TOP-LEFT]".
    Returns: the names in order; False if only the alphabet says so, and not by single letters.
    """
    bare = [name.rpartition("/")[2].partition(".")[0] for name in names]
    if all(stem.isascii() and stem.isdigit() for stem in bare) and not any(
        marker.strip("[]").isdigit() for marker in markers
    ):
        return sorted(names, key=natural_key), True  # As nearly all sets are, and at once.
    stems = {name: _words(PurePosixPath(name).stem) for name in names}
    by_marker = {name: _marker_of(words, markers) for name, words in stems.items()}
    if None not in by_marker.values() and len(set(by_marker.values())) == len(names):
        return sorted(names, key=lambda name: by_marker[name] or 0), True
    plain = {name: " ".join(words) for name, words in stems.items()}
    if len({re.sub(r"[0-9]+", "0", text) for text in plain.values()}) == 1:
        return sorted(names, key=lambda name: natural_key(plain[name])), True
    ranks = {name: _rank(words) for name, words in stems.items()}
    if all(ranks.values()) and len(set(ranks.values())) == len(names):
        return sorted(names, key=lambda name: ranks[name]), True
    ordered = sorted(names, key=natural_key)
    numbered = all(re.search(r"[0-9]", text) for text in plain.values())
    return ordered, numbered or _by_letters(list(plain.values()))


def _words(stem: str) -> list[str]:
    """The words and numbers of a name, in small letters and plain digits."""
    stem = unicodedata.normalize("NFKC", stem)
    stem = "".join(
        str(unicodedata.digit(sign)) if unicodedata.digit(sign, None) is not None else sign
        for sign in stem
    )
    stem = re.sub(rf"(?<![\u3400-\u9fff])[{_HAN}](?![{_HAN}])", _han, stem)
    stem = re.sub(rf"(?<=\u7b2c)[{_HAN}](?![{_HAN}])", _han, stem)
    words = [word.lower() for word in re.findall(r"[^\W\d_]+|[0-9]+", stem)]
    return [part for word in words for part in _SHORT.get(word, (word,))]


def _han(found: re.Match[str]) -> str:
    return str(_HAN.index(found[0]) + 1)


def _marker_of(words: Sequence[str], markers: Sequence[str]) -> int | None:
    """The place of the marker that stands among the words of a name; None without."""
    line = f"-{'-'.join(words)}-".replace("centre", "center")
    line = re.sub(r"-(top|bottom)(left|right)-", r"-\1-\2-", line)
    line = re.sub(r"-(left|right)-(top|bottom)-", r"-\2-\1-", line)
    found = [
        (len(marker), place)
        for place, marker in enumerate(markers)
        if f"-{marker.strip('[]').lower().replace('centre', 'center')}-" in line
    ]
    return max(found)[1] if found else None


def _rank(words: Sequence[str]) -> tuple[int, ...]:
    """The places in a row that a name tells of, that of rows first; nothing if it tells none."""
    told = [word for word in words if word in _RANKS]
    told.sort(key=lambda word: word not in _ROWS)
    return tuple(_RANKS[word] for word in told)


def _by_letters(names: Sequence[str]) -> bool:
    """True if names differ by one letter alone: a, b, c."""
    return len({re.sub(r"(?<![^\W\d_])[^\W\d_](?![^\W\d_])", "a", name) for name in names}) == 1
