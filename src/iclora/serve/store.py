"""The server's SQLite file: its tables, and transactions that are on disk when they return.

One connection for all threads behind a lock: a transition takes a fraction of a millisecond, and
SQLite lets one writer in at a time anyway. WAL with synchronous FULL survives a killed process and
a power cut.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iclora.errors import StorageError

__all__ = ["MADE_AGAIN", "SOURCE", "Store", "new_id"]

_VERSION = 1
_TABLES = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, status TEXT NOT NULL, priority INTEGER NOT NULL,
    place REAL NOT NULL, passed INTEGER NOT NULL DEFAULT 0, client TEXT NOT NULL,
    tag TEXT NOT NULL, exact INTEGER NOT NULL, adapter TEXT NOT NULL, input TEXT NOT NULL,
    settings TEXT NOT NULL, folder TEXT NOT NULL, attempt INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '', created REAL NOT NULL, started REAL, ended REAL,
    result TEXT, error TEXT
) STRICT;
CREATE INDEX jobs_in_order ON jobs (status, priority DESC, place);
CREATE INDEX jobs_by_client ON jobs (status, priority DESC, client, place);
CREATE INDEX jobs_by_kind ON jobs (kind, status, ended);
CREATE INDEX jobs_by_folder ON jobs (folder);
CREATE INDEX jobs_by_place ON jobs (place);
CREATE TABLE keys (
    client TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, job TEXT NOT NULL,
    PRIMARY KEY (client, name)
) STRICT;
CREATE TABLE clients (name TEXT PRIMARY KEY, served REAL NOT NULL) STRICT;
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE sets (
    id TEXT PRIMARY KEY, path TEXT NOT NULL UNIQUE, made INTEGER NOT NULL, size INTEGER NOT NULL,
    prompt TEXT NOT NULL, recipe TEXT NOT NULL, adapter TEXT NOT NULL, seed TEXT NOT NULL,
    panels INTEGER NOT NULL, client TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX sets_by_time ON sets (made DESC, id DESC);
CREATE TABLE marks (
    id TEXT PRIMARY KEY, star INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
    trashed TEXT, version INTEGER NOT NULL DEFAULT 0
) STRICT;
"""


SOURCE = (
    "CASE WHEN json_valid(input) THEN"
    " coalesce(json_extract(input, '$.set'), json_extract(input, '$.request')) END"
)
"""The set that a job repeats, whole or in part; NULL for every other job."""
MADE_AGAIN = "CASE WHEN json_valid(result) THEN json_extract(result, '$.sets[0]') END"
"""The one set that came of such a job."""
_INDEXES = f"""
CREATE INDEX IF NOT EXISTS jobs_by_source ON jobs ({SOURCE}) WHERE {SOURCE} IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_by_made ON jobs ({MADE_AGAIN}) WHERE {SOURCE} IS NOT NULL;
"""
"""Of version 1 too: older programs keep what they do not know of up to date."""


_SET_ASIDE = """
UPDATE jobs SET status='failed', input='{}', settings='{}', result=NULL, owner='',
    ended=coalesce(ended, created), error='{"code": "Damaged", "problem":
    "its record in the server''s database is damaged", "advice": "Ask for it again.",
    "setting": null}'
WHERE status NOT IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')
    OR CASE WHEN json_valid(input) AND json_valid(settings) AND json_valid(coalesce(result, '{}'))
    AND json_valid(coalesce(error, '{}')) THEN json_type(input) != 'object'
    OR json_type(settings) != 'object' OR json_type(coalesce(result, '{}')) != 'object'
    OR json_type(coalesce(error, '{}')) != 'object' ELSE 1 END
"""
"""One job's damage costs that job alone."""


class Store:
    """A SQLite file that several threads share.

    Raises: StorageError, here and in every use, for a disk that is full or a file that is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.row_factory = sqlite3.Row
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from error
        try:
            for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
                self._db.execute(f"PRAGMA {setting}")
            self._make_tables()
        except sqlite3.Error as error:
            self._db.close()
            raise self._refused(error) from error
        except StorageError:
            self._db.close()
            raise

    def _make_tables(self) -> None:
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found > _VERSION:
            raise StorageError(
                f"{self.path} was written by a newer iclora (version {found} of its tables)",
                "Install that version, or serve another folder.",
            )
        if found < _VERSION:
            # With the version in one transaction: a killed first start leaves nothing.
            self._db.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={_VERSION}; COMMIT;"
            )
        self._db.executescript(_INDEXES)
        self._db.execute(_SET_ASIDE)

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One IMMEDIATE transaction; it is on disk when the block has ended, or undone."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """What a SELECT finds."""
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        with self._lock:
            self._db.close()

    def _refused(self, error: Exception) -> StorageError:
        if "full" in str(error):
            return StorageError(
                f"cannot write {self.path}: the disk is full",
                "Free some space; what was acknowledged is kept.",
            )
        return StorageError(
            f"cannot use {self.path}: {error}",
            "If it is damaged, move it away: sets, runs and datasets are files of their own.",
        )


_last = 0
_lock = threading.Lock()


def new_id() -> str:
    """An id that nobody can guess; ids of one process sort by time, each above the one before."""
    global _last
    with _lock:
        _last = max(time.time_ns() // 1000, _last + 1)
        return f"{_last:014x}{secrets.token_hex(6)}"
