"""The logs of a run: a line of JSON for every step, and for every measure on held-out sets."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iclora.errors import RunError
from iclora.files import damaged_name, set_aside, write_bytes
from iclora.files.documents import read_bytes
from iclora.train.validation import LEVELS

__all__ = ["cut", "read_losses", "read_measures"]

_LARGEST = 2**30
"""Bytes; a million steps have some hundred million."""

Row = dict[str, Any]


def read_losses(path: Path) -> list[Row]:
    """The rows of a log of losses; what is no such row is left out."""
    return _rows(path, _is_loss)


def read_measures(path: Path) -> list[Row]:
    """The rows of a log of measures, all of as many panels as most; no other lines.

    Measures may be NaN, as of a base that has diverged.
    """
    rows = _rows(path, _is_measure)
    panels = Counter(len(row["held out"]["by_panel"]) for row in rows).most_common(1)
    return [row for row in rows if len(row["held out"]["by_panel"]) == panels[0][0]]


def cut(path: Path, last: int, warn: Callable[[str], None]) -> None:
    """Keep one row of every step up to `last`: those after it are taken and logged again.

    Lines that are no rows are set aside and said, except for the one that a killed process was
    writing.

    Args:
        path: of a log of losses or, by its name, of measures.
    Raises: StorageError.
    """
    if not path.exists():
        return
    whole = _is_measure if path.name.startswith("validation") else _is_loss
    try:
        data = read_bytes(path, RunError, "log", _LARGEST)
    except RunError as error:
        warn(f"{error.problem}; it is set aside as {set_aside(path).name}")
        return
    kept: dict[int, bytes] = {}
    strange: list[bytes] = []
    *lines, end = data.split(b"\n")
    for line in lines:
        row = _row(line, whole)
        if row is None:
            strange.append(line)
        elif row["step"] <= last:
            kept[row["step"]] = line
    if end and not (end[:1] == b"{" and end.isascii()):
        strange.append(end)
    if strange:
        place = damaged_name(path)
        write_bytes(place, b"".join(line + b"\n" for line in strange))
        warn(f"{path} has lines that are not this run's ({len(strange)}); set aside: {place.name}")
    found = b"".join(kept[step] + b"\n" for step in sorted(kept))
    if found != data:
        write_bytes(path, found)


def _rows(path: Path, whole: Callable[[Any], bool]) -> list[Row]:
    try:
        data = read_bytes(path, RunError, "log", _LARGEST)
    except RunError:
        return []
    found = (_row(line, whole) for line in data.split(b"\n"))
    return [row for row in found if row is not None]


def _row(line: bytes, whole: Callable[[Any], bool]) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _count(row.get("step")) and whole(row) else None


def _is_loss(row: Row) -> bool:
    names = row.get("sets")
    strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return strings and _number(row.get("loss"))


def _is_measure(row: Row) -> bool:
    return all(_is_measured(row.get(name)) for name in ("held out", "trained"))


def _is_measured(found: Any) -> bool:
    if not isinstance(found, dict) or not _is_float(found.get("loss")):
        return False
    lists = [found.get("by_level"), found.get("by_panel")]
    if not all(isinstance(each, list) and each and all(map(_is_float, each)) for each in lists):
        return False
    return len(found["by_level"]) == len(LEVELS)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**12


def _is_float(value: Any) -> bool:
    return type(value) is float or _count(value)


def _number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or _count(value)
