"""If the base takes an adapter, known before a job is acknowledged.

The web process reads no weights: a worker does, and what it said holds as long as the file does.
"""

from __future__ import annotations

from collections.abc import Iterable

from iclora.errors import AdapterError
from iclora.serve.catalog import AdapterFile
from iclora.serve.engine import Engine, Fit

__all__ = ["Fits"]

Stamp = tuple[int, int, int]
"""Size, time and number of a file: others mean that it was written again."""


class Fits:
    """Knows which adapters the workers' base takes.

    Args:
        base: its name.
    """

    def __init__(self, engine: Engine, base: str) -> None:
        self._engine, self._base = engine, base
        self._known: dict[str, tuple[Stamp, Fit]] = {}

    def check(self, adapters: Iterable[AdapterFile]) -> None:
        """Ask a worker about each that is not known yet.

        One that no worker can tell of just now, since they are all starting or gone, is left to
        the job: that fails by the same error before it computes anything.

        Raises: AdapterError for one that is damaged, or that the base has no place for.
        """
        for adapter in adapters:
            problem = self._fit(adapter).problem
            if problem:
                text = str(problem["problem"]).replace(str(adapter.path), adapter.id)
                raise AdapterError(text, str(problem["advice"]), "adapter")

    def _fit(self, adapter: AdapterFile) -> Fit:
        try:
            about = adapter.path.stat()
        except OSError:  # It went away since it was listed; the job says so.
            return Fit(known=False)
        stamp = (about.st_size, about.st_mtime_ns, about.st_ino)
        path = str(adapter.path)
        before, found = self._known.get(path, (None, None))
        if found is None or before != stamp:
            found = self._engine.fit(self._base, path)
            if found.known:
                self._known[path] = stamp, found
        return found
