"""Where every set came from (sets.jsonl), and the folder in which a stopped collection goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from iclora import files
from iclora.errors import DatasetError, IcloraError
from iclora.files.documents import parse_json
from iclora.sets.collect.picture import Found
from iclora.sets.collect.quality import Quality
from iclora.sets.origins import ORIGINS

__all__ = ["Pool", "write_origins"]

_POOL = ".collect"
"""Hidden, so that no reader of sets looks into it."""


class Pool:
    """What a collection has done so far, kept beside its sets until it has ended.

    Args:
        out: the folder of sets.
        told: everything that decides what is collected.
    Raises: DatasetError if the folder holds something else than a collection of this kind.
    """

    def __init__(self, out: Path, told: dict[str, Any]) -> None:
        self.out, self.path = out, out / _POOL
        self._told = json.dumps(told, sort_keys=True)
        record = self.path / "settings.json"
        there = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
        before = record.read_text(encoding="utf-8", errors="replace") if record.is_file() else None
        if before is not None and before != self._told:
            raise DatasetError(
                f"{out} holds a collection that was begun with other settings",
                "Choose another `out`, or remove that folder.",
                setting="out",
            )
        if before is None and there:
            raise DatasetError(
                f"{out} is not an empty folder", "Choose another `out`, a new folder.", "out"
            )
        self.resumed = before is not None
        self.path.mkdir(parents=True, exist_ok=True)
        files.clear_leftovers(self.path, alone=True)
        files.clear_leftovers(out, alone=True)
        files.write_text(record, self._told)

    @property
    def done(self) -> bool:
        """True if the collection has ended, and its sets are there."""
        return (self.path / "done").is_file() and (self.out / ORIGINS).is_file()

    def finish(self) -> None:
        """Note the end, and free what was kept for going on."""
        files.write_text(self.path / "done", "")
        for place in self.path.iterdir():
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)

    def give_up(self) -> None:
        """Leave nothing of a collection that found no set: other settings may find some."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.out.rmdir()

    def folder(self, *parts: str, make: Callable[[Path], None]) -> Path:
        """A folder of things that took long; made whole, once.

        Args:
            parts: what decides its content.
            make: fills a new folder.
        """
        place = self.path / files.digest(*parts)[:16]
        if not place.is_dir():
            with files.work_folder(place) as work:
                make(work)
        return place

    def growing(self, *parts: str, make: Callable[[Path], None]) -> Path:
        """The same, but what a stopped `make` has written is given to the next one."""
        place = self.path / files.digest(*parts)[:16]
        if not place.is_dir():
            begun = place.with_suffix(".part")
            try:
                begun.mkdir(exist_ok=True)
                make(begun)
                begun.rename(place)
            except OSError as error:
                raise files.storage_error(place, error) from error
        return place

    def judged(self) -> dict[str, Quality]:
        """The quality of sets by their key, as far as it was noted."""
        found = {}
        for row in _rows(self.path / "quality.jsonl"):
            key, score, reasons = row.get("key"), row.get("score"), row.get("reasons")
            # What somebody else wrote is left alone, and such a set is judged again.
            if isinstance(key, str) and isinstance(score, float) and isinstance(reasons, list):
                found[key] = Quality(score, tuple(map(str, reasons)))
        return found

    def note(self, key: str, quality: Quality) -> None:
        """Note the quality of a set."""
        row = {"key": key, "score": quality.score, "reasons": quality.reasons}
        files.append_line(self.path / "quality.jsonl", json.dumps(row))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line, path.name, DatasetError)
        except IcloraError:
            continue  # A kill cut it short.
        if isinstance(row, dict):
            yield row


def write_origins(out: Path, sets: dict[str, tuple[Found, Quality]]) -> None:
    """Write sets.jsonl: a line for each set, what it was made of and how good it is."""
    lines = []
    for name, (found, quality) in sets.items():
        row: dict[str, Any] = {
            "set": name,
            "scene": found.scene,
            "score": quality.score,
            "reasons": list(quality.reasons),
            "way": found.way,
            "panels": [picture.origin.to_json() for picture in found.pictures],
        }
        if words := [picture.words for picture in found.pictures]:
            row |= {"words": words} if any(words) else {}
        lines.append(json.dumps(row, ensure_ascii=False))
    files.write_text(out / ORIGINS, "\n".join(lines) + "\n" * bool(lines))
