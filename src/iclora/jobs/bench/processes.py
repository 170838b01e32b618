"""The process of a row: started, given its order, watched, and ended for certain."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import iclora
from iclora.files.visible import visible

__all__ = ["Ending", "Runner", "last_lines", "read_result", "where_it_hung"]

Ending = Literal["ended", "late", "unopened", "unkillable"]
"""How a process ended: by itself; ended at its limit; ended before it had opened the device;
or the system could not end it."""

_GRACE = 2.0
"""Seconds in which a process that is too late writes down where it hangs."""


@dataclass
class Runner:
    """A process that has imported what rows need and waits for an order.

    Args:
        process: its.
        log: takes all that it says.
    """

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, log: Path, words: Sequence[str], device: str) -> Runner:
        """Start one.

        Args:
            words: what Python is told to run.
            device: the only one it will see: cpu, cuda or cuda:N; auto leaves all.
        """
        with log.open("wb") as said:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", *words],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=_environment(device),
                # A group of its own, so that what it starts ends with it.
                start_new_session=True,
            )
        return cls(process, log)

    def give(self, order: Mapping[str, Any]) -> None:
        """Give it its order; one that died before is found dead by `watch`."""
        assert self.process.stdin
        with suppress(OSError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.close()

    def watch(self, result: Path, limit: float, opening: float, until: float = math.inf) -> Ending:
        """Wait for its end, and end it when it is too late.

        Args:
            result: the file that it tells into.
            limit: seconds it may take from when it has opened the device.
            opening: seconds in which it must have done that.
            until: the end of all time there is, on the monotonic clock.
        """
        began = time.monotonic()
        opened: float | None = None
        while True:
            try:
                self.process.wait(0.1)
                # What it started may still hold the card.
                self._kill()
                return "ended"
            except subprocess.TimeoutExpired:
                pass
            now = time.monotonic()
            if opened is None and read_result(result).get("stage") in ("running", "done"):
                opened = now
            if opened is None and now - began > opening:
                return self.end("unopened")
            if now > until or (opened is not None and now - opened > limit):
                return self.end("late")

    def end(self, how: Ending = "late") -> Ending:
        """End it and all it started; first it is asked to write down where it stands."""
        if self.process.poll() is None and hasattr(signal, "SIGUSR1"):
            with suppress(OSError):
                self.process.send_signal(signal.SIGUSR1)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE)
        self._kill()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            return "unkillable"
        return how

    def _kill(self) -> None:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()

    @property
    def ended_by(self) -> str:
        """What ended it: the signal's name, or its exit status."""
        status = self.process.returncode
        if status is None or status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"


def _environment(device: str) -> dict[str, str]:
    found = dict(os.environ)
    kind, _, number = device.partition(":")
    seen = found.get("CUDA_VISIBLE_DEVICES")
    if kind == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    elif number:
        names = seen.split(",") if seen else []
        found["CUDA_VISIBLE_DEVICES"] = (
            names[int(number)].strip() if int(number) < len(names) else number
        )
    # Rows never wait for a network, and launchers' variables are not for them.
    found["HF_HUB_OFFLINE"] = "1"
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        found.pop(name, None)
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        found.setdefault(name, "error")
    found["PYTHONUNBUFFERED"] = "1"
    home = Path(iclora.__file__).parents[1]
    if home.name == "src":  # A checkout that may not be installed.
        paths = [str(home), *found.get("PYTHONPATH", "").split(os.pathsep)]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return found


def read_result(path: Path) -> dict[str, Any]:
    """What a process told; empty if it told nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def last_lines(log: Path, count: int = 6) -> str:
    """The last lines of a log that say something, each cut to 300 signs."""
    return "\n".join(_lines(log)[-count:])


def where_it_hung(log: Path, count: int = 8) -> str:
    """Where the main thread stood when it was asked, innermost first; else the last lines."""
    lines = _lines(log)
    heads = [n for n, line in enumerate(lines) if line.startswith("Current thread")]
    if not heads:
        return last_lines(log)
    frames = [line.strip() for line in lines[heads[-1] + 1 :] if "<frozen importlib" not in line]
    return "\n".join(frames[:count])


def _lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65_536))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [visible(line.rstrip())[:300] for line in text.splitlines() if line.strip()]
