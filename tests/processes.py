"""Processes forked from one that has imported torch: an import takes seconds, a fork none."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.forked"])


def start(
    run: Callable[..., int | None],
    folder: Path,
    said: Path,
    environment: dict[str, str],
    *args: Any,
) -> Any:
    """Start a process that ends with what `run(*args)` returns.

    Args:
        run: a function that a new process can import.
        folder: where it runs.
        said: takes its output, both streams.
        environment: what it has beside this process's.
    Returns: the process, as `multiprocessing.Process`.
    """
    # The one that forks may have begun before a test changed the environment.
    whole = {**os.environ, **environment}
    process = _FORKS.Process(target=_be_one, args=(run, str(folder), str(said), whole, args))
    process.start()
    return process


def port_aside() -> int:
    """A free port, also a while later: none of those that systems give to whoever asks for any."""
    any_port = random.SystemRandom()
    while True:
        port = any_port.randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port


def _be_one(
    run: Callable[..., int | None], folder: str, said: str, environment: dict[str, str], args: Any
) -> None:
    import torch

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    sys.exit(run(*args))
