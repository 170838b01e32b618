"""The verb that serves: serve."""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from iclora.errors import SettingsError
from iclora.files import check_folder
from iclora.progress import Console
from iclora.settings import Machine, ServeSettings, verb

if TYPE_CHECKING:
    from iclora.serve.engine import Engine

__all__ = ["serve"]


@verb(ServeSettings)
def serve(settings: ServeSettings, console: Console) -> None:
    """Take jobs over HTTP, keep them on disk, and make sets with a base that stays loaded."""
    check_folder(settings.folder, "folder")
    try:
        import python_multipart  # noqa: F401 (FastAPI asks for it only when a form comes)

        from iclora.serve.app import make_app
        from iclora.serve.running import run
        from iclora.serve.server import Server
    except ImportError as error:
        raise SettingsError(
            f"the server needs a package that is not installed: {error.name}",
            'Install it with: pip install "iclora[serve]"',
        ) from error
    base = _base_of(settings)
    listening = _listen(settings)
    with listening:
        server = Server(settings, base, _engine_of(settings, base))
        _log_to_stderr()
        port = listening.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        home = server.catalog.home
        console.say(
            f"serving {server.catalog.folder} at http://{host}:{port} with {base}\n"
            f"look      http://{host}:{port}/login?code={server.access.new_code()} (works once)\n"
            f"token     {home / 'token'}; send it as `Authorization: Bearer TOKEN`\n"
            f'try       curl -H "Authorization: Bearer $(cat {home / "token"})" '
            f"http://{host}:{port}/api/v1/about"
        )
        sys.stdout.flush()
        run(make_app(server), server, listening)


def _base_of(settings: ServeSettings) -> str:
    """The base of the workers: as it was told, else what the first adapter was trained on."""
    from iclora.serve.catalog import Catalog

    if settings.base:
        return settings.base
    found = Catalog(Path(settings.folder), settings.adapter).adapters()
    base = next((each.base for each in found.values() if each.base), None)
    if base is None:
        raise SettingsError(
            "no base is given, and there is no adapter that tells one",
            "Set `base`, for instance to black-forest-labs/FLUX.2-klein-base-4B or toyland.",
            setting="base",
        )
    return base


def _engine_of(settings: ServeSettings, base: str) -> Engine:
    from iclora.serve.local import LocalEngine

    machine = Machine(
        **{
            n: getattr(settings, n)
            for n in ("dtype", "precision")
            if n in settings.model_fields_set
        }
    )
    logs = Path(settings.folder).resolve() / ".iclora" / "logs"
    return LocalEngine(_devices(settings), base=base, machine=machine, logs=logs)


def _devices(settings: ServeSettings) -> list[str]:
    """A device for each worker. Raises: SettingsError for more GPUs than there are."""
    from iclora.serve.children import count_gpus

    if settings.device != "auto":
        if settings.gpus not in (1, "all"):
            raise SettingsError("one device is named, and several GPUs", "Leave one out.", "gpus")
        return [settings.device]
    there = count_gpus()
    if settings.gpus == "all":
        return [f"cuda:{n}" for n in range(there)] or ["cpu"]
    if settings.gpus > max(there, 1):
        raise SettingsError(
            f"there are {there} GPUs here", "Set `gpus` to as many, or to all.", "gpus"
        )
    return [f"cuda:{n}" for n in range(settings.gpus)] if there else ["cpu"]


def _listen(settings: ServeSettings) -> socket.socket:
    """The socket, before anything is opened: two servers on one port are told apart at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host.strip("[]"), settings.port))
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


def _log_to_stderr() -> None:
    told = logging.StreamHandler()
    told.setFormatter(_Lines())
    log = logging.getLogger("iclora.serve")
    log.addHandler(told)
    log.setLevel(logging.INFO)
    log.propagate = False
