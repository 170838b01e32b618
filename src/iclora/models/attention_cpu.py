"""Attention without a mask by torch's own kernel, and by matrix products for a CPU's gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iclora.models.products import exact, is_slow

__all__ = ["Attend", "blockwise", "fused", "headwise", "shortest", "steady"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v, each (B, heads, S, d), to (B, S, heads * d)."""

_ROWS = 1024
"""Queries at a time: their scores against some thousand keys stay in a CPU's cache."""
_HEAD_ROWS = 384
"""The same of one head."""
_LONG = 2048
"""Keys from which on `headwise` takes a CPU less time in bfloat16 than `blockwise` does."""


def shortest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What takes a CPU the least time.

    Forward and backward, one thread of a Xeon with AMX, 8 heads of 128: 4,608 tokens in float32
    take `fused` 2.5 s, `headwise` 2.7 and `blockwise` 4.4; in bfloat16 1.2, 1.0 and 2.2. Without a
    gradient `fused` takes half of `blockwise`'s time or less, from 256 tokens on. A CPU without
    products of bf16 makes `headwise`'s gradient in float32.
    """
    if q.dtype != torch.bfloat16 or not _learns(q, k, v):
        return fused(q, k, v)
    return blockwise(q, k, v) if k.shape[2] < _LONG and not is_slow(q) else headwise(q, k, v)


def steady(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`shortest`, but for gradients of small canvases: FLUX.1's adapters keep their bytes."""
    small = k.shape[2] < _LONG and not is_slow(q)
    return blockwise(q, k, v) if small and _learns(q, k, v) else shortest(q, k, v)


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by the kernel that torch picks for the device."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def blockwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact attention as matrix products over blocks of queries, computed again for the gradient.

    For a CPU; no (S, S) matrix is kept. Scores are in the type of q.
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


def headwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact attention: torch's kernel, and a gradient as matrix products, one head at a time.

    For a CPU in bfloat16, where torch's own gradient takes a fifth longer: what a head needs of k
    and v stays in the cache.
    """
    out: Tensor = _Headwise.apply(q, k, v)  # type: ignore[no-untyped-call]
    return out


class _Headwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v)
        ctx.save_for_backward(q, k, v, out)
        return out.transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out = ctx.saved_tensors
        grad = grad.view(*grad.shape[:-1], -1, q.shape[-1]).transpose(1, 2)
        grads = tuple(torch.empty_like(x) for x in (q, k, v))
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                read = (exact(x[b, h]) for x in (q, k, v, out, grad))
                _head_back(*read, *(x[b, h] for x in grads))
        return grads


def _head_back(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, gq: Tensor, gk: Tensor, gv: Tensor
) -> None:
    """Write the gradients of one head, each (S, d), into gq, gk and gv."""
    scale = q.shape[-1] ** -0.5
    q, k, v, grad = q * scale, k.contiguous(), v.contiguous(), grad.contiguous()
    # As in `_Blockwise`.
    drop = (grad * out).sum(-1, keepdim=True)
    of_k, of_v = torch.zeros_like(k), torch.zeros_like(v)
    for rows in _blocks(len(q), _HEAD_ROWS):
        probs = torch._softmax(q[rows] @ k.mT, -1, False)
        of_v.addmm_(probs.mT, grad[rows])
        scores = (grad[rows] @ v.mT).sub_(drop[rows]).mul_(probs)
        gq[rows] = (scores @ k).mul_(scale)
        of_k.addmm_(scores.mT, q[rows])
    gk.copy_(of_k)
    gv.copy_(of_v)


def _blocks(length: int, rows: int = _ROWS) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, length, rows)]


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    return torch._softmax((q * q.shape[-1] ** -0.5) @ k.mT, -1, False)
