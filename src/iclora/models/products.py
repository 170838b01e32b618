"""Products of bf16 on a CPU without instructions for them: in float32, rounded once.

torch multiplies bf16 on any CPU. One that has neither AVX512-BF16 nor AMX takes 391 ms for 1,536
rows from 1,024 to 4,096 numbers, 100 for the same in float32, and 8 to make float32 of bf16 and
back (one thread of a Xeon of 2.8 GHz with AVX512): so sums are as exact as float32's, and memory
holds a layer's weights in float32 while it multiplies. Nothing here changes on other devices.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["SLOW", "counted", "exact", "is_slow"]


def _lacks_bf16() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False  # not measured
    # Not public in torch: one without them keeps its own way.
    asked = (getattr(torch.cpu, f"_is_{it}_supported", None) for it in ("avx512_bf16", "amx_tile"))
    return all(ask is not None and not ask() for ask in asked)


SLOW = _lacks_bf16()
"""True if this CPU is one of those."""

_COUNTED = ContextVar("_COUNTED", default=False)


@contextmanager
def counted(here: bool) -> Iterator[None]:
    """Let tensors on the meta device stand for this CPU's, if `here`: their memory is counted."""
    before = _COUNTED.set(here)
    try:
        yield
    finally:
        _COUNTED.reset(before)


def is_slow(x: Tensor) -> bool:
    """True if x is bf16 on such a CPU."""
    if not SLOW or x.dtype != torch.bfloat16:
        return False
    return x.device.type == "cpu" or (x.is_meta and _COUNTED.get())


def exact(x: Tensor) -> Tensor:
    """x in the type to multiply it in: float32 if it `is_slow`, else its own."""
    return x.float() if is_slow(x) else x
