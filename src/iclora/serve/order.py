"""Which job is next, where in the order a job stands, and how soon there is room."""

from __future__ import annotations

import json
import sqlite3
import statistics
from collections.abc import Sequence

from iclora.serve.jobs import Job, job_of

__all__ = ["AHEAD", "last_place", "mates", "next_rows", "place_before", "usual_seconds"]

AHEAD = 32
"""Places that a job for the loaded adapter may overtake, and how often a job is overtaken."""
_NEXT = (
    "SELECT * FROM jobs WHERE status='queued' AND priority=? AND client=? ORDER BY place LIMIT ?"
)


def next_rows(db: sqlite3.Connection) -> list[sqlite3.Row]:
    """The first waiting job of the client whose turn it is, and up to 32 behind it."""
    first = db.execute(
        "SELECT priority FROM jobs WHERE status='queued' ORDER BY priority DESC, place LIMIT 1"
    ).fetchone()
    if first is None:
        return []
    turn = db.execute(
        "SELECT jobs.client AS name, MIN(place) AS place FROM jobs LEFT JOIN clients"
        " ON clients.name=jobs.client WHERE status='queued' AND priority=? GROUP BY jobs.client"
        " ORDER BY COALESCE(served, 0), place LIMIT 1",
        (first["priority"],),
    ).fetchone()
    return db.execute(_NEXT, (first["priority"], turn["name"], AHEAD + 1)).fetchall()


_OWN = frozenset({"prompt", "seed", "panel_seeds", "given", "out"})
"""Settings in which jobs of one batch may differ."""
_ALONE = ("request", "best_of", "idea", "prompts")


def _batch(job: Job) -> str | None:
    """What the jobs of one batch have in common; None for one that runs alone."""
    told = job.settings
    if job.kind not in ("generate", "complete") or any(told.get(name) for name in _ALONE):
        return None
    alike = {name: value for name, value in told.items() if name not in _OWN}
    return json.dumps([job.kind, alike, sorted(told.get("given", {}))], sort_keys=True)


def mates(
    rows: Sequence[sqlite3.Row], job: Job, most: int
) -> tuple[list[sqlite3.Row], list[sqlite3.Row]]:
    """Waiting jobs that can share a batch with a job.

    One that was tried before runs alone: it may have been what ended its worker.

    Args:
        rows: waiting jobs in their order.
    Returns: at most so many of them, and those that they overtake.
    """
    key = _batch(job)
    found: list[sqlite3.Row] = []
    between: list[sqlite3.Row] = []
    overtaken: list[sqlite3.Row] = []
    if key is None or job.exact or job.attempt > 1:
        return [], []
    for row in rows:
        if len(found) == most:
            break
        other = job_of(row)
        if not other.exact and not other.attempt and _batch(other) == key:
            found.append(row)
            overtaken = list(between)
        elif row["passed"] >= AHEAD:
            break
        else:
            between.append(row)
    return found, overtaken


def last_place(db: sqlite3.Connection) -> float:
    """The place behind all jobs."""
    return float(db.execute("SELECT COALESCE(MAX(place), 0) + 1 FROM jobs").fetchone()[0])


def place_before(db: sqlite3.Connection, other: Job) -> float:
    """A place between a waiting job and the one before it."""
    for _ in range(2):
        place = db.execute("SELECT place FROM jobs WHERE id=?", (other.id,)).fetchone()[0]
        last = db.execute(
            "SELECT COALESCE(MAX(place), ?1 - 2) FROM jobs WHERE place<?1", (place,)
        ).fetchone()[0]
        if place - last > 1e-6:
            break
        # Halved some thirty times: count all places again from 1.
        db.execute(
            "UPDATE jobs SET place=ranked.n FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY place)"
            " AS n FROM jobs) AS ranked WHERE jobs.id=ranked.id"
        )
    return float((place + last) / 2)


def usual_seconds(db: sqlite3.Connection) -> int:
    """The median time of the last jobs, s: so long until there is room for one more."""
    rows = db.execute(
        "SELECT ended - started FROM jobs WHERE status='succeeded' ORDER BY place DESC LIMIT 25"
    ).fetchall()
    usual: float = statistics.median([row[0] for row in rows] or [5.0])
    return min(3600, max(1, round(usual)))
