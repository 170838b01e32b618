"""The device: what it is, and the speeds that all others are compared with."""

from __future__ import annotations

from typing import Any

import torch

from iclora.jobs.bench.measuring import median, seconds
from iclora.jobs.bench.telling import Bench

__all__ = ["card", "facts"]

GB = 10**9


def facts() -> dict[str, Any]:
    """What torch knows of the card it would take; of none, that there is none."""
    if not torch.cuda.is_available():
        return {"cuda": False, "CUDA": torch.version.cuda}
    about = torch.cuda.get_device_properties(0)
    free, whole = torch.cuda.mem_get_info(0)
    return {
        "cuda": True,
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory GB": round(whole / GB, 1),
        "free GB": round(free / GB, 1),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def card(bench: Bench) -> None:
    """Look at the device, and time what it does best."""
    bench.machine = facts()
    bench.write()
    device = torch.device("cuda" if bench.machine["cuda"] else "cpu")
    side = 8192 if device.type == "cuda" else 1024
    calls = 10 if device.type == "cuda" else 1
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    times = seconds(lambda: a @ b, device, 5, warm=3, calls=calls)
    what = f"bf16 matrix product of {side}"
    bench.tell(what, 2 * side**3 / median(times) / 1e12, "TFLOP/s")
    if device.type != "cuda":
        return
    _fp8(bench, a, b)
    size = 2 * GB
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    source.random_(0, 255)
    times = seconds(lambda: target.copy_(source), device, 5, calls=5)
    bench.tell("copy on the card, read and written", 2 * size / median(times) / 1e12, "TB/s")
    pinned = torch.empty(GB // 4, dtype=torch.uint8, pin_memory=True)
    times = seconds(lambda: source[: GB // 4].copy_(pinned, non_blocking=True), device, 5)
    bench.tell("copy from pinned memory", len(pinned) / median(times) / GB, "GB/s")


def _fp8(bench: Bench, a: torch.Tensor, b: torch.Tensor) -> None:
    """A product in fp8 with a scale a row, as fp8 layers compute."""
    from iclora.models.quantize import KINDS

    kind = KINDS["fp8"]
    try:
        parts = kind.pack(b)
        times = seconds(lambda: kind.times((parts,), a, (None,)), a.device, 5, warm=3, calls=10)
    except (RuntimeError, NotImplementedError) as error:
        bench.tell("fp8 matrix product", None, note=str(error).splitlines()[0])
        return
    rate = 2 * len(a) ** 3 / median(times) / 1e12
    bench.tell(f"fp8 matrix product of {len(a)}, rounding included", rate, "TFLOP/s")
