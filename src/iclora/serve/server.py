"""All parts of the server, opened together."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from iclora.errors import RunError
from iclora.files.locks import alone
from iclora.serve.access import Access
from iclora.serve.assets import Assets
from iclora.serve.catalog import Catalog
from iclora.serve.dispatch import Dispatcher
from iclora.serve.edits import Edits
from iclora.serve.engine import Engine
from iclora.serve.events import Bus
from iclora.serve.fits import Fits
from iclora.serve.index import Sets
from iclora.serve.intake import Intake
from iclora.serve.jobs import ENDED, Job
from iclora.serve.looks import Looks
from iclora.serve.metrics import Metrics
from iclora.serve.problems import Refused
from iclora.serve.queue import Queue
from iclora.serve.store import Store
from iclora.serve.tokens import Tokens
from iclora.serve.uploads import Uploads
from iclora.settings import ServeSettings

__all__ = ["Here", "Server", "Who"]

_LEAST_FREE = 512 * 2**20
"""Bytes on the disk below which no further job is taken: a set has some 10 MB."""


class Server:
    """All that routes need. Opening it takes the folder: one server at a time.

    Args:
        settings: what `serve` was told.
        base: name of the base that the workers hold.
        engine: what runs jobs; it is started by the app.
    Raises: RunError if another server has the folder; SettingsError, StorageError.
    """

    def __init__(self, settings: ServeSettings, base: str, engine: Engine) -> None:
        self.settings, self.base, self.engine = settings, base, engine
        self.catalog = Catalog(Path(settings.folder), settings.adapter)
        home = self.catalog.home
        with ExitStack() as opened:
            opened.enter_context(alone(home / "lock", self.catalog.folder, self._taken))
            self.access = Access(settings, home)
            self.store = Store(home / "serve.sqlite")
            opened.callback(self.store.close)
            self._open = opened.pop_all()  # What cannot be opened gives the folder back.
        self.queue = Queue(self.store, f"{os.getpid()}-{secrets.token_hex(6)}")
        self.bus = Bus()
        self.sets = Sets(self.store, self.catalog)
        self.sets.watcher = lambda: self.bus.tell("set", {"id": None, "job": None})
        self.assets = Assets(home / "assets")
        self.uploads, self.edits = Uploads(self.catalog), Edits(self.catalog)
        self.tokens = Tokens(base)
        self.looks = Looks(self.catalog, self.tokens)
        fits = Fits(engine, base)
        self.intake = Intake(settings, base, self.catalog, self.assets, self.sets, fits)
        self.metrics = Metrics(self.queue, self.bus, self.catalog.folder)
        self.dispatcher = Dispatcher(
            self.queue, engine, self.bus, self.sets, self.catalog, self.metrics
        )
        self.closing = False
        self.queue.watchers.append(self._tell)
        if settings.paused:
            self.queue.pause(True)

    def _taken(self, problem: str, advice: str) -> RunError:
        del problem, advice  # Another server does not end by itself.
        return RunError(
            f"another server has {self.catalog.folder}",
            "Use its page, end it, or choose another folder.",
            setting="folder",
        )

    def _tell(self, job: Job) -> None:
        if job.status in ENDED:
            self.metrics.ended(job)
        about = {"id": job.id, "kind": job.kind, "status": job.status, "attempt": job.attempt}
        self.bus.tell("job", about, job.client, job.id)

    def not_ready(self) -> str | None:
        """None once every worker holds its base, else why not yet, as clients are told."""
        why = self.engine.ready()
        return why and self.catalog.hide(why)

    def check_room(self) -> None:
        """Raises: Refused with 507 if the disk is nearly full."""
        free = shutil.disk_usage(self.catalog.folder).free
        if free < _LEAST_FREE:
            raise Refused(
                507,
                f"the disk has {free / 1e6:.0f} MB left, and a job may need more",
                "Free some space; jobs that wait are kept.",
            )

    def go_down(self) -> None:
        """Take no more requests and end all streams."""
        self.closing = True
        self.bus.close()

    def close(self) -> None:
        """End workers and give the folder back; what ran is queued again."""
        self.go_down()
        self.dispatcher.stop()
        self.sets.close()
        self._open.close()


def here(request: Request) -> Server:
    """The server that a request came to."""
    server: Server = request.app.state.server
    return server


def who(request: Request) -> str:
    """The name of the key a request came with; empty for the server's own token."""
    return str(request.state.client)


Here = Annotated[Server, Depends(here)]
Who = Annotated[str, Depends(who)]
