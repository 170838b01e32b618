"""Verbs that serve: serve studio."""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from iclora.errors import SettingsError
from iclora.files import check_folder
from iclora.progress import Console
from iclora.settings import MakingMachine, ServeSettings, StudioSettings, verb

if TYPE_CHECKING:
    from iclora.serve.engine import Engine
    from iclora.serve.server import Server

__all__ = ["serve", "studio"]


@verb(ServeSettings)
def serve(settings: ServeSettings, console: Console) -> None:
    """Take jobs over HTTP, keep them on disk, and make sets with a base that stays loaded."""
    _check_installed("serve")
    from iclora.serve.app import make_app
    from iclora.serve.running import run

    with _opened(settings, _base_of(settings), console) as (server, listening):
        address, home = _address(settings, listening), server.catalog.home
        console.say(
            f"serving {server.catalog.folder} at {address} with {server.base}\n"
            f"look      {address}/login?code={server.access.new_code()} (works once)\n"
            f"token     {home / 'token'}; send it as `Authorization: Bearer TOKEN`\n"
            f'try       curl -H "Authorization: Bearer $(cat {home / "token"})" '
            f"{address}/api/v1/about"
        )
        sys.stdout.flush()
        run(make_app(server), server, listening)


@verb(StudioSettings)
def studio(settings: StudioSettings, console: Console) -> None:
    """Open the page where sets are made: the server of `serve` with its page."""
    _check_installed("studio")
    from iclora.serve.running import run
    from iclora.serve.studio.app import link, make_studio
    from iclora.serve.studio.toys import with_its_own, write_toy_recipes, write_toy_sets

    base = _base_of(settings, "toyland")
    settings = with_its_own(settings, base)
    # A line for each request would push the link out of sight.
    with _opened(settings, base, console, logging.WARNING) as (server, listening):
        if base == "toyland":
            written = write_toy_recipes(server.catalog.folder)
            if written:
                console.say(f"wrote recipes of the embedded base: {', '.join(written)}")
            if write_toy_sets(server.catalog.folder):
                console.say("drew three example sets of the embedded base, into data")
        address, port = _address(settings, listening), listening.getsockname()[1]
        shown = link(server, address)
        console.say(
            f"studio of {server.catalog.folder} with {base}\n"
            f"open      {shown}\n"
            f"from another machine, first there: {_tunnel(port)}\n"
            "Ctrl-C ends it; what is queued stays"
        )
        sys.stdout.flush()
        if settings.browser and _has_screen():
            # A little later, when the server answers.
            opening = threading.Timer(0.5, webbrowser.open, [shown])
            opening.daemon = True
            opening.start()
        run(make_studio(server), server, listening)


def _check_installed(extra: str) -> None:
    """Raises: SettingsError that says what to install."""
    try:
        import python_multipart  # noqa: F401 (FastAPI asks for it only when a form comes)

        import iclora.serve.app
        import iclora.serve.running  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"the server needs a package that is not installed: {error.name}",
            f'Install it with: pip install "iclora[{extra}]"',
        ) from error


@contextmanager
def _opened(
    settings: ServeSettings, base: str, console: Console, level: int = logging.INFO
) -> Iterator[tuple[Server, socket.socket]]:
    """A server over its folder, and the socket that it will listen on."""
    from iclora.serve.server import Server

    with _listen(settings) as listening:
        server = Server(settings, base, _engine_of(settings, base, console))
        _log_to_stderr(level)
        yield server, listening


def _address(settings: ServeSettings, listening: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listening.getsockname()[1]}"


def _tunnel(port: int) -> str:
    """What makes the page reachable on a machine that may log in here."""
    return f"ssh -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}"


def _has_screen() -> bool:
    """True if a browser can be shown; elsewhere one in the terminal would take the keyboard."""
    if "SSH_CONNECTION" in os.environ:
        return False
    own = sys.platform in ("darwin", "win32")
    return own or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _base_of(settings: ServeSettings, otherwise: str | None = None) -> str:
    """The base of the workers: as it was told, else what the first adapter was trained on.

    Raises: SettingsError if nothing tells one, and there is none to take otherwise.
    """
    check_folder(settings.folder, "folder")
    from iclora.serve.catalog import Catalog

    if settings.base:
        return settings.base
    found = Catalog(Path(settings.folder), settings.adapter).adapters()
    base = next((each.base for each in found.values() if each.base), None)
    base = base or otherwise
    if base is None:
        raise SettingsError(
            "no base is given, and there is no adapter that tells one",
            "Set `base`, for instance to black-forest-labs/FLUX.2-klein-base-4B or toyland.",
            setting="base",
        )
    return base


def _engine_of(settings: ServeSettings, base: str, console: Console) -> Engine:
    from iclora.serve.catalog import Catalog
    from iclora.serve.local import LocalEngine

    machine = MakingMachine(**settings.of_workers())
    logs = Path(settings.folder).resolve() / ".iclora" / "logs"
    warm = settings.warm
    if machine.compile and not warm:
        offered = Catalog(Path(settings.folder), settings.adapter).adapters()
        warm = tuple(str(each.path) for each in offered.values())
    make = partial(
        LocalEngine, base=base, machine=machine, warm=warm, logs=logs, together=settings.together
    )
    if settings.engine == "ray":
        from iclora.serve.cluster.engine import on_cluster

        return on_cluster(settings, console, logs, make)
    return make(_devices(settings))


def _devices(settings: ServeSettings) -> list[str]:
    """A device for each worker. Raises: SettingsError for more GPUs than there are."""
    from iclora.serve.children import count_gpus

    if settings.device != "auto" and settings.gpus not in (1, "all"):
        raise SettingsError("one device is named, and several GPUs", "Leave one out.", "gpus")
    there = count_gpus() if settings.device == "auto" else 0
    gpus = there if settings.gpus == "all" else settings.gpus
    if settings.device == "auto" and gpus > max(there, 1):
        raise SettingsError(
            f"there are {there} GPUs here", "Set `gpus` to as many, or to all.", "gpus"
        )
    if settings.device == "cpu" or (settings.device == "auto" and not there):
        return ["cpu"] if settings.cpus == 1 else [f"cpu:{n}" for n in range(settings.cpus)]
    if settings.cpus != 1:
        raise SettingsError(
            "`cpus` is given, and the workers compute on GPUs", "Set `device` to cpu.", "cpus"
        )
    return [f"cuda:{n}" for n in range(gpus)] if there else [settings.device]


def _listen(settings: ServeSettings) -> socket.socket:
    """The socket, before anything is opened: two servers on one port are told apart at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named, or asyncio takes it for none that has Nagle's algorithm to switch off,
    # which holds every answer back for 40 ms.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host.strip("[]"), settings.port))
        # Who calls as soon as the address is printed waits instead of being turned away.
        found.listen(2048)
    except OSError as error:
        found.close()
        raise SettingsError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}",
            "Choose another `port`, or 0 for a free one.",
            setting="port",
        ) from error
    return found


class _Lines(logging.Formatter):
    """One line of JSON for everything, so that a program can read the log."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.name == "iclora.serve.access":
            return text
        said = {"level": record.levelname.lower(), "said": text}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _log_to_stderr(level: int) -> None:
    told = logging.StreamHandler()
    told.setFormatter(_Lines())
    log = logging.getLogger("iclora.serve")
    log.addHandler(told)
    log.setLevel(level)
    log.propagate = False
