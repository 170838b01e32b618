"""Long work reports what it has done, and hears that it should stop.

Every function that takes long has one parameter `progress`. It calls it with each thing done; a
command line draws a bar from these events, a server sends them on. `cancel()`, from any thread,
ends the work at its next event: between two steps, so that nothing is half written.

A `Console` is where a verb speaks to people.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Cancelled", "Console", "Event", "Progress"]


@dataclass(frozen=True)
class Event:
    """One thing done."""

    what: str
    """The work, such as "training" or "encoding captions"; events of one name count together."""
    done: int
    """How much of it is done; 0 announces it."""
    total: int
    """Of how much."""
    note: str = ""
    """What a person should see beside it, such as "loss 0.4123"."""
    values: dict[str, Any] = field(default_factory=dict)
    """The same for a program, such as {"loss": 0.4123}."""


class Cancelled(BaseException):
    """The work was cancelled between two steps.

    Like KeyboardInterrupt it is no Exception: no handler of errors on the way may swallow it.
    """


class Progress:
    """Where long work reports to.

    Args:
        show: called with every event; by default nobody looks.
    """

    def __init__(self, show: Callable[[Event], None] | None = None) -> None:
        self._show = show
        self._stop = threading.Event()

    def __call__(self, what: str, done: int, total: int, note: str = "", **values: Any) -> None:
        """Report one thing done. Raises: Cancelled, after it was shown."""
        if self._show:
            self._show(Event(what, done, total, note, values))
        if self._stop.is_set():
            raise Cancelled(what)

    def cancel(self) -> None:
        """End the work at its next event; from any thread."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()


class Console(Protocol):
    """Where a verb says what it does, made and noticed."""

    def say(self, text: str) -> None:
        """A result, or what is going on."""

    def warn(self, text: str) -> None:
        """What a person should know, although the work goes on."""

    def tell(self, role: str, text: str) -> None:
        """What is wrong with something that was read: an error, warning or note."""

    def show(self, picture: Path) -> None:
        """A picture that can be looked at now."""

    def progress(self) -> AbstractContextManager[Progress]:
        """Where the work inside this block reports to."""
