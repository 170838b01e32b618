"""Rows under their columns, in lines no longer than the terminal.

Plain text: what builds every cell from styled objects takes longer than reading its pictures.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["table_lines"]

_GAP = 2
_NARROWEST = 8
"""Cells of a column that lines are broken in."""


def table_lines(
    columns: Sequence[str], rows: Iterable[Sequence[str]], width: int, whole: int = 0
) -> Iterator[str]:
    """Yield the lines of a table, the columns' names first.

    Args:
        columns: the names.
        rows: a cell for each column, on one line.
        width: of the terminal, in cells.
        whole: how many columns, from the left, must not break into lines.
    """
    every = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(_cells, column)) for column in zip(*every, strict=True)]
    _shrink(widths, width - _GAP * (len(widths) - 1), whole)
    for row in every:
        folded = [_fold(cell, room) for cell, room in zip(row, widths, strict=True)]
        for number in range(max(map(len, folded))):
            parts = [lines[number] if number < len(lines) else "" for lines in folded]
            padded = (p + " " * (w - _cells(p) + _GAP) for p, w in zip(parts, widths, strict=True))
            yield "".join(padded).rstrip()


def _shrink(widths: list[int], room: int, whole: int) -> None:
    """Take what is too much from the widest columns that may break."""
    while sum(widths) > room:
        loose = [n for n in range(whole, len(widths)) if widths[n] > _NARROWEST]
        if not loose:
            return
        widest = max(loose, key=lambda n: widths[n])
        widths[widest] -= 1


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(sign: str) -> int:
    if unicodedata.combining(sign) or unicodedata.category(sign) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def _fold(text: str, room: int) -> list[str]:
    """Lines of at most so many cells, broken between words if that is possible."""
    if _cells(text) <= room:
        return [text]
    lines: list[str] = []
    line = ""
    for word in re.findall(r"\S+", text):
        if line and _cells(line) + 1 + _cells(word) <= room:
            line += f" {word}"
            continue
        lines += [line] if line else []
        line = ""
        for sign in word:
            if line and _cells(line) + _cells_of(sign) > room:
                lines.append(line)
                line = ""
            line += sign
    return [*lines, line]
