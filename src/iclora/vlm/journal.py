"""Which sets a run that overwrites captions has done, so that a killed one goes on."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from iclora.files import append_line, write_text

__all__ = ["Journal"]

_LARGEST = 64 << 20
"""Bytes; some hundred thousand names."""


class Journal:
    """The names of the sets that are done.

    Args:
        settings: a hash of all that decides captions; a run with others begins again.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._path, self._settings = path, settings

    def begin(self) -> set[str]:
        """Names that are done already; none if the last run ended, or was another."""
        lines: list[str] = []
        if self._path.is_file() and self._path.stat().st_size <= _LARGEST:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines and lines[0] == json.dumps(self._settings):
            # The last line may be cut short by a kill; then its set is done once more.
            done = set()
            for line in lines[1:]:
                with suppress(ValueError, RecursionError):
                    name = json.loads(line)
                    done |= {name} if isinstance(name, str) else set()
            # Written again, or the next name would join the torn line.
            rows = [self._settings, *sorted(done)]
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
            return done
        write_text(self._path, json.dumps(self._settings) + "\n")
        return set()

    def note(self, name: str) -> None:
        append_line(self._path, json.dumps(name))

    def end(self) -> None:
        self._path.unlink(missing_ok=True)
