"""The process of one row: `python -m iclora.jobs.bench.child VERBS`, its order on stdin.

It imports first and reads its order then, so that the next row's process can get ready while one
measures. What it tells lies in a file; what it prints goes to a log.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from iclora.errors import IcloraError
from iclora.jobs.bench.telling import Bench
from iclora.jobs.memory import out_of_memory

__all__ = ["PRELOADED", "be_row", "in_short", "named"]

PRELOADED = ("torch", "diffusers", "peft", "transformers", "iclora.cli.main", "iclora.train.run")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


def be_row(verbs: str, preloaded: Sequence[str] = PRELOADED) -> int:
    """Run the row that stdin orders. Returns: the exit status.

    Args:
        verbs: where the command line's verbs are, "module:attribute".
        preloaded: modules to import before the order is read.
    """
    _mind_the_others()
    for name in preloaded:
        # A package that is missing or broken is the row's to say, if it needs it.
        with suppress(Exception):
            import_module(name)
    line = sys.stdin.readline()
    if not line.strip():
        return 0
    order = json.loads(line)
    if os.getppid() != order["parent"]:  # It ended before it could take this one with it.
        return 1
    bench = Bench(order["device"], Path(order["folder"]), Path(order["result"]))
    bench.write()
    try:
        _open(bench)
        _quiet()
        bench.stage = "running"
        bench.write()
        bench.verbs = partial(named, verbs)
        named(order["call"])(bench, **order["told"])
    except Exception as error:
        traceback.print_exc()
        bench.write(error=in_short(error))
        return 1
    if bench.broken:
        bench.write(error="\n".join(bench.broken))
        return 1
    bench.stage = "done"
    bench.write()
    return 0


def in_short(error: BaseException) -> str:
    """What went wrong in a few lines, and where in our code."""
    if isinstance(error, IcloraError):
        return f"{error.problem}\n{error.advice}"
    first = "\n".join(str(error).strip().splitlines()[:3])
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    memory = "out of memory: " if out_of_memory(error) else ""
    return f"{memory}{type(error).__name__}: {first}\nat {' < '.join(reversed(frames[-4:]))}"


def _open(bench: Bench) -> None:
    """Compute something on the device, which shows that it answers. Raises: RuntimeError."""
    if bench.device == "cpu":
        return
    import torch

    if bench.device == "auto":
        bench.device = "cuda" if torch.cuda.is_available() else "cpu"
    if bench.device == "cpu":
        return
    torch.cuda.init()  # type: ignore[no-untyped-call]
    if float(torch.ones(8, device="cuda").sum()) != 8:
        raise RuntimeError("the card cannot add")


def _quiet() -> None:
    """Keep bars out of the log, if there is what draws them."""
    if "transformers" in sys.modules:
        from iclora.jobs.opening import quiet_loading

        quiet_loading()


def named(place: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _mind_the_others() -> None:
    """End with the process that watches, be the first to go without memory, and say where it hangs.

    The first two are Linux's; elsewhere they do nothing.
    """
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1)
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(be_row(sys.argv[1]))
