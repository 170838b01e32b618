"""Processes forked from one that has imported torch: an import takes seconds, a fork none."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
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
