"""Captions as people have them: beside a picture, in a table for a folder, or one a panel.

In this order, the first that is there:

    0001.txt, 0001.png.txt, 0001.caption, 0001.json     beside 0001.png
    0001/caption.txt, 0001/0001.txt, 0001.txt           for the panels in 0001/
    0001/1.txt 2.txt 3.txt                              a text for each panel, joined behind markers
    metadata.jsonl, metadata.csv                        "file_name" and "text", as the Hub has them
    captions.json, .jsonl, .csv, .tsv                   the same; or {"0001.png": "text"}, or lines
                                                        of a name, a tab and a text

Names are compared in the composed form of Unicode, and in small letters if that decides nothing.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from iclora.errors import CaptionError, DatasetError
from iclora.files.documents import decode, parse_json
from iclora.sets.caption import JointCaption, has_markers
from iclora.sets.listing import File, Files, Problem
from iclora.sets.recipe import Recipe

__all__ = ["JOINT", "MOST_TEXT", "TEXT_COLUMNS", "TEXT_SUFFIXES", "Library", "Words", "read_text"]

MOST_TEXT = 2**20
"""Bytes of a caption's file at most; of a table of captions, 64 times as many."""
TEXT_SUFFIXES = (".txt", ".caption", ".json")
_TABLES = (
    "metadata.jsonl",
    "metadata.csv",
    "captions.jsonl",
    "captions.json",
    "captions.csv",
    "captions.tsv",
)
"""Of several the first that tells of a picture counts."""
TEXT_COLUMNS = ("text", "caption", "prompt", "joint_caption", "description")
FILE_COLUMNS = ("file_name", "image", "filename", "file", "image_path", "image_file", "path")
JOINT = ("caption", "captions", "prompt", "text", "description")
"""Names of a text, without its ending, that tells of the panels in its folder."""


@dataclass(frozen=True)
class Words:
    """Where a set's caption stands, unread."""

    files: tuple[str, ...]
    """Names of the files it is read from: one, or one a panel."""
    own: bool
    """True if the one file holds this caption alone, as plain text."""
    read: Callable[[], str] = field(compare=False)
    """Its text. Raises: DatasetError, CaptionError."""


def read_text(file: File, most: int = MOST_TEXT) -> str:
    """A text file without byte order marks and outer white space.

    Raises: DatasetError if it cannot be read; CaptionError if it is neither UTF-8 nor UTF-16 with
        a mark, or holds signs that no text has.
    """
    text = decode(file.read(most), f"caption {file.name}", CaptionError).strip()
    if found := re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise CaptionError(
            f"caption {file.name} holds the control character {found[0]!a}",
            "Save it as plain text of UTF-8.",
        )
    return text


class Library:
    """Every text in a dataset, found by the picture or folder it belongs to."""

    def __init__(self, listing: Files, recipe: Recipe) -> None:
        self._listing, self._recipe = listing, recipe
        self.problems: list[Problem] = []
        self.used: set[str] = set()
        """Names of the files that hold a caption of a set."""
        self._exact: dict[str, str] = {}
        self._beside: dict[str, str] = {}
        self._folded: dict[str, str] = {}
        # In this order a .txt wins over a .caption, and 0001.txt over 0001.TXT.
        for suffix in reversed(TEXT_SUFFIXES):
            named = [n for n in listing if n.lower().endswith(suffix)]
            for name in sorted(named, reverse=True):
                self._exact[name[: -len(suffix)]] = name
                stem = unicodedata.normalize("NFC", name[: -len(suffix)])
                self._beside[stem] = name
                self._folded[stem.casefold()] = name
        self._rows: dict[str, tuple[str, str]] = {}
        tables = {n: n.rpartition("/")[2].lower() for n in listing}
        ranks = {n: _TABLES.index(last) for n, last in tables.items() if last in _TABLES}
        for name in sorted(ranks, key=lambda n: (ranks[n], n)):
            self._read_table(listing[name])

    def beside(self, image: str) -> Words | None:
        """The caption of one picture: a file of its name, or its row in a table."""
        stem = image.rsplit(".", 1)[0]
        for key in (stem, image):
            if (name := self._text(key)) is not None:
                return self._of_file(name)
        return self._of_table(image)

    def is_told(self, folder: str) -> bool:
        """True if a folder holds a caption.txt, so that its pictures are the panels of one set."""
        return any(self._of_file(n) for n in [self._text(f"{folder}/caption".lstrip("/"))] if n)

    def of_folder(self, folder: str, images: Sequence[str]) -> Words | None:
        """The caption of a folder of panels, as one text or as one for each of them.

        Args:
            folder: its path; empty for the dataset itself.
            images: its pictures, in panel order.
        """
        own = {self._text(image.rsplit(".", 1)[0]) for image in images}
        last = PurePosixPath(folder).name
        names = [*JOINT, *([last] if last else [])]
        near = [f"{folder}/{name}".lstrip("/") for name in names]
        found = [self._text(key) for key in [*near, *([folder] if folder else [])]]
        joint = next((self._of_file(n) for n in found if n is not None and n not in own), None)
        panels = self._of_panels(images, joint)
        if joint is None and panels is None:
            joint = self._of_table(folder) if folder else None
            joint = joint or next((w for w in map(self._of_table, images) if w), None)
        return panels or joint

    def has_text(self, image: str) -> bool:
        """True if a file of text has the name of this picture."""
        return self._text(image.rsplit(".", 1)[0]) is not None

    def has_joint_text(self, image: str) -> bool:
        """True if the text of a picture has several markers, so that it tells of a whole set."""
        words = self.beside(image)
        return words is not None and self._is_joint(words)

    def use(self, words: Words | None) -> Words | None:
        """Note that a set takes these words."""
        if words is not None:
            self.used.update(words.files)
        return words

    def _text(self, key: str) -> str | None:
        composed = unicodedata.normalize("NFC", key)
        near = self._beside.get(composed) or self._folded.get(composed.casefold())
        return self._exact.get(key) or near

    def _of_file(self, name: str) -> Words | None:
        file = self._listing[name]
        if not name.lower().endswith(".json"):
            return Words((name,), True, lambda: read_text(file))
        try:
            text = _words_in(parse_json(file.read(MOST_TEXT), name, CaptionError))
        except (DatasetError, CaptionError):
            return None
        return None if text is None else Words((name,), False, lambda: text.strip())

    def _of_panels(self, images: Sequence[str], joint: Words | None) -> Words | None:
        """A text for each panel, joined; None if some have none, or one tells of the whole set."""
        if len(images) != self._recipe.canvas.panels:
            return None
        parts = [self.beside(image) for image in images]
        found = [part for part in parts if part is not None]
        if len(found) < len(images) or any(map(self._is_joint, [*found, *filter(None, [joint])])):
            return None
        recipe = self._recipe

        def read() -> str:
            texts = [" ".join(part.read().split()) for part in found]
            overview = " ".join(joint.read().split()) if joint else ""
            texts = [
                text.removeprefix(marker)
                for text, marker in zip(texts, recipe.markers, strict=True)
            ]
            if not all(text.strip() for text in texts):
                raise CaptionError(
                    f"caption {found[[bool(t.strip()) for t in texts].index(False)].files[0]} is "
                    "empty",
                    "Say what this panel shows.",
                )
            overview = overview.removeprefix(recipe.prefix)
            return JointCaption.join(overview, texts, recipe.markers, recipe.prefix).render()

        files = [name for part in [*found, *([joint] if joint else [])] for name in part.files]
        return Words(tuple(files), False, read)

    def _is_joint(self, words: Words) -> bool:
        """True if words have more than one marker; a panel's text may begin with its own."""
        try:
            text = words.read()
        except (DatasetError, CaptionError):
            return False
        for marker in self._recipe.markers:
            text, own = (text[len(marker) :], True) if text.startswith(marker) else (text, False)
            if own:
                break
        return has_markers(text, self._recipe.markers)

    # -- tables ---------------------------------------------------------------------------------

    def _of_table(self, key: str) -> Words | None:
        row = self._rows.get(unicodedata.normalize("NFC", key))
        return None if row is None else Words((row[0],), False, lambda: row[1])

    def _read_table(self, file: File) -> None:
        folder = PurePosixPath(file.name).parent
        try:
            text = read_text(file, 64 * MOST_TEXT)
            rows = list(_ROWS[file.name.lower().rpartition(".")[2]](text))
        except (DatasetError, CaptionError, csv.Error) as error:
            why = error.problem if isinstance(error, DatasetError | CaptionError) else str(error)
            self.problems.append(
                Problem(file.name, f"its captions cannot be read ({why})", "Correct it.")
            )
            return
        told, again, lost = 0, 0, []
        for row in rows:
            place, words = _file_in(row), _words_in(row)
            if place and words:
                path = posixpath.normpath(folder / place.replace("\\", "/"))
                key = self._place_of(unicodedata.normalize("NFC", path))
                again += key in self._rows and self._rows[key] != (file.name, words.strip())
                self._rows.setdefault(key, (file.name, words.strip()))
                told += 1
                if key not in self._places:
                    lost.append(place)
        self._say_of_table(file.name, len(rows) - told, len(rows), again, lost)

    @cached_property
    def _places(self) -> set[str]:
        """Every file and folder, as rows name them."""
        places = {unicodedata.normalize("NFC", name) for name in self._listing}
        return places | {f.as_posix() for name in places for f in PurePosixPath(name).parents}

    def _place_of(self, path: str) -> str:
        """The file or folder that a row names, perhaps in other letters or without its ending."""
        if path in self._places:
            return path
        return self._nearly.get(path.casefold(), path)

    @cached_property
    def _nearly(self) -> dict[str, str]:
        """Files by their names in small letters, with and without their endings."""
        near: dict[str, str] = {}
        for place in sorted(self._places):
            near.setdefault(place.casefold(), place)
            if not place.lower().endswith(TEXT_SUFFIXES):
                near.setdefault(place.casefold().rpartition(".")[0], place)
        return near

    def _say_of_table(
        self, name: str, bare: int, rows: int, again: int, lost: Sequence[str]
    ) -> None:
        """Name rows of a table of captions of which nothing comes."""
        shown = ", ".join(place[:80] for place in lost[:4]) + ", ..." * (len(lost) > 4)
        for count, what, advice in (
            (
                bare,
                f"{bare} of its {rows} rows have no file_name or no text",
                f'A row needs "file_name", and one of {", ".join(TEXT_COLUMNS[:3])}.',
            ),
            (
                len(lost),
                f"{len(lost)} of its {rows} rows name files that are not there ({shown})",
                "Correct their names, or put the pictures there.",
            ),
            (
                again,
                f"{again} of its {rows} rows tell another caption of a file than an earlier row",
                "Keep one of them; the earlier one counts.",
            ),
        ):
            if count:
                self.problems.append(Problem(name, what, advice, "warning"))


def _jsonl(text: str) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = parse_json(line, f"line {number}", CaptionError)
            if not isinstance(row, dict):
                raise CaptionError(f"line {number} is no object", "Correct it.")
            yield row


def _csv(text: str) -> Iterable[Mapping[str, Any]]:
    head = text.partition("\n")[0]
    # Excel writes semicolons where the comma is a decimal sign.
    sign = max(",;\t", key=head.count)
    yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=sign)


def _json(text: str) -> Iterable[Mapping[str, Any]]:
    found = parse_json(text, "it", CaptionError)
    if _words_in(found) is not None:
        return []  # the caption of a folder
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        return [{"file_name": name, "text": words} for name, words in found.items()]
    if isinstance(found, dict) and all(_words_in(value) for value in found.values()):
        return [{"file_name": name, **row} for name, row in found.items()]
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        return found
    raise CaptionError('it is neither {"0001.png": "text"} nor a list of such rows', "Correct it.")


def _tsv(text: str) -> Iterable[Mapping[str, Any]]:
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [row for row in rows if row]
    if rows and {*FILE_COLUMNS} & {*rows[0]} and {*TEXT_COLUMNS} & {*rows[0]}:
        return _csv(text)
    if wrong := next((n for n, row in enumerate(rows, 1) if len(row) != 2), None):
        raise CaptionError(f"line {wrong} is no name, tab and text", "Correct it.")
    return [{"file_name": name, "text": words} for name, words in rows]


_ROWS: Mapping[str, Callable[[str], Iterable[Mapping[str, Any]]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "tsv": _tsv,
}
"""Reads the rows of a table, by its ending. Raises: CaptionError, csv.Error."""


def _file_in(row: Mapping[str, Any]) -> str | None:
    """The file that a row tells of, by one of the usual names."""
    found = (row.get(column) for column in FILE_COLUMNS)
    plain = (f.get("path") or f.get("file_name") if isinstance(f, dict) else f for f in found)
    return next((name for name in plain if isinstance(name, str) and name.strip()), None)


def _words_in(data: object) -> str | None:
    """The text in a row or a JSON object that goes by one of the usual names."""
    if not isinstance(data, dict):
        return None
    found = (data.get(column) for column in TEXT_COLUMNS)
    found = (text[0] if isinstance(text, list) and len(text) == 1 else text for text in found)
    return next((text for text in found if isinstance(text, str) and text.strip()), None)
