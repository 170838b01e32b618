"""Seconds and peaks of work on a device, which may go on after a call has returned."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["clear", "median", "peak", "reset_peak", "seconds", "synchronize"]

_LINUX = Path("/proc/self")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    run: Callable[[], object],
    device: torch.device,
    rounds: int = 3,
    *,
    warm: int = 1,
    calls: int = 1,
) -> list[float]:
    """Time a call.

    Args:
        rounds: times that it is timed.
        warm: calls before, which are not: kernels are loaded and chosen in them.
        calls: made between two looks at the clock, for what is short; a time is that of one.
    """
    for _ in range(warm):
        run()
    found = []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(device)
        found.append((time.perf_counter() - began) / calls)
    return found


def median(times: list[float]) -> float:
    """The median, by which one slow round counts for little."""
    return statistics.median(times)


def reset_peak(device: torch.device) -> None:
    """Begin a new peak of memory, from what is held now."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    elif _LINUX.is_dir():
        with suppress(OSError):  # Some containers forbid it; the peak is then that of the process.
            (_LINUX / "clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes that tensors held at most since `reset_peak`; on a CPU, the process. 0 if unknown."""
    if device.type == "cuda":
        synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if not _LINUX.is_dir():
        return 0
    return int((_LINUX / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def clear(device: torch.device) -> None:
    """Free what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
