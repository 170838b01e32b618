"""Choices that were measured on a device, kept on disk for the processes that come after.

A file holds those of one device and its versions:

    {"about": {"device": ..., "torch": ...},
     "chosen": {"bfloat16, 24 heads of 128, 4096 queries, 4096 keys, forward": "flash"},
     "measured": {"bfloat16, 24 heads ...": "flash 1.02 ms, cuDNN 1.31 ms"}}

"chosen" alone is obeyed. A person may write another name there, and one under "any", which stands
for all kinds that are not named.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeGuard

from iclora.errors import StorageError
from iclora.files import cache_home, digest, set_aside, write_text
from iclora.files.documents import parse_json, read_bytes
from iclora.files.locks import alone

__all__ = ["Choices"]

_log = logging.getLogger("iclora.models")

_MOST_BYTES = 2**20
"""A choice takes some 200 bytes, and few machines see a hundred kinds."""
_WAIT = 5.0
"""Seconds for another process to write its choice."""


class _Busy(StorageError):
    """Another process is writing just now."""


class _Unread(StorageError):
    """A file that is damaged, or of something else."""


class _Kept(NamedTuple):
    """What the file holds, by kind."""

    chosen: dict[str, str]
    measured: dict[str, str]


class Choices:
    """What was chosen on a device, by kind; several processes may read it and add to it.

    A disk that cannot be read or written is said, and costs no more than measuring again.
    """

    def __init__(self, about: Mapping[str, str], folder: Path | None = None) -> None:
        """
        Args:
            about: the device, and all versions that a choice depends on.
            folder: by default one of the cache.
        """
        self.about = dict(about)
        self._folder = folder

    @property
    def path(self) -> Path:
        """The file. Raises: StorageError if there is no place for caches."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.about.get("device", "")).strip("-")[:60]
        key = digest(json.dumps(self.about, sort_keys=True))[:12]
        return (self._folder or cache_home() / "kernels") / f"{name}-{key}.json"

    def find(self, kind: str, names: Collection[str]) -> str | None:
        """What was chosen for a kind, among these names; None if it must be measured."""
        try:
            return _among(self._read().chosen, kind, names)
        except StorageError as error:
            _log.warning("%s; the kernel is chosen again", error.problem)
            return None

    def keep(self, kind: str, name: str, measured: str, names: Collection[str]) -> str:
        """Keep a choice, whole or not at all.

        Args:
            measured: what it comes from, for people.
            names: all that may be chosen.
        Returns: the choice that holds: another process's, if that one was first.
        """
        try:
            with self._alone():
                kept = self._read_or_set_aside()
                if (other := _among(kept.chosen, kind, names)) is not None:
                    return other
                kept.chosen[kind], kept.measured[kind] = name, measured
                text = json.dumps({"about": self.about, **kept._asdict()}, indent=1)
                write_text(self.path, text + "\n")
        except StorageError as error:
            _log.warning("the choice of a kernel holds for this process alone: %s", error.problem)
        return name

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process writes the file. Raises: StorageError."""
        last = time.monotonic() + _WAIT
        while True:
            with ExitStack() as held:
                try:
                    held.enter_context(alone(self.path.with_suffix(".lock"), self.path, _Busy))
                except _Busy:
                    if time.monotonic() > last:
                        raise
                else:
                    yield
                    return
            time.sleep(0.02)

    def _read_or_set_aside(self) -> _Kept:
        try:
            return self._read()
        except _Unread:
            set_aside(self.path)  # A person's own changes may be in it.
            return _Kept({}, {})

    def _read(self) -> _Kept:
        """Raises: StorageError if there is no place for caches; _Unread."""
        with suppress(FileNotFoundError, NotADirectoryError):
            self.path.lstat()
            raw = read_bytes(self.path, _Unread, "the file of chosen kernels", _MOST_BYTES)
            found = parse_json(raw, f"the file of chosen kernels {self.path}", _Unread)
            if not isinstance(found, dict) or found.get("about") != self.about:
                problem = f"the file of chosen kernels {self.path} is not of this device"
                raise _Unread(problem, "Remove it.")
            chosen, measured = found.get("chosen"), found.get("measured")
            if _is_table(chosen) and _is_table(measured):
                return _Kept(chosen, measured)
            problem = f"the file of chosen kernels {self.path} lacks its tables of names"
            raise _Unread(problem, "Remove it.")
        return _Kept({}, {})


def _among(chosen: Mapping[str, str], kind: str, names: Collection[str]) -> str | None:
    named = (chosen.get(key) for key in (kind, "any"))
    return next((name for name in named if name in names), None)


def _is_table(found: object) -> TypeGuard[dict[str, str]]:
    return isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
