"""Which job is next, and where in the order a job stands."""

from __future__ import annotations

import sqlite3

from iclora.serve.jobs import Job

__all__ = ["AHEAD", "last_place", "next_rows", "place_before"]

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
