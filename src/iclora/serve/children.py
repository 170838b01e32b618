"""Processes that do the work: how they are started, what they are given, how they ended.

They get argument lists and a few settings, never a shell's line. What is secret in the environment
and not theirs to use stays here.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

__all__ = [
    "Child",
    "Gpu",
    "count_gpus",
    "ended_by",
    "environment_of",
    "gpu_memory",
    "gpus",
    "own_device",
    "own_pipes",
    "start_module",
    "start_worker",
]

_SECRET = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW|CREDENTIAL|PRIVATE|API_?KEY|COOKIE", re.IGNORECASE
)
_NEEDED = frozenset({"OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
"""What captioners and gated bases ask for."""


@dataclass(frozen=True)
class Child:
    """A worker's process."""

    pid: int
    commands: IO[bytes]
    """Its stdin."""
    answers: IO[bytes]
    """Its stdout."""
    wait: Callable[[], int]
    """Waits for its end. Returns: the exit status, negative for a signal."""


def start_worker(environment: Mapping[str, str], log: Path, cwd: str | None = None) -> Child:
    """Start `iclora.serve.worker`.

    Args:
        log: takes what it and its libraries print.
        cwd: the folder it runs in, by default this process's.
    """
    return start_module("iclora.serve.worker", (), environment, log, cwd)


def start_module(
    module: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    cwd: str | None = None,
) -> Child:
    """Start a module of ours that speaks lines on its stdin and stdout; see `start_worker`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        process = subprocess.Popen(  # noqa: S603 (our own modules and words)
            # Without the folder this runs in on the path of imports: others may write there.
            [sys.executable, "-P", "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=dict(environment),
            cwd=cwd,
        )
    assert process.stdin
    assert process.stdout
    return Child(process.pid, process.stdin, process.stdout, process.wait)


def own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """In such a module, the pipes to whoever started it: commands, and where answers go."""
    commands = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever libraries print goes to the log, never between the lines of answers.
    os.dup2(2, 1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    # Ctrl-C reaches all processes of a terminal; the one that started this decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return commands, answers


def environment_of(
    device: str, threads: int | None = None, keep: frozenset[str] = frozenset()
) -> dict[str, str]:
    """The environment of a process that computes on one device.

    It sees its own GPU as the only one, and none if it is a CPU's.

    Args:
        device: "cpu", "cpu:1", "cuda:0", ...; GPUs are counted as they are visible here.
        threads: of a CPU, unless the environment says.
        keep: secrets that it needs beside the usual ones.
    """
    kept = _NEEDED | keep
    found = {n: v for n, v in os.environ.items() if n in kept or not _SECRET.search(n)}
    kind, _, number = device.partition(":")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if kind == "cuda":
        names = visible.split(",") if visible is not None else []
        at = int(number or 0)
        found["CUDA_VISIBLE_DEVICES"] = names[at].strip() if at < len(names) else str(at)
    elif kind == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    if threads and "OMP_NUM_THREADS" not in found:
        found["OMP_NUM_THREADS"] = str(threads)
        # Those of several processes share the cores, and would spin while they wait.
        found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        found.setdefault(name, "error")
    return found


def own_device(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for a process that sees its own GPU as the only one, whatever its number was."""
    names = ("device", "model_device")
    return {
        name: "cuda" if name in names and str(value).startswith("cuda:") else value
        for name, value in values.items()
    }


def count_gpus() -> int:
    """NVIDIA GPUs that are visible here, without importing torch; 0 if there is no driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 (where it lies differs between systems)
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    there = len(re.findall(r"^GPU \d+:", listed, re.MULTILINE))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    return min(there, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


@dataclass(frozen=True)
class Gpu:
    """What an NVIDIA GPU does at the moment."""

    index: str
    name: str
    used: int
    """bytes"""
    total: int
    """bytes"""
    load: float | None
    """share of the time that it computed; None if the driver does not tell"""


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine; none if there is no driver."""
    asked = (
        "query-gpu=index,name,memory.used,memory.total,utilization.gpu",
        "format=csv,noheader,nounits",
    )
    query = ["nvidia-smi", *(f"{'-' * 2}{word}" for word in asked)]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout  # noqa: S603
        found = []
        for line in filter(str.strip, told.splitlines()):
            index, name, used, total, load = (part.strip() for part in line.split(","))
            share = int(load) / 100 if load.isdigit() else None  # MIG: "[N/A]"
            found.append(Gpu(index, name, int(used) * 2**20, int(total) * 2**20, share))
        return found
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def gpu_memory() -> dict[str, int]:
    """Bytes in use on each NVIDIA GPU, by its number; none if there is no driver."""
    return {gpu.index: gpu.used for gpu in gpus()}


def ended_by(status: int) -> str:
    """What ended a process: the signal's name, or its exit status."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
