"""The Ray actor that has a GPU or a CPU to itself, and runs a worker process there.

What crosses between it and its bridge is text of JSON and lines of bytes. The worker is a process
of its own, the same one as without Ray, and ends with this one.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import iclora
from iclora.serve.children import Child, ended_by, environment_of, start_worker

__all__ = ["SHARED", "Replica", "versions"]

SHARED = "seen-by-all-machines"
"""A file beside the logs: who reads in it what was told sees the same folders."""


def versions() -> dict[str, str]:
    """What must be the same on all machines, or their sets would differ."""
    try:
        torch = version("torch").partition("+")[0]
    except PackageNotFoundError:
        torch = "none"
    return {"iclora": iclora.__version__, "torch": torch, "Python": platform.python_version()}


class Replica:
    """Becomes an actor, by `ray.remote`."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def begin(self, text: str) -> str:
        """Start the worker.

        Args:
            text: JSON of "log", "nonce", "cwd", "versions", "environment" (what of it comes from
                the front) and "device".
        Returns: JSON of "machine", and the "problem" if there is one.
        """
        told = json.loads(text)
        machine = socket.gethostname()
        problem = self._problem(told, machine)
        if problem is None:
            # Ray sets as many threads as CPUs; the front decides, as for workers beside it.
            for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
                os.environ.pop(name, None)
            environment = environment_of(told["device"]) | told["environment"]
            try:
                self._child = start_worker(environment, Path(told["log"]), told["cwd"])
            except OSError as error:
                problem = f"the worker cannot be started on {machine}: {error}"
        return json.dumps({"machine": machine, "problem": problem})

    @staticmethod
    def _problem(told: dict[str, Any], machine: str) -> str | None:
        own = versions()
        other = [f"{n} {own[n]}, not {v}" for n, v in told["versions"].items() if own.get(n) != v]
        if other:
            return f"{machine} has {', '.join(other)} as the machine that asks: sets could differ"
        shared = Path(told["log"]).with_name(SHARED)
        try:
            seen = shared.read_text()
        except OSError:
            seen = ""
        if seen != told["nonce"] or not Path(told["cwd"]).is_dir():
            missing = shared.parent if seen != told["nonce"] else told["cwd"]
            return f"{machine} does not see {missing}: all machines must share it, under this path"
        return None

    def tell(self, line: bytes) -> None:
        """Write a line to the worker; who listens hears of its end."""
        assert self._child
        try:
            self._child.commands.write(line)
            self._child.commands.flush()
        except (OSError, ValueError):
            return

    def lines(self) -> Iterator[bytes]:
        """What the worker answers, until it ends."""
        assert self._child
        with self._child.answers:
            for line in self._child.answers:  # noqa: UP028 (Ray sends into what is yielded from)
                yield line

    def ended(self) -> str:
        """Wait for the worker's end. Returns: what ended it."""
        assert self._child
        return ended_by(self._child.wait())
