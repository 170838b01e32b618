"""Runs as they are: read from their folders, never from what somebody wished."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

from iclora.errors import SettingsError
from iclora.files.documents import read_toml
from iclora.files.locks import LOCK
from iclora.sets.listing import open_regular
from iclora.train.asked import asked_of

try:
    import fcntl
except ImportError:  # Windows has no such locks: what runs elsewhere is not seen there.
    fcntl = None  # type: ignore[assignment]

__all__ = ["is_written", "log_after", "measures_of", "notes_of", "state_of"]

_MOST_ROWS = 5000
_LARGEST = 2**30
"""Bytes of a log; a million steps have some hundred million."""
_LONGEST_LINE = 2**20


def is_written(run: Path) -> bool:
    """True while a process trains into a run's folder: it holds the folder's lock."""
    if fcntl is None:
        return False
    try:
        held = os.open(run / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(held)
    return False


def state_of(run: Path) -> dict[str, Any]:
    """State, steps done and wanted, the last loss, and the settings that were not the defaults.

    Paths are left out; of the dataset and the recipe the names are told.
    """
    settings = _settings(run)
    last = _last_row(run / "log.jsonl")
    wanted, done = settings.get("steps", 5000), last.get("step", 0)
    if is_written(run):
        state = "running"
    else:
        state = "finished" if done >= wanted and _has_result(run) else "stopped"
    own = {"base", "data", "out", "recipe", "validation", "cache", "device"}
    shown = {key: value for key, value in settings.items() if key not in own}
    return {
        "state": state,
        "step": done,
        "steps": wanted,
        "loss": last.get("loss"),
        "settings": shown,
        "data": Path(settings.get("data") or "").name,
        "recipe": Path(settings.get("recipe") or "").name.removesuffix(".toml") or None,
        "previews": sorted(p.name for p in (run / "previews").glob("*.png")),
        "saved": sorted(p.name for p in (run / "checkpoints").glob("step-*")),
        "asked": sorted(asked_of(run)),
    }


def _settings(run: Path) -> dict[str, Any]:
    """What a run was told; without what no run is told, since somebody may have written there."""
    try:
        found = read_toml(run / "config.toml", SettingsError, "run file").get("train")
    except SettingsError:
        return {}
    kinds = {"steps": int, "data": str, "recipe": str}
    told = found if isinstance(found, dict) else {}
    return {k: v for k, v in told.items() if isinstance(v, kinds.get(k, object))}


def log_after(run: Path, step: int) -> list[dict[str, Any]]:
    """Rows of the log of losses behind a step, at most 5,000."""
    found: list[dict[str, Any]] = []
    try:
        with open_regular(run / "log.jsonl", _LARGEST) as file:
            for line in iter(partial(file.readline, _LONGEST_LINE), b""):
                row = _row(line)
                if row and row["step"] > step:
                    found.append(row)
                    if len(found) == _MOST_ROWS:
                        break
    except OSError:
        return []
    return found


def measures_of(run: Path) -> list[dict[str, Any]]:
    """Losses on held-out sets and on as many that are trained on, by step."""
    try:
        with open_regular(run / "validation.jsonl", _LARGEST) as file:
            lines = file.read().splitlines()[-_MOST_ROWS:]
    except OSError:
        return []
    return [row for row in map(_measure, lines) if row]


def notes_of(path: Path) -> list[str]:
    """What a run has said, from the file of its process."""
    try:
        lines = path.read_bytes().splitlines()[-_MOST_ROWS:]
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            said = json.loads(line)
            found += [str(said["text"])] if said["type"] == "note" else []
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _has_result(run: Path) -> bool:
    return (run / "adapter.safetensors").is_file() or (run / "base").is_dir()


def _last_row(log: Path) -> dict[str, Any]:
    """The last whole row of a log, found from its end."""
    try:
        with open_regular(log, _LARGEST) as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().splitlines()
    except OSError:
        return {}
    return next(filter(None, map(_row, reversed(lines))), {})


def _row(line: bytes) -> dict[str, Any]:
    """A step and its loss; nothing for a line that a kill cut short."""
    try:
        row = json.loads(line)
        known = isinstance(row["step"], int) and math.isfinite(row["loss"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return {}
    return row if known else {}


def _measure(line: bytes) -> dict[str, Any]:
    """A step's losses; nothing for a line that a kill cut short or that has no number."""
    try:
        row = json.loads(line)
        losses = {name: float(row[name]["loss"]) for name in ("held out", "trained")}
        step = int(row["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return {}
    if not all(map(math.isfinite, losses.values())):
        return {}
    return {"step": step, "held_out": losses["held out"], "trained": losses["trained"]}
