"""torch's attention kernels at the sizes of training and sampling, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from iclora.jobs.bench.measuring import clear, median, seconds
from iclora.jobs.bench.telling import Bench

__all__ = ["kernels"]

_KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory efficient": SDPBackend.EFFICIENT_ATTENTION,
}

_HEADS, _WIDE = 24, 128
"""FLUX.1-dev's."""

_LENGTHS = {"1024x1024": 4608, "1024x1536": 6656}
"""Tokens of a canvas and its text."""


def kernels(bench: Bench) -> None:
    """Time every kernel that this device has, and the one that iclora takes."""
    from iclora.models.attention import pick_attention

    device = torch.device(bench.device)
    cuda = device.type == "cuda"
    lengths = _LENGTHS if cuda else {"128x192": 608}
    ours = pick_attention(device)
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"iclora's": ours}
    for name, kernel in _KERNELS.items() if cuda else ():
        ways[name] = _with(kernel)
    ways["torch's choice"] = F.scaled_dot_product_attention
    for canvas, length in lengths.items():
        generator = torch.Generator(device).manual_seed(0)
        q, k, v = (
            torch.randn(1, _HEADS, length, _WIDE, device=device, generator=generator).bfloat16()
            for _ in range(3)
        )
        for name, way in ways.items():
            _time(bench, f"{canvas}, {name}", way, (q, k, v), 10 if cuda else 1)
        clear(device)


def _with(kernel: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _time(
    bench: Bench,
    what: str,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    qkv: tuple[Tensor, Tensor, Tensor],
    calls: int,
) -> None:
    """Tell TFLOP/s of a forward pass, and of both passes."""
    device, length = qkv[0].device, qkv[0].shape[2]
    work = 4 * length**2 * _HEADS * _WIDE

    def forward() -> None:
        with torch.no_grad():
            attend(*qkv)

    leaves = [x.clone().requires_grad_() for x in qkv]

    def both() -> None:
        out = attend(*leaves)
        torch.autograd.grad(out, leaves, out.detach())

    for name, run, cost in (("forward", forward, work), ("both passes", both, 3.5 * work)):
        try:
            times = seconds(run, device, 5, warm=2, calls=calls)
        except RuntimeError as error:
            bench.tell(f"{what}, {name}", None, note=str(error).strip().splitlines()[0])
            continue
        note = f"{1000 * median(times):.4g} ms"
        bench.tell(f"{what}, {name}", cost / median(times) / 1e12, "TFLOP/s", note=note)
