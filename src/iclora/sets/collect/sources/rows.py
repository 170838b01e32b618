"""Tables beside pictures (metadata.jsonl, metadata.csv) that name the panels of sets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from iclora.errors import DatasetError, IcloraError
from iclora.files.documents import decode, parse_json
from iclora.sets.collect.sources.naming import in_order
from iclora.sets.listing import Files
from iclora.sets.unread import is_image
from iclora.sets.words import TEXT_COLUMNS

__all__ = ["Row", "sets_by_rows"]

_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """A row that names a picture for each panel."""

    names: tuple[str, ...]
    """In the order of panels: an original before what was made of it."""
    words: str


def sets_by_rows(listing: Files, panels: int) -> list[Row]:
    """The sets that tables name; rows of other numbers of pictures are left to other ways."""
    found: list[Row] = []
    for name in sorted(listing):
        last = name.rpartition("/")[2].lower()
        if last not in ("metadata.jsonl", "metadata.csv"):
            continue
        folder = PurePosixPath(name).parent
        try:
            text = decode(listing[name].read(_MOST_BYTES), name, DatasetError)
            rows = list(_rows(text, last))
        except (IcloraError, csv.Error):
            continue  # The reader of captions names it.
        for row in rows:
            names = tuple(_pictures(row, folder, listing))
            if len(names) == panels > 1:
                words = next((row[c] for c in TEXT_COLUMNS if isinstance(row.get(c), str)), "")
                found.append(Row(names, words.strip()))
    return found


def _rows(text: str, name: str) -> Iterator[Mapping[str, Any]]:
    if name.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(text, newline=""))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and isinstance(
            row := parse_json(line, f"line {number}", DatasetError), dict
        ):
            yield row


def _pictures(row: Mapping[str, Any], folder: PurePosixPath, listing: Files) -> Iterator[str]:
    for column in in_order([name for name in row if isinstance(name, str)]):
        value = row[column]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and is_image(each):
                name = (folder / each.replace("\\", "/")).as_posix()
                if name in listing:
                    yield name
