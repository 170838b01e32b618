"""The queue: jobs on disk before they are acknowledged, each transition one transaction.

    queued -> running -> succeeded | failed
       |         `-> cancelling -> cancelled (or succeeded, if it was done before it heard)
       `-> cancelled

A claim is a lease of one server process: when another one opens the folder, what the first was
running is queued again with its attempt counted. Folder and seeds of a job are fixed when it is
acknowledged, so a further attempt finds a finished set instead of making another.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from iclora.errors import SettingsError
from iclora.serve.engine import Outcome, Problem
from iclora.serve.jobs import Busy, Full, Job, NewJob, NoSuchJob, job_of
from iclora.serve.order import AHEAD, last_place, mates, next_rows, place_before, usual_seconds
from iclora.serve.store import Store

__all__ = ["Queue"]

_ATTEMPTS = 5
_KEPT = 10_000
"""Ended jobs that are remembered."""


class Queue:
    """Jobs, their order and their ends.

    Args:
        store: where they are kept.
        owner: of this process; leases of any other are taken back by `recover`.
        most: jobs that may wait; a client with a key of its own may have `most_of_one`.
    """

    def __init__(
        self, store: Store, owner: str, *, most: int = 1000, most_of_one: int = 200
    ) -> None:
        self._store, self.owner, self._most, self._most_of_one = store, owner, most, most_of_one
        self.changed = threading.Condition()
        """Notified whenever a worker may find something to do."""
        self.watchers: list[Callable[[Job], None]] = []
        """Called with every job after a transition, from the thread that made it."""

    # -- what clients do --------------------------------------------------------------------------

    def submit(self, new: NewJob, key: str | None = None, body: str = "") -> tuple[Job, bool]:
        """Put a job on disk.

        Args:
            key: the client's idempotency key, if it sent one.
            body: a hash of what the client asked for.
        Returns: the job, and True if it is new; False if the key was seen before.
        Raises: SettingsError for a key with another body, Full, Busy for a folder in use.
        """
        with self._store.change() as db:
            if key is not None:
                seen = db.execute(
                    "SELECT body, job FROM keys WHERE client=? AND name=?", (new.client, key)
                ).fetchone()
                if seen and seen["body"] != body:
                    raise SettingsError(
                        "this idempotency key came with another request before",
                        "Use a new key for a new request.",
                    )
                if seen:
                    return job_of(_row(db, seen["job"])), False
            self._check_room(db, new)
            row: dict[str, Any] = {
                **asdict(new),
                "exact": int(new.exact),
                "input": json.dumps(new.input),
                "settings": json.dumps(new.settings),
                "status": "queued",
                "created": time.time(),
                "place": last_place(db),
            }
            names = ", ".join(row)
            marks = ", ".join(f":{name}" for name in row)
            db.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", row)  # noqa: S608
            if key is not None:
                db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (new.client, key, body, new.id))
            made = job_of(_row(db, new.id))
        return self._told(made), True

    def _check_room(self, db: sqlite3.Connection, new: NewJob) -> None:
        waiting = "SELECT COUNT(*) FROM jobs WHERE status='queued'"
        if db.execute(waiting).fetchone()[0] >= self._most:
            raise Full(f"{self._most} jobs wait already", usual_seconds(db))
        own = db.execute(f"{waiting} AND client=?", (new.client,)).fetchone()[0]
        if new.client and own >= self._most_of_one:
            raise Full(f"{self._most_of_one} jobs of this key wait already", usual_seconds(db))
        other = db.execute(
            "SELECT id FROM jobs WHERE folder=? AND status IN ('queued', 'running', 'cancelling')",
            (new.folder,),
        ).fetchone()
        if other:
            raise Busy(f"job {other['id']} will write there", "Wait for it, or use another name.")

    def get(self, job: str, client: str = "") -> Job:
        """Raises: NoSuchJob, for another client's too."""
        found = self._store.rows("SELECT * FROM jobs WHERE id=?", job)
        if not found or (client and found[0]["client"] != client):
            raise NoSuchJob(job)
        return job_of(found[0])

    def page(
        self,
        client: str = "",
        status: str | None = None,
        kind: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Jobs, the newest first.

        Args:
            before: the last id of the page before.
        """
        wanted = {"client": client or None, "status": status, "kind": kind}
        given = {name: value for name, value in wanted.items() if value is not None}
        tests = [f"{name}=?" for name in given] + ["id<?"] * (before is not None)
        where = f" WHERE {' AND '.join(tests)}" if tests else ""
        values = [*given.values(), *([before] if before is not None else []), limit]
        query = f"SELECT * FROM jobs{where} ORDER BY id DESC LIMIT ?"  # noqa: S608
        return [job_of(row) for row in self._store.rows(query, *values)]

    def of_folder(self, folder: str, client: str = "") -> Job | None:
        """The job that writes a folder, or waits to."""
        rows = self._store.rows(
            "SELECT * FROM jobs WHERE folder=?1 AND (?2='' OR client=?2)"
            " AND status IN ('queued', 'running', 'cancelling')",
            folder,
            client,
        )
        return job_of(rows[0]) if rows else None

    def positions(self) -> dict[str, int]:
        """How many jobs are before each queued one, by its id."""
        rows = self._store.rows(
            "SELECT id FROM jobs WHERE status='queued' ORDER BY priority DESC, place"
        )
        return {row["id"]: number for number, row in enumerate(rows)}

    def position(self, job: Job) -> int | None:
        """How many jobs are before it, None if it does not wait."""
        if job.status != "queued":
            return None
        return int(
            self._store.rows(
                "SELECT COUNT(*) FROM jobs WHERE status='queued' AND"
                " (priority>?1 OR (priority=?1 AND place<?2))",
                job.priority,
                job.place,
            )[0][0]
        )

    def cancel(self, job: str, client: str = "") -> Job:
        """Cancel this one job: at once if it waits, between two steps if it runs."""
        found = self.get(job, client)
        with self._store.change() as db:
            db.execute(
                "UPDATE jobs SET ended=?, status='cancelled' WHERE id=? AND status='queued'",
                (time.time(), found.id),
            )
            db.execute(
                "UPDATE jobs SET status='cancelling' WHERE id=? AND status='running'", (found.id,)
            )
            now = job_of(_row(db, found.id))
        return self._told(now) if now.status != found.status else now

    def cancel_waiting(self, client: str = "") -> list[Job]:
        """Cancel every job that waits, and none that runs."""
        with self._store.change() as db:
            rows = db.execute(
                "UPDATE jobs SET status='cancelled', ended=? WHERE status='queued'"
                " AND (?2='' OR client=?2) RETURNING *",
                (time.time(), client),
            ).fetchall()
        return [self._told(job_of(row)) for row in rows]

    def retry(self, job: str, client: str = "") -> Job:
        """Queue a job again that failed or was cancelled. Raises: Busy for any other."""
        found = self.get(job, client)
        with self._store.change() as db:
            db.execute(
                "UPDATE jobs SET status='queued', attempt=0, passed=0, started=NULL, ended=NULL,"
                " error=NULL, result=NULL, place=? WHERE id=? AND status IN ('failed','cancelled')",
                (last_place(db), found.id),
            )
            changed = db.execute("SELECT changes()").fetchone()[0]
            now = job_of(_row(db, found.id))
        if not changed:
            raise Busy(f"job {job} is {now.status}", "Retry jobs that failed or were cancelled.")
        return self._told(now)

    def move(
        self, job: str, client: str = "", priority: int | None = None, before: str | None = None
    ) -> Job:
        """Give a waiting job another priority, or the place before another. Raises: Busy."""
        found = self.get(job, client)
        other = self.get(before, client) if before is not None else None
        if "queued" not in {found.status} or (other and other.status != "queued"):
            raise Busy("only jobs that wait are moved", "List them with status queued.")
        with self._store.change() as db:
            place, rank = found.place, found.priority if priority is None else priority
            if other is not None and other.id != found.id:
                place, rank = place_before(db, other), other.priority
            db.execute(
                "UPDATE jobs SET priority=?, place=?, passed=0 WHERE id=? AND status='queued'",
                (rank, place, found.id),
            )
            now = job_of(_row(db, found.id))
        return self._told(now)

    @property
    def paused(self) -> bool:
        """True if no job is begun; what runs goes on."""
        found = self._store.rows("SELECT value FROM state WHERE name='paused'")
        return bool(found) and found[0]["value"] == "yes"

    def pause(self, paused: bool) -> None:
        """Begin no further job, or go on; it holds over a restart."""
        with self._store.change() as db:
            value = "yes" if paused else "no"
            db.execute("INSERT OR REPLACE INTO state VALUES ('paused', ?)", (value,))
        self._wake()

    def counts(self) -> dict[tuple[str, str], int]:
        """Jobs by kind and status."""
        rows = self._store.rows("SELECT kind, status, COUNT(*) FROM jobs GROUP BY kind, status")
        return {(row[0], row[1]): row[2] for row in rows}

    # -- what workers do --------------------------------------------------------------------------

    def claim(self, worker: str, loaded: str | None = None) -> Job | None:
        """Take the next job, by priority, then for the loaded adapter, then in order.

        With several keys waiting at the same priority, the one that was served longest ago is next.

        Args:
            loaded: the adapter that is warm in this worker. A job for it may overtake up to 32
                others, and no job is overtaken more than 32 times.
        Returns: None if there is none, or if the queue is paused.
        """
        with self._store.change() as db:
            paused = db.execute("SELECT value FROM state WHERE name='paused'").fetchone()
            if paused and paused["value"] == "yes":
                return None
            rows = next_rows(db)
            if not rows:
                return None
            at = 0
            if loaded is not None and rows[0]["passed"] < AHEAD:
                same = (n for n, row in enumerate(rows) if row["adapter"] == loaded)
                at = next(same, 0)
            taken = self._take(db, worker, [rows[at]], rows[:at])
        return self._told(taken[0])

    def claim_beside(self, job: Job, worker: str, most: int) -> list[Job]:
        """Take up to so many waiting jobs that can share a batch with one that was claimed.

        They stand at most 32 places ahead, and overtake others as in `claim`.
        """
        with self._store.change() as db:
            taken = self._take(db, worker, *mates(next_rows(db), job, most))
        return [self._told(each) for each in taken]

    def _take(
        self,
        db: sqlite3.Connection,
        worker: str,
        chosen: Sequence[sqlite3.Row],
        overtaken: Sequence[sqlite3.Row],
    ) -> list[Job]:
        now = time.time()
        db.executemany(
            "UPDATE jobs SET passed=passed+1 WHERE id=?", [(row["id"],) for row in overtaken]
        )
        for row in chosen:
            db.execute(
                "UPDATE jobs SET status='running', attempt=attempt+1, owner=?, started=?"
                " WHERE id=?",
                (f"{self.owner} {worker}", now, row["id"]),
            )
            db.execute("INSERT OR REPLACE INTO clients VALUES (?, ?)", (row["client"], now))
        return [job_of(_row(db, row["id"])) for row in chosen]

    def finish(self, job: Job, outcome: Outcome) -> Job | None:
        """Write down how a job ended; None if its lease is not this one's any more."""
        return self._end(job, outcome.status, outcome.result, outcome.error)

    def give_back(self, job: Job, signal: str) -> Job | None:
        """A job's worker died: queue it again, or fail it if that was its last attempt."""
        if job.attempt < _ATTEMPTS:
            return self._end(job, "queued")
        error: Problem = {
            "code": "WorkerDied",
            "problem": f"its worker was ended by {signal}, {_ATTEMPTS} times in all",
            "advice": "Look for too little memory; retry it when there is more.",
            "setting": None,
        }
        return self._end(job, "failed", error=error)

    def release(self, job: Job) -> Job | None:
        """The server goes down in order: queue a job again as if it had not been tried."""
        return self._end(job, "queued", counted=False)

    def take_over(self, workers: Sequence[str]) -> list[tuple[str, Job]]:
        """Go on with the training runs of a process that is gone: they outlive their server.

        Args:
            workers: of this process; a run stays with the one it had, if there is one of its name.
        Returns: running and cancelling jobs, which are now this process's, each with its worker.
        """
        found = []
        with self._store.change() as db:
            rows = db.execute(
                "SELECT id, owner FROM jobs WHERE status IN ('running', 'cancelling')"
                " AND kind='train'"
            ).fetchall()
            for row in rows:
                owner, _, had = row["owner"].partition(" ")
                if owner == self.owner:
                    continue
                worker = had if had in workers else workers[0]
                db.execute(
                    "UPDATE jobs SET owner=? WHERE id=?", (f"{self.owner} {worker}", row["id"])
                )
                found.append((worker, job_of(_row(db, row["id"]))))
        return found

    def recover(self) -> list[Job]:
        """Take back the leases of processes that are gone, after `take_over`, at the start."""
        rows = self._store.rows("SELECT * FROM jobs WHERE status IN ('running', 'cancelling')")
        gone = [job_of(row) for row in rows if not row["owner"].startswith(f"{self.owner} ")]
        ended = [self.give_back(job, "the server's end") for job in gone]
        with self._store.change() as db:
            db.execute(
                "DELETE FROM jobs WHERE status IN ('succeeded', 'failed', 'cancelled') AND id <"
                " (SELECT id FROM jobs ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (_KEPT,),
            )
            db.execute("DELETE FROM keys WHERE job NOT IN (SELECT id FROM jobs)")
        return [job for job in ended if job]

    def _end(
        self,
        job: Job,
        status: str,
        result: dict[str, Any] | None = None,
        error: Problem | None = None,
        counted: bool = True,
    ) -> Job | None:
        with self._store.change() as db:
            row = _row(db, job.id)
            if row["status"] not in ("running", "cancelling") or row["owner"] != job.owner:
                return None
            if row["status"] == "cancelling" and status in ("queued", "failed"):
                status = "cancelled"
            db.execute(
                "UPDATE jobs SET status=?, result=?, error=?, ended=?, owner='', attempt=?"
                " WHERE id=?",
                (
                    status,
                    json.dumps(result) if result is not None else None,
                    json.dumps(error) if error is not None and status == "failed" else None,
                    None if status == "queued" else time.time(),
                    row["attempt"] - (not counted),
                    job.id,
                ),
            )
            now = job_of(_row(db, job.id))
        return self._told(now)

    def _told(self, job: Job) -> Job:
        self._wake()
        for watch in self.watchers:
            watch(job)
        return job

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()


def _row(db: sqlite3.Connection, job: str) -> sqlite3.Row:
    row: sqlite3.Row = db.execute("SELECT * FROM jobs WHERE id=?", (job,)).fetchone()
    return row
