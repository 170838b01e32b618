"""The made sets of a folder, indexed in SQLite; the folders on disk are the truth.

A set appears on disk whole, by a rename, so a folder has changed only if its time has, or did so a
moment ago: a look at ten thousand sets reads nothing but what is new. Stars, notes and the trash
are kept beside the index and survive it.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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

_MANY = 500
"""Folders that are looked into while a client waits: some 10 ms."""
_AT_ONCE = 500
"""Rows in one transaction."""
_TICK = 100_000_000
"""ns: two changes that are nearer may leave one time on a folder; systems tick every 1 to 10 ms."""


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


_HOLDS = [f"{field} LIKE ? ESCAPE '^'" for field in ("prompt", "recipe", "adapter", "seed", "note")]
"""Joined into one text they would take three times as long: most sets hold a word in the first."""


class Sets:
    """The index of FOLDER/out."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store, self._catalog = store, catalog
        self._seen: dict[str, int] = {}
        """When each folder had changed last; its text takes a third of a path's memory."""
        self._looking = threading.Lock()
        self._many, self._next, self._closed = False, 0.0, False
        self.watcher: Callable[[], None] | None = None
        """Told when a look that goes on by itself has found something."""

    def look(self) -> None:
        """Take in what has been made or removed since the last look, by anybody.

        In a folder of many it goes on by itself, and what it finds is there a moment later.
        """
        if self._many:
            if time.monotonic() >= self._next and not self._looking.locked():
                self._look_aside()
            return
        self._look()

    def close(self) -> None:
        """End a look that goes on by itself, before the store is closed."""
        self._closed = True
        with self._looking:
            pass

    def _look_aside(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        began = time.monotonic()
        out = self._catalog.out
        if not self._catalog.inside(out):
            return
        folders = [out, *_folders(out)]
        if len(folders) > _MANY and not self._many:
            self._many = True
            self._look_aside()
            return
        changed = self._look_into(folders)
        if len(self._seen) > len(folders):
            for gone in set(self._seen) - set(map(str, folders)):
                self._seen.pop(gone, None)
        if changed and self._many and self.watcher:
            self.watcher()
        # Looking takes at most a tenth of the time.
        self._next = time.monotonic() + 10 * (time.monotonic() - began)

    def made_by(self, folder: Path) -> list[str]:
        """Ids of the sets that a job has made in its folder."""
        self._seen.pop(str(folder), None)
        self._look_into([folder])
        return [
            digest(path.relative_to(self._catalog.folder).as_posix())[:16]
            for path in _folders(folder)
            if _is_set(path)
        ]

    def _look_into(self, folders: Sequence[Path]) -> bool:
        """Look into folders that have changed; what is new is written a few hundred at a time.

        Returns: True if something was new or gone.
        """
        found = False
        with self._looking:
            new: list[tuple[object, ...]] = []
            gone: list[tuple[str]] = []
            seen: dict[str, int] = {}
            for folder in folders:
                if self._closed:
                    return found
                self._compare(folder, new, gone, seen)
                if len(new) >= _AT_ONCE:
                    found |= self._write(new, gone, seen)
            found |= self._write(new, gone, seen)
        return found

    def _compare(
        self,
        place: Path,
        new: list[tuple[object, ...]],
        gone: list[tuple[str]],
        seen: dict[str, int],
    ) -> None:
        """Add to `new` and `gone` what differs between a folder and the index."""
        now = time.time_ns()
        try:
            stamp = place.stat().st_mtime_ns
            if self._seen.get(str(place)) == stamp:
                return
            folders = _listed(place)
        except OSError:  # Nothing is known of what is there.
            return
        here = f"{place.relative_to(self._catalog.folder).as_posix()}/"
        # All paths that begin so: "0" comes after "/".
        rows = self._store.rows(
            "SELECT id, path FROM sets WHERE path>? AND path<?", here, f"{here[:-1]}0"
        )
        # Those of the folder itself, and of folders in it that are gone; others are looked into.
        inner = {path.name for path in folders}
        known = {}
        for row in rows:
            first, _, rest = row["path"][len(here) :].partition("/")
            if not rest or first not in inner:
                known[row["path"]] = row["id"]
        there = {f"{here}{path.name}": path for path in folders if _is_set(path)}
        found = (self._row(path, there[path]) for path in there.keys() - known.keys())
        new.extend(row for row in found if row)
        gone.extend((known[path],) for path in known.keys() - there.keys())
        if stamp < now - _TICK:  # Else a further change could leave it the same time.
            seen[str(place)] = stamp

    def _write(
        self, new: list[tuple[object, ...]], gone: list[tuple[str]], seen: dict[str, int]
    ) -> bool:
        """Returns: True if something was new or gone."""
        found = bool(new or gone)
        if found:
            with self._store.change() as db:
                db.executemany(
                    "INSERT OR REPLACE INTO sets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", new
                )
                db.executemany(
                    "DELETE FROM sets WHERE id=? AND id NOT IN"
                    " (SELECT id FROM marks WHERE trashed IS NOT NULL)",
                    gone,
                )
        self._seen.update(seen)
        for done in (new, gone, seen):
            done.clear()
        return found

    def page(
        self,
        client: str,
        words: str = "",
        *,
        recipe: str = "",
        adapter: str = "",
        starred: bool = False,
        trashed: bool = False,
        after: str | None = None,
        limit: int = 50,
    ) -> list[MadeSet]:
        """Sets, the newest first.

        Args:
            client: whose jobs made them; empty for all.
            words: that prompt, recipe, adapter, seed or note hold, each of them.
            recipe, adapter: only those with this recipe, with this adapter by its id.
            after: the `cursor_of` the last one of the page before.
        """
        tests = [f"trashed IS {'NOT ' * trashed}NULL"]
        values: list[object] = []
        if client:
            tests.append("client=?")
            values.append(client)
        if starred:
            tests.append("star=1")
        if recipe:
            tests.append("recipe=?")
            values.append(recipe)
        if adapter:
            tests.append("INSTR('+' || adapter || '+', ?)")
            values.append(f"+{adapter.rpartition('~')[2]}+")
        for word in words.split()[:20]:
            tests.append(f"({' OR '.join(_HOLDS)})")
            pattern = "%" + re.sub(r"([%_^])", r"^\1", word) + "%"
            values += len(_HOLDS) * [pattern]
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
        with self._looking, self._store.change() as db:
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

    def _row(self, path: str, folder: Path) -> tuple[object, ...] | None:
        """What the index holds of a set; None for what is none."""
        try:
            request = read_json(folder / "request.json", SettingsError, "request")
            if not isinstance(request, dict):
                return None
            values = _described(request)
            made = (folder / "request.json").stat().st_mtime_ns
            size = (folder / "composite.png").stat().st_size
        except (IcloraError, OSError, LookupError, TypeError, ValueError, AttributeError):
            return None  # Somebody else's file of that name.
        job = self._store.rows("SELECT client FROM jobs WHERE id=?", folder.parent.name)
        return (digest(path)[:16], path, made, size, *values, job[0]["client"] if job else "")

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
    called = [_called(path) for path in names]
    seeds = request["seeds"]
    return (
        str(request["prompt"]),
        str(request["recipe"]),
        "+".join(called),
        str(seeds[0]),
        len(seeds),
    )


def _called(path: Path) -> str:
    """An adapter's file as the catalog's ids end: RUN, RUN@best, RUN@STEP, or the file's name."""
    if path.stem == "adapter" and path.parent.parent.name == "checkpoints":
        step = path.parent.name.removeprefix("step-").lstrip("0") or "0"
        return f"{path.parent.parent.parent.name}@{step}"
    if path.stem in ("adapter", "adapter-best"):
        return path.parent.name + "@best" * (path.stem == "adapter-best")
    return path.stem


def _folders(place: Path) -> list[Path]:
    """As `_listed`; none of a folder that cannot be read."""
    try:
        return _listed(place)
    except OSError:
        return []


def _listed(place: Path) -> list[Path]:
    """Visible folders in a folder, links left out, in order. Raises: OSError."""
    with os.scandir(place) as found:
        names = [
            each.name
            for each in found
            if not each.name.startswith(".") and each.is_dir(follow_symlinks=False)
        ]
    return [place / name for name in sorted(names)]


def _is_set(path: Path) -> bool:
    return (path / "request.json").is_file() and (path / "composite.png").is_file()
