"""What a server or a command knows of a Ray cluster: how to start replicas in it.

Nothing here imports ray: processes of their own do, and speak JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from iclora.errors import SettingsError
from iclora.files import write_text
from iclora.serve.children import Child, environment_of, start_module
from iclora.serve.cluster.replica import SHARED

__all__ = ["Cluster", "Kind"]

Kind = Literal["gpu", "cpu"]

_TOKEN = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})

_RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",  # Nothing is told to Ray's makers.
    "RAY_worker_niceness": "0",  # Ray lets its workers yield to everything else.
}
_PATIENCE = 20.0
"""Seconds that a cluster which was started here has to end."""


class Cluster:
    """A cluster that was joined, or started on this machine for as long as this object is open.

    Args:
        address: of one to join, as HOST:PORT or auto for one on this machine; None starts one.
        logs: a folder that all machines see; the replicas' logs and the cluster's.
    Raises: SettingsError if ray is missing, if calls without a token are asked for, or if the
        cluster cannot be reached or started.
    """

    def __init__(self, address: str | None, logs: Path) -> None:
        if find_spec("ray") is None:
            raise SettingsError(
                "the engine ray needs a package that is not installed: ray",
                'Install it with: pip install "iclora[ray]"',
                setting="engine",
            )
        if os.environ.get("RAY_AUTH_MODE", "token") != "token":
            raise SettingsError(
                f"RAY_AUTH_MODE is {os.environ['RAY_AUTH_MODE']}: whoever reaches a port of such a "
                "cluster can run programs on its machines",
                "Unset it, or set it to token on every machine of the cluster.",
                setting="engine",
            )
        self._address, self._logs = address, logs.resolve()
        self._nonce = secrets.token_hex(16)
        # One that is started here has a token that is written down nowhere.
        self._secret = {} if address else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._head: Child | None = None
        self._place: str | None = None
        self._closed = False
        self._opening = threading.Lock()
        self.found = ""
        """Its address, once it is open."""
        self.gpus = self.cpus = 0
        write_text(self._logs / SHARED, self._nonce)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def kind(self, device: str) -> Kind:
        """What a replica gets for itself. Raises: SettingsError for a device that none can have."""
        if device not in ("auto", "cuda", "cpu"):
            raise SettingsError(
                f"Ray chooses which GPU a replica gets, and {device} is one of this machine's",
                "Set `device` to auto, cuda or cpu.",
                setting="device",
            )
        return "cpu" if device == "cpu" or (device == "auto" and not self.gpus) else "gpu"

    def workers(self, kind: Kind, count: int, setting: str) -> list[str]:
        """Names for so many replicas. Raises: SettingsError if the cluster is too small."""
        there, what = (self.gpus, "GPU") if kind == "gpu" else (self.cpus, "CPU")
        if count > there:
            raise SettingsError(
                f"{count} replicas need a {what} each, and the cluster has {there}",
                f"Set `{setting}` to {there or 1}, or add machines to the cluster.",
                setting=setting,
            )
        return [f"ray:{number}" for number in range(count)]

    def start(self, kind: Kind, environment: Mapping[str, str], log: Path) -> Child:
        """Start a worker on one of its machines. Raises: IcloraError, OSError."""
        with self._opening:
            if self._head is None:  # What was started here has ended.
                self._open()
        told = {"address": self.found, "kind": kind, "log": str(log.resolve())}
        words = (json.dumps(told | {"nonce": self._nonce}),)
        module = "iclora.serve.cluster.bridge"
        return start_module(module, words, {**environment, **self._environment()}, log)

    def close(self) -> None:
        """End what was started here; a cluster that was joined goes on."""
        self._closed = True
        head = self._head
        if head:
            with suppress(OSError, ValueError):
                head.commands.close()
            waiting = threading.Thread(target=_wait, args=(head,), daemon=True)
            waiting.start()
            waiting.join(_PATIENCE)
            if waiting.is_alive():  # What it started ends with it.
                with suppress(OSError):
                    os.kill(head.pid, signal.SIGKILL)
                waiting.join(_PATIENCE)
        self._clear()
        with suppress(OSError):
            (self._logs / SHARED).unlink()

    def _environment(self) -> dict[str, str]:
        kept = {n: v for n, v in os.environ.items() if n in _TOKEN}
        return {**(self._secret or kept), **_RAY}

    def _open(self) -> None:
        log = self._logs / "cluster.log"
        environment = environment_of("all")
        environment.pop("RAY_ADDRESS", None)  # Settings say which one is meant.
        if self._address:
            words = [self._address]
        else:
            # Closed to others, where Ray's own is open to everybody. The path of a socket has
            # 107 characters at most, and Ray needs 70 of them.
            self._clear()
            self._place = tempfile.mkdtemp(prefix="iclora-ray-", dir="/tmp")
            words = ["local", self._place]
        head = start_module(
            "iclora.serve.cluster.head", words, environment | self._environment(), log
        )
        self._head = head
        if self._closed:
            head.commands.close()
        line = head.answers.readline()
        said = json.loads(line or b"{}")
        if "address" not in said:
            _wait(head)
            self._head = None
            raise SettingsError(
                said.get("problem", "a Ray cluster cannot be started"),
                f"{said.get('advice', 'Look for the cause.')} Its log is {log}.",
                setting="cluster" if self._address else "engine",
            )
        self.found, self.gpus, self.cpus = said["address"], said["gpus"], said["cpus"]
        threading.Thread(target=self._see_end, args=(head,), daemon=True).start()

    def _clear(self) -> None:
        """Remove what a cluster that was started here has left."""
        if self._place:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None

    def _see_end(self, head: Child) -> None:
        _wait(head)
        with self._opening:
            if self._head is head:
                self._head = None


def _wait(head: Child) -> None:
    """Wait for its end and let go of its pipes."""
    head.wait()
    for end in (head.commands, head.answers):
        with suppress(OSError, ValueError):
            end.close()
