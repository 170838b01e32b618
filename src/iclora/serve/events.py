"""What happens, told to whoever listens: server-sent events with ids that can be gone back to."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from iclora.serve.problems import Refused

__all__ = ["Bus", "Happening", "Listener"]

_KEPT = 1024
"""Events that a client who was away can still be told."""
_STREAMS = 32
_SILENCE = 15.0
"""Proxies cut what is silent for long, s."""
_PAUSE = 0.25
"""Between two reports of one job's progress, s."""


@dataclass(frozen=True)
class Happening:
    """An event: job, progress, preview, note, set or queue."""

    number: int
    type: str
    data: dict[str, Any]
    client: str | None
    """Who may hear of it besides the server's own token; None is everybody."""
    job: str | None


class Listener:
    """One stream; `close` ends it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: str, job: str | None) -> None:
        self._loop, self.client, self.job = loop, client, job
        self._waiting: asyncio.Queue[Happening | None] = asyncio.Queue(_KEPT)

    def hears(self, event: Happening) -> bool:
        """True for an event of its job, if it asked for one, that its client may hear of."""
        own = self.client == "" or event.client in (None, self.client)
        return own and self.job in (None, event.job)

    def tell(self, event: Happening | None) -> None:
        """Put an event into the stream, None to end it; from any thread."""

        def put() -> None:
            if self._waiting.full():  # It reads too slowly: it comes back by its Last-Event-ID.
                self._waiting.get_nowait()
                self._waiting.put_nowait(None)
            else:
                self._waiting.put_nowait(event)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(put)

    async def next(self, seconds: float) -> Happening | None:
        """The next event. Raises: TimeoutError; returns None at the end of the stream."""
        return await asyncio.wait_for(self._waiting.get(), seconds)


class Bus:
    """Where threads tell what happens, and streams listen."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._kept: deque[Happening] = deque(maxlen=_KEPT)
        self._listeners: set[Listener] = set()
        self._number = 0
        self._last: dict[str, float] = {}
        self._closed = False
        self.progress: dict[str, dict[str, Any]] = {}
        """The last report of progress of each job that runs."""

    @property
    def streams(self) -> int:
        return len(self._listeners)

    @property
    def last(self) -> str:
        """The id of the last event, from which a stream can go on."""
        with self._lock:
            return self._id(self._number)

    def tell(
        self, type_: str, data: dict[str, Any], client: str | None = None, job: str | None = None
    ) -> None:
        """Tell of an event; of a job's progress at most four a second, and its end."""
        with self._lock:
            if type_ == "progress" and job is not None:
                self.progress[job] = data
                ends = data.get("done") == data.get("total")
                if not ends and time.monotonic() - self._last.get(job, -1.0) < _PAUSE:
                    return
                self._last[job] = time.monotonic()
            self._number += 1
            event = Happening(self._number, type_, data, client, job)
            self._kept.append(event)
            for listener in self._listeners:
                if listener.hears(event):
                    listener.tell(event)

    def forget(self, job: str) -> None:
        """Drop the progress of a job that has ended."""
        with self._lock:
            self.progress.pop(job, None)
            self._last.pop(job, None)

    def listen(self, client: str, job: str | None = None, *, counted: bool = True) -> Listener:
        """Open a stream, in the event loop. Raises: Refused if there are too many."""
        listener = Listener(asyncio.get_running_loop(), client, job)
        with self._lock:
            if counted and len(self._listeners) >= _STREAMS:
                raise Refused(
                    429,
                    f"{_STREAMS} streams are open already",
                    "Close one, or poll: every answer of the API is the truth without events.",
                    headers={"Retry-After": "15"},
                )
            if self._closed:
                listener.tell(None)
            self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """Close a stream."""
        with self._lock:
            self._listeners.discard(listener)

    def close(self) -> None:
        """End every stream: the server goes down."""
        with self._lock:
            self._closed = True
            for listener in self._listeners:
                listener.tell(None)

    async def stream(self, listener: Listener, last: str | None) -> AsyncIterator[bytes]:
        """The bytes of a stream: first what was missed since `last`, then what happens.

        Args:
            last: the client's Last-Event-ID. If it is too old, or another process's, the first
                event is "reset": what the client knows must be asked for again.
        """
        try:
            yield b"retry: 2000\n\n"
            done = 0
            for event in self._missed(listener, last):
                done = event.number
                yield self._bytes(event)
            while True:
                try:
                    now = await listener.next(_SILENCE)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if now is None:
                    return
                if now.number > done:
                    yield self._bytes(now)
        finally:
            self.leave(listener)

    def _missed(self, listener: Listener, last: str | None) -> list[Happening]:
        if last is None:
            return []
        boot, _, number = last.partition("-")
        with self._lock:
            kept = list(self._kept)
        known = boot == self._boot and number.isascii() and number.isdigit() and len(number) < 18
        oldest = kept[0].number if kept else self._number + 1
        if not known or int(number) < oldest - 1:
            return [Happening(self._number, "reset", {}, None, None)]
        return [e for e in kept if e.number > int(number) and listener.hears(e)]

    def _id(self, number: int) -> str:
        return f"{self._boot}-{number}"

    def _bytes(self, event: Happening) -> bytes:
        text = json.dumps(event.data, separators=(",", ":"))
        return f"id: {self._id(event.number)}\nevent: {event.type}\ndata: {text}\n\n".encode()
