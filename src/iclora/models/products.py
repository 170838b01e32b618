"""Products of bf16 on a CPU without instructions for them: in float32, rounded once.

torch multiplies bf16 on any CPU. One that has neither AVX512-BF16 nor AMX takes 391 ms for 1,536
rows from 1,024 to 4,096 numbers, 100 for the same in float32, and 8 to make float32 of bf16 and
back (one thread of a Xeon of 2.8 GHz with AVX512): so sums are as exact as float32's, and memory
holds a layer's weights in float32 while it multiplies. Nothing here changes on other devices.
"""

from __future__ import annotations

import platform
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["COUNTED", "SLOW", "exact", "is_slow", "linear", "quicken"]


def _lacks_bf16() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False  # not measured
    # Not public in torch: one without them keeps its own way.
    asked = (getattr(torch.cpu, f"_is_{it}_supported", None) for it in ("avx512_bf16", "amx_tile"))
    return all(ask is not None and not ask() for ask in asked)


SLOW = _lacks_bf16()
"""True if this CPU is one of those."""

COUNTED: ContextVar[bool] = ContextVar("COUNTED", default=False)
"""True while tensors on the meta device stand for this CPU's, so that their memory is counted."""


def is_slow(x: Tensor) -> bool:
    """True if x is bf16 on such a CPU."""
    if not SLOW or x.dtype != torch.bfloat16:
        return False
    return x.device.type == "cpu" or (x.is_meta and COUNTED.get())


def exact(x: Tensor) -> Tensor:
    """x in the type to multiply it in: float32 if it `is_slow`, else its own."""
    return x.float() if is_slow(x) else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b in x's type; for the gradient of x nothing but W is kept.

    A weight that is trained is multiplied as torch does.
    """
    if not is_slow(x) or weight.requires_grad:
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        b = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), b).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return (grad.float() @ weight.float()).to(grad.dtype), None, None


def quicken(net: nn.Module) -> nn.Module:
    """Let all frozen layers of a network that multiply do so as above; the same network."""
    if SLOW:
        for module in net.modules():
            one: Any = module
            if type(module) is nn.Linear:
                one.forward = MethodType(_forward, module)
            elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                one._conv_forward = MethodType(_conv_forward, module)
    return net


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _conv_forward(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if is_slow(x):
        weight, bias = weight.float(), None if bias is None else bias.float()
    y: Tensor = type(layer)._conv_forward(layer, exact(x), weight, bias)
    return y.to(x.dtype)
