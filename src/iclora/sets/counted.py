"""Numbers and labels that count texts, in any script: 1. 2. 3., ① ②, Scene 1:, 第一张图：, a) b).

People number the lines of a file and models the panels of a set. A number is known by counting: it
stands before every text, behind the same word and before the same sign, and goes on by one. So no
list of words is needed, and words that begin with a number stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["is_counted", "split_at_counts", "without_counts"]

_HEAD = 48
"""Characters in which a number and its label stand."""
_ENCLOSED = "\x01"
"""Stands behind the number of one sign, such as ①, which needs no other sign behind it."""
_HAN = "一二三四五六七八九十"
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
_COUNT = re.compile(
    r"[\s*_`>~]*"
    # Any word, also "No." and the Chinese sign of ordinals; not two, which would be a sentence.
    r"(?P<label>(?:[^\W\d_]{1,16}[.#\s]{0,2}|\#\s?)??)"
    r"(?P<open>[(\[{<【「]?)\s*"
    rf"(?P<number>[0-9]{{1,3}}|[{_HAN}]{{1,2}}|[ivx]{{1,4}}(?![^\W\d_])|[a-l](?![^\W\d_]))"
    # What is counted may stand behind in Chinese and Korean: 第1个场景.
    r"(?P<unit>[\u3400-\u9fff\uac00-\ud7a3]{0,4})"
    r"(?P<of>\s?(?:/|of)\s?[0-9]{1,3})?"
    r"(?P<close>(?:\s?[)\]}>】」])?)[*`]*"
    r"(?:\s?\([^()\n]{1,40}\))?"
    rf"(?P<end>{_ENCLOSED}|\s?[.:、_]+[*`]*|\s+[-–—](?=\s)|\t)?"
    r"(?P<space>\s*)",
    re.IGNORECASE,
)


class _Count(NamedTuple):
    """A number before a text."""

    number: int
    kind: tuple[str, ...]
    """What all numbers of a list have in common: their script, their word and the signs around."""
    end: int
    """Where the text itself begins."""
    sure: bool
    """False for what may be a word: a letter, a Roman or Chinese number."""


def without_counts(texts: Sequence[str], *, first: int | None = None) -> list[str]:
    """The texts without the numbers before them; nothing unless every one has its own.

    Numbers count, from 0 or 1 if `first` is not given, or stand in a growing or constant order if
    they are plain ones with a sign behind them (1. 1. 1., as Markdown has them; 1. 3. 7.).

    Args:
        first: the number that the first text must have.
    """
    found = [_count_of(text) for text in texts]
    counts = [count for count in found if count]
    if not counts or len(counts) < len(texts) or len({count.kind for count in counts}) > 1:
        return []
    numbers = [count.number for count in counts]
    start = numbers[0]
    in_turn = numbers == list(range(start, start + len(numbers)))
    if first is not None and not (in_turn and start == first):
        return []
    if start not in (0, 1) and (len(texts) < 2 or not counts[0].sure):
        return []
    if not in_turn and not (counts[0].sure and numbers == sorted(numbers) and first is None):
        return []
    if len(texts) < 2 and not counts[0].sure:
        return []
    return [text[count.end :] for text, count in zip(texts, counts, strict=True)]


def is_counted(text: str) -> bool:
    """True if a text begins as numbered ones do, by a plain number and a sign behind it."""
    count = _count_of(text)
    return count is not None and count.sure


def split_at_counts(text: str, count: int) -> tuple[str, list[str]] | None:
    """Cut a text at lines that begin with 1 to `count`, each once and in order.

    Returns: what stands before the first, and the parts; None if there are no such lines.
    """
    groups: dict[tuple[str, ...], list[tuple[int, int, int]]] = defaultdict(list)
    for line in re.finditer(r"[^\n]+", text):
        if found := _count_of(line[0]):
            at = line.start()
            groups[found.kind].append((found.number, at, at + found.end))
    for marks in groups.values():
        if [number for number, _, _ in marks] == list(range(1, count + 1)):
            ends = [*(at for _, at, _ in marks[1:]), len(text)]
            parts = [text[start:end] for (_, _, start), end in zip(marks, ends, strict=True)]
            return text[: marks[0][1]], parts
    return None


def _count_of(text: str) -> _Count | None:
    plain, places = _plain(text)
    match = _COUNT.match(plain)
    if match is None:
        return None
    label, shown, end = match["label"].strip(), match["number"].lower(), match["end"] or ""
    closed = match["open"] + match["close"].strip()
    signs = bool(closed or end or match["of"])
    if not signs and label != "#":
        return None
    # "1.5 m" and "a.m." go on without a space; "1.a boat" is a number, as is ①.
    behind = plain[match.end() : match.end() + 1]
    tight = not match["space"] and end != _ENCLOSED
    if tight and (behind.isdecimal() or not (shown.isdecimal() or shown[0] in _HAN)):
        return None
    if tight and end[-1:] not in (":", "\u3001") and not behind.isalpha():
        return None
    number, script = _value(shown)
    if number is None:
        return None
    kind = (script, label.casefold(), match["unit"], closed, end.strip("*` "))
    place = places[match.end()] if match.end() < len(places) else len(text)
    return _Count(number, kind, place, script == "digits")


def _value(shown: str) -> tuple[int | None, str]:
    """A number and its script."""
    if shown.isdecimal():
        return int(shown), "digits"
    if shown[0] in _HAN:
        tens, _, ones = shown.rpartition("十")
        if "十" in shown:
            number = 10 * (_HAN.index(tens) + 1 if tens else 1)
            return number + (_HAN.index(ones) + 1 if ones else 0), "han"
        return (_HAN.index(shown) + 1 if len(shown) == 1 else None), "han"
    if shown in _ROMAN and shown != "c":
        return _ROMAN.index(shown) + 1, "roman"
    return (ord(shown) - ord("a") + 1 if len(shown) == 1 else None), "letters"


def _plain(text: str) -> tuple[str, list[int]]:
    """The beginning of a text in plain digits and signs, and where each of these stands in it."""
    shown: list[str] = []
    places: list[int] = []
    for at, sign in enumerate(text[:_HEAD]):
        if sign in "\ufe0f\u20e3":  # 1️⃣ is a digit and these two.
            put = _ENCLOSED if sign == "\u20e3" else ""
        elif (value := unicodedata.decimal(sign, None)) is not None:
            put = str(value)
        elif unicodedata.category(sign) == "No" and not _is_raised(sign):
            worth = unicodedata.numeric(sign, 0.5)
            put = f"{worth:.0f}{_ENCLOSED}" if worth.is_integer() else sign
        else:
            put = unicodedata.normalize("NFKC", sign)
        shown += put
        places += [at] * len(put)
    return "".join(shown), places


def _is_raised(sign: str) -> bool:
    """True for small numbers above or below the line, as in km²."""
    return bool(re.search("SUPERSCRIPT|SUBSCRIPT|FRACTION", unicodedata.name(sign, "")))
