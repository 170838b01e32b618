"""Parquet tables of the Hugging Face hub: rows with pictures and words, read as sets."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from iclora.errors import DatasetError
from iclora.sets.caption import has_markers
from iclora.sets.collect.picture import Found, Origin, Picture
from iclora.sets.collect.sources.extras import needed
from iclora.sets.collect.sources.folders import loose_pictures
from iclora.sets.collect.sources.naming import in_order
from iclora.sets.collect.sources.wanted import Wanted
from iclora.sets.words import TEXT_COLUMNS

__all__ = ["read_parquet"]

_MOST_ROWS = 500_000
_LARGEST_GROUP = 2 * 2**30
"""Bytes of a row group, which is read as a whole."""
_MOST_TEXT = 2**28
"""Bytes of all captions of a table."""
_BATCH = 2**28
"""Bytes that are unpacked at a time to look how many there are."""


def read_parquet(source: str, path: Path, want: Wanted) -> list[Found]:
    """The sets in a table.

    A row with a picture for each panel, in several columns or in one list, is a set; a row with one
    picture and a joint caption is a set that is joined already; other pictures are grouped by their
    likeness.

    Raises: DatasetError for a table that is damaged, or without pictures; SettingsError without
        pyarrow.
    """
    arrow = needed("pyarrow", "pyarrow", "parquet tables")
    needed("pyarrow.parquet", "pyarrow", "parquet tables")
    try:
        table = _Table(arrow, path)
        found: list[Found] = []
        loose: list[Picture] = []
        for row in range(table.rows):
            pictures = [
                Picture(Origin(source, {"row": row, **place}), partial(table.picture, row, place))
                for place in table.places(row)
            ]
            words = table.words(row)
            joint = has_markers(words, want.recipe.markers)
            if len(pictures) == want.panels:
                scene = f"{source}, row {row}"
                own = words if joint else ""
                if words and not joint:
                    last = pictures[-1]
                    pictures[-1] = Picture(last.origin, last.read, words)
                found.append(Found(tuple(pictures), scene, "a row of a table", own))
            elif len(pictures) == 1 and joint:
                whole = (pictures[0],)
                found.append(Found(whole, f"{source}, row {row}", "a joined set", words, True))
            else:
                loose += [Picture(p.origin, p.read, words) for p in pictures]
    except (arrow.ArrowException, OSError) as error:
        raise DatasetError(f"table {path} cannot be read: {error}", "Download it again.") from error
    return found + loose_pictures(source, loose, want)


class _Table:
    """A parquet file; of its pictures one row group is in memory."""

    def __init__(self, arrow: Any, path: Path) -> None:
        self._path = path
        self._file = arrow.parquet.ParquetFile(path)
        kinds = arrow.types
        self.rows = self._file.metadata.num_rows
        if self.rows > _MOST_ROWS:
            raise DatasetError(f"table {path} has {self.rows:,} rows", "Give a smaller one.")
        schema = self._file.schema_arrow
        self._columns = in_order([f.name for f in schema if _holds_pictures(kinds, f.type)])
        if not self._columns:
            raise DatasetError(
                f"table {path} has no column of pictures (its columns are "
                f"{', '.join(schema.names[:12])})",
                "Give a table as the Hub has them: a column of pictures is of bytes and path.",
            )
        self._lists = {f.name for f in schema if kinds.is_list(f.type)} & set(self._columns)
        texts = [f.name for f in schema if kinds.is_string(f.type) or kinds.is_large_string(f.type)]
        column = next((name for name in TEXT_COLUMNS if name in texts), None)
        self._words: Sequence[Any] = ()
        if column is not None:
            self._words = self._read_words(column)
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            about = self._file.metadata.row_group(group)
            if about.total_byte_size > _LARGEST_GROUP:
                raise DatasetError(
                    f"table {path} has a row group of {about.total_byte_size >> 20} MiB",
                    "Write it again with smaller row groups.",
                )
            self._starts.append(self._starts[-1] + about.num_rows)
            self._check_unpacked(group, about)
        self._lock = threading.Lock()
        self._group, self._data = -1, dict[str, Any]()
        self._counts = self._count_lists()

    def _read_words(self, column: str) -> list[Any]:
        """Raises: DatasetError for texts that unpack to more than any table of captions has."""
        words: list[Any] = []
        size = 0
        for batch in self._file.iter_batches(64, columns=[column]):
            size += batch.nbytes
            if size > _MOST_TEXT:
                raise DatasetError(
                    f"the texts of table {self._path} (column {column}) have more than "
                    f"{_MOST_TEXT >> 20} MiB",
                    "Write it again with shorter captions.",
                )
            words += batch.column(0).to_pylist()
        return words

    def _check_unpacked(self, group: int, about: Any) -> None:
        """Raises: DatasetError for a row group that repeats a picture of its dictionary too often.

        What the file says of its size counts each picture of a dictionary once.
        """
        parts = (about.column(number) for number in range(about.num_columns))
        packed = any("DICTIONARY" in "".join(part.encodings) for part in parts)
        # No value is larger than the group.
        rows = max(1, min(64, _BATCH // max(1, about.total_byte_size)))
        if not packed or about.num_rows * about.total_byte_size < _LARGEST_GROUP:
            return
        size = 0
        for batch in self._file.iter_batches(rows, row_groups=[group], columns=self._columns):
            size += batch.nbytes
            if size > _LARGEST_GROUP:
                raise DatasetError(
                    f"table {self._path} has a row group that unpacks to more than "
                    f"{_LARGEST_GROUP >> 20} MiB",
                    "Write it again with smaller row groups.",
                )

    def _count_lists(self) -> dict[str, list[int]]:
        counts: dict[str, list[int]] = {name: [] for name in self._lists}
        for name in self._lists:
            for batch in self._file.iter_batches(64, columns=[name]):
                counts[name] += [len(v or ()) for v in batch.column(0).to_pylist()]
        return counts

    def places(self, row: int) -> list[dict[str, Any]]:
        """Where the pictures of a row lie: {"column": "image"}, or with their number in a list."""
        found: list[dict[str, Any]] = []
        for name in self._columns:
            if name in self._lists:
                found += [{"column": name, "item": i} for i in range(self._counts[name][row])]
            else:
                found.append({"column": name})
        return found

    def words(self, row: int) -> str:
        return (self._words[row] or "").strip() if self._words else ""

    def picture(self, row: int, place: dict[str, Any]) -> bytes:
        """The bytes of one picture. Raises: DatasetError if it holds none."""
        # Pictures are looked at by several threads.
        with self._lock:
            group = next(g for g in range(len(self._starts)) if row < self._starts[g + 1])
            if group != self._group:
                self._data = self._file.read_row_group(group, columns=self._columns).to_pydict()
                self._group = group
            value = self._data[place["column"]][row - self._starts[group]]
        if "item" in place:
            value = value[place["item"]]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DatasetError(
                f"row {row} of {self._path} names a picture ({place['column']}) and does not hold "
                "it",
                "Download the data set with its pictures.",
            )
        return data


def _holds_pictures(kinds: Any, kind: Any) -> bool:
    """True for what the Hub writes pictures as: bytes and path, lists of these, or plain bytes."""
    if kinds.is_list(kind) or kinds.is_large_list(kind):
        return _holds_pictures(kinds, kind.value_type)
    if kinds.is_struct(kind):
        return {field.name for field in kind} >= {"bytes", "path"}
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))
