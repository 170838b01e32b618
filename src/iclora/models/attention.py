"""Attention by the fastest way a device has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Attend", "blockwise", "pick_attention"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v, each (B, heads, S, d), to (B, S, heads * d)."""

_ROWS = 1024
"""Queries at a time: their scores against some thousand keys stay in a CPU's cache."""


def pick_attention(device: torch.device) -> Attend:
    """Matrix products on a CPU; elsewhere torch's own, cuDNN's first where it is the fastest."""
    if device.type == "cpu":
        return blockwise
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return partial(_fused, first=SDPBackend.CUDNN_ATTENTION) if fast else _fused


def _fused(q: Tensor, k: Tensor, v: Tensor, first: SDPBackend | None = None) -> Tensor:
    if first is None:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        rest = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel([first, *rest], set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def blockwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact attention as matrix products over blocks of queries, computed again for the gradient.

    On a CPU several times as fast as torch's own (benchmarks/RESULTS.md), and no (S, S) matrix is
    kept. Scores are in the type of q: float32 where that is exact enough for you, bfloat16 where
    speed counts.
    """
    out: Tensor = _Blockwise.apply(q, k, v)  # type: ignore[no-untyped-call]
    return out


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, heads, s, d = q.shape
        out = q.new_empty(b, s, heads, d)
        rest = (k.contiguous(), v.contiguous())
        for rows in _blocks(s):
            probs = _probabilities(q[:, :, rows], rest[0])
            out[:, rows] = (probs @ rest[1]).transpose(1, 2)
        ctx.save_for_backward(q, *rest, out)
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out = ctx.saved_tensors
        d = q.shape[-1]
        grad = grad.view(*grad.shape[:-1], -1, d).transpose(1, 2)
        gq, gk, gv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows in _blocks(q.shape[2]):
            part, g = q[:, :, rows], grad[:, :, rows]
            probs = _probabilities(part, k)
            gv += probs.mT @ g
            # The gradient of softmax: p (g - sum(p g)), and that sum is the output's.
            drop = (g * out[:, rows].transpose(1, 2)).sum(-1, keepdim=True)
            scores = (g @ v.mT).sub_(drop).mul_(probs).mul_(d**-0.5)
            gq[:, :, rows] = scores @ k
            gk += scores.mT @ part
        return gq, gk, gv


def _blocks(length: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, length, _ROWS)]


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    return torch._softmax((q * q.shape[-1] ** -0.5) @ k.mT, -1, False)
