"""The made sets of a folder, indexed in SQLite; the folders on disk are the truth.

A set appears on disk whole, by a rename, so a folder has changed only if its time has: a look at
ten thousand sets reads nothing but what is new. Stars, notes and the trash are kept beside the
index and survive it.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclora.errors import IcloraError, SettingsError
from iclora.files import digest, storage_error
from iclora.files.documents import read_json
from iclora.serve.catalog import Catalog
from iclora.serve.problems import Refused
from iclora.serve.store import Store

__all__ = ["MadeSet", "Sets"]


@dataclass(frozen=True)
class MadeSet:
    """A set that was made, as the index knows it."""

    id: str
    path: Path
    made: int
    """When, ns since 1970."""
    prompt: str
    recipe: str
    adapter: str
    seed: str
    panels: int
    star: bool
    note: str
    trashed: bool
    version: int
    """Counts changes of star, note and trash."""

    @property
    def etag(self) -> str:
        return f'"{self.version}-{self.made}"'


_SELECT = (
    "SELECT sets.*, COALESCE(star, 0) AS star, COALESCE(note, '') AS note, trashed,"
    " COALESCE(version, 0) AS version FROM sets LEFT JOIN marks USING (id)"
)


class Sets:
    """The index of FOLDER/out."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store, self._catalog = store, catalog
        self._seen: dict[Path, int] = {}
        self._lock = threading.Lock()

    def look(self) -> None:
        """Take in what has been made or removed since the last look, by anybody."""
        out = self._catalog.out
        with self._lock:
            if not self._catalog.inside(out):
                return
            for place in (out, *_folders(out)):
                self._look_into(place)

    def _look_into(self, place: Path) -> None:
        try:
            stamp = place.stat().st_mtime_ns
        except OSError:
            return
        if self._seen.get(place) == stamp:
            return
        here = f"{place.relative_to(self._catalog.folder).as_posix()}/"
        # Those of the folder itself, not of folders in it.
        rows = self._store.rows(
            "SELECT id, path FROM sets WHERE path LIKE ? || '%'", here.replace("%", "")
        )
        known = {r["path"]: r["id"] for r in rows if "/" not in r["path"][len(here) :]}
        there = {f"{here}{path.name}": path for path in _folders(place) if _is_set(path)}
        for path in there.keys() - known.keys():
            self._add(path, there[path])
        gone = [(known[path],) for path in known.keys() - there.keys()]
        if gone:
            with self._store.change() as db:
                db.executemany(
                    "DELETE FROM sets WHERE id=? AND id NOT IN"
                    " (SELECT id FROM marks WHERE trashed IS NOT NULL)",
                    gone,
                )
        self._seen[place] = stamp

    def made_by(self, folder: Path) -> list[str]:
        """Ids of the sets that a job has made in its folder."""
        with self._lock:
            self._seen.pop(folder, None)
            self._look_into(folder)
        return [
            digest(path.relative_to(self._catalog.folder).as_posix())[:16]
            for path in _folders(folder)
            if _is_set(path)
        ]

    def page(
        self,
        client: str,
        words: str = "",
        *,
        starred: bool = False,
        trashed: bool = False,
        after: str | None = None,
        limit: int = 50,
    ) -> list[MadeSet]:
        """Sets, the newest first.

        Args:
            client: whose jobs made them; empty for all.
            words: that prompt, recipe, adapter, seed or note hold, each of them.
            after: the `cursor_of` the last one of the page before.
        """
        tests = [f"trashed IS {'NOT ' * trashed}NULL"]
        values: list[object] = []
        if client:
            tests.append("client=?")
            values.append(client)
        if starred:
            tests.append("star=1")
        for word in words.split()[:20]:
            tests.append(
                "instr(lower(prompt || ' ' || recipe || ' ' || adapter || ' ' || seed || ' ' ||"
                " COALESCE(note, '')), ?)"
            )
            values.append(word.lower())
        if after is not None:
            tests.append("(made, sets.id) < (?, ?)")
            values += _cursor(after)
        query = f"{_SELECT} WHERE {' AND '.join(tests)} ORDER BY made DESC, sets.id DESC LIMIT ?"
        return [self._set(row) for row in self._store.rows(query, *values, limit)]

    def get(self, name: str, client: str = "") -> MadeSet:
        """Raises: Refused with 404, for another client's set too."""
        rows = self._store.rows(f"{_SELECT} WHERE sets.id=?", name)
        if not rows or (client and rows[0]["client"] != client):
            raise Refused(404, f'there is no set "{name[:80]}"', "List the sets.")
        found = self._set(rows[0])
        if not self._catalog.inside(found.path) or not _is_set(found.path):
            raise Refused(404, f"set {name} is not on the disk any more", "List the sets.")
        return found

    def mark(self, found: MadeSet, *, star: bool | None = None, note: str | None = None) -> MadeSet:
        """Give a set a star or a note, or take it away."""
        with self._store.change() as db:
            db.execute("INSERT OR IGNORE INTO marks (id) VALUES (?)", (found.id,))
            db.execute(
                "UPDATE marks SET star=COALESCE(?, star), note=COALESCE(?, note),"
                " version=version+1 WHERE id=?",
                (star, note, found.id),
            )
        return self.get(found.id)

    def trash(self, found: MadeSet) -> MadeSet:
        """Move a set to the trash. Raises: StorageError."""
        if found.trashed:
            return found
        place = self._catalog.home / "trash" / found.id
        return self._move(found, place, found.path.relative_to(self._catalog.folder).as_posix())

    def restore(self, found: MadeSet) -> MadeSet:
        """Move a set back to where it was. Raises: StorageError; Refused if that is taken."""
        rows = self._store.rows("SELECT trashed FROM marks WHERE id=?", found.id)
        if not found.trashed:
            return found
        place = self._catalog.folder / rows[0]["trashed"]
        if os.path.lexists(place):
            raise Refused(409, f"{place.name} is there again", "Move that one away first.")
        return self._move(found, place, None)

    def _move(self, found: MadeSet, place: Path, trashed: str | None) -> MadeSet:
        with self._lock, self._store.change() as db:
            db.execute("INSERT OR IGNORE INTO marks (id) VALUES (?)", (found.id,))
            db.execute(
                "UPDATE marks SET trashed=?, version=version+1 WHERE id=?", (trashed, found.id)
            )
            path = place.relative_to(self._catalog.folder).as_posix()
            db.execute("UPDATE sets SET path=? WHERE id=?", (path, found.id))
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(found.path, place)
            except OSError as error:
                raise storage_error(place, error) from error
        return self.get(found.id)

    def _add(self, path: str, folder: Path) -> None:
        try:
            request = read_json(folder / "request.json", SettingsError, "request")
            values = _described(request)
            made = (folder / "request.json").stat().st_mtime_ns
            size = (folder / "composite.png").stat().st_size
        except (IcloraError, OSError, LookupError, TypeError, ValueError):
            return
        job = self._store.rows("SELECT client FROM jobs WHERE id=?", folder.parent.name)
        client = job[0]["client"] if job else ""
        with self._store.change() as db:
            db.execute(
                "INSERT OR REPLACE INTO sets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (digest(path)[:16], path, made, size, *values, client),
            )

    def _set(self, row: Any) -> MadeSet:
        names = ("id", "made", "prompt", "recipe", "adapter", "seed", "panels", "note", "version")
        return MadeSet(
            **{name: row[name] for name in names},
            path=self._catalog.folder / row["path"],
            star=bool(row["star"]),
            trashed=row["trashed"] is not None,
        )


def cursor_of(found: MadeSet) -> str:
    """Where the page after this set begins."""
    return f"{found.made}-{found.id}"


def _cursor(text: str) -> list[object]:
    match = re.fullmatch(r"([0-9]{1,19})-([0-9a-f]{16})", text)
    if not match or int(match[1]) >= 2**63:
        raise Refused(422, "this is no cursor", "Take the one of the page before.", "cursor")
    return [int(match[1]), match[2]]


def _described(request: Mapping[str, Any]) -> tuple[str, str, str, str, int]:
    """Prompt, recipe, adapters, seed and number of panels of a request."""
    files = [request.get("adapter"), *(each.get("file") for each in request.get("beside") or ())]
    names = [Path(file) for file in files if file]
    called = [path.parent.name if path.stem == "adapter" else path.stem for path in names]
    seeds = request["seeds"]
    return (
        str(request["prompt"]),
        str(request["recipe"]),
        "+".join(called),
        str(seeds[0]),
        len(seeds),
    )


def _folders(place: Path) -> list[Path]:
    """Visible folders in a folder, links left out, in order."""
    try:
        with os.scandir(place) as found:
            names = [
                each.name
                for each in found
                if not each.name.startswith(".") and each.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []
    return [place / name for name in sorted(names)]


def _is_set(path: Path) -> bool:
    return (path / "request.json").is_file() and (path / "composite.png").is_file()
