"""sets.jsonl: where collected sets came from, and how good they are.

    {"set": "0001", "scene": "film.mp4, scene 3", "score": 0.9, "reasons": [...], "panels": [...]}

Sets of one scene show the same people and places. So a scene is trained on or held out as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from iclora.errors import DatasetError
from iclora.files.documents import decode, parse_json
from iclora.sets.listing import File, Problem

__all__ = ["ORIGINS", "SetOrigin", "read_origins"]

ORIGINS = "sets.jsonl"
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class SetOrigin:
    """Where one set came from."""

    scene: str
    score: float | None = None
    """From 0 to 1; None if nobody judged it."""
    reasons: tuple[str, ...] = ()
    """What lowers the score."""
    sources: tuple[str, ...] = ()
    """The files its panels were taken from, each once."""


def read_origins(file: File) -> tuple[dict[str, SetOrigin], list[Problem]]:
    """The origins of sets by their names.

    Returns: what could be read, and what is wrong with the rest.
    """
    try:
        text = decode(file.read(_MOST_BYTES), file.name, DatasetError)
    except DatasetError as error:
        return {}, [Problem(file.name, error.problem, error.advice, "warning")]
    found: dict[str, SetOrigin] = {}
    wrong: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, f"line {number}", DatasetError)
            name, origin = str(row["set"]), _origin(row)
        except (DatasetError, KeyError, TypeError, ValueError):
            wrong.append(number)
            continue
        found[name] = origin
    problems = []
    if wrong:
        problems.append(
            Problem(
                file.name,
                f"line {wrong[0]} cannot be read"
                + (f", nor {len(wrong) - 1} others" if len(wrong) > 1 else "")
                + ", so the scenes of those sets are not known",
                "Correct it, or collect the sets again.",
                "warning",
            )
        )
    return found, problems


def _origin(row: dict[str, object]) -> SetOrigin:
    score, reasons, panels = row.get("score"), row.get("reasons") or [], row.get("panels") or []
    if not isinstance(reasons, list) or not isinstance(panels, list):
        raise ValueError("reasons and panels are lists")
    sources = [str(panel["file"]) for panel in panels]
    return SetOrigin(
        str(row.get("scene") or ""),
        None if score is None else float(str(score)),
        tuple(map(str, reasons)),
        tuple(dict.fromkeys(sources)),
    )
