"""Attention by the fastest way a device has, and how given tokens are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Attend", "Cache", "blockwise", "isolated", "pick_attention", "reading", "scaled"]

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of given tokens, block by block, each (B, heads, given, d)."""

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


# -- given tokens -------------------------------------------------------------------------------


def scaled(attend: Attend, given: Tensor, text_tokens: int, factor: float) -> Attend:
    """Multiply the attention that the other image tokens pay the given ones by `factor`.

    That is adding log(factor) to their scores, which one more dimension of q and k does in a
    single call of any kernel, without a mask of (S, S). Reference attention is scaled so by Shin
    et al. 2024 (Diptych Prompting, arXiv 2411.15466).

    Args:
        given: bool (n,), of the image tokens, which stand behind `text_tokens` text tokens.
    """

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        d = q.shape[-1]
        # Kernels want multiples of 8, and scale by the width they see.
        wide = d + 8
        asks = torch.cat([given.new_zeros(text_tokens), ~given]).to(q.dtype) * math.sqrt(wide)
        tells = torch.cat([given.new_zeros(text_tokens), given]).to(q.dtype) * math.log(factor)
        q = F.pad(q * math.sqrt(wide / d), (0, 8))
        k, v = F.pad(k, (0, 8)), F.pad(v, (0, 8))
        q[..., d], k[..., d] = asks, tells
        out = attend(q, k, v)
        return out.view(*out.shape[:-1], -1, wide)[..., :d].flatten(-2)

    return run


def isolated(attend: Attend, given: int, cache: Cache | None = None) -> Attend:
    """The last `given` tokens attend to each other alone; the others to all.

    Args:
        cache: takes the given tokens' keys and values, block by block.
    """

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        at = q.shape[2] - given
        own = (k[:, :, at:], v[:, :, at:])
        if cache is not None:
            cache.append((own[0].clone(), own[1].clone()))
        return torch.cat([attend(q[:, :, :at], k, v), attend(q[:, :, at:], *own)], 1)

    return run


def reading(attend: Attend, cache: Cache) -> Attend:
    """Attention to all tokens that are computed, and to the given ones that `isolated` cached."""
    blocks = iter(cache)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = next(blocks)
        return attend(q, torch.cat([k, keys], 2), torch.cat([v, values], 2))

    return run


# -- kernels ------------------------------------------------------------------------------------


def blockwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact attention as matrix products over blocks of queries, computed again for the gradient.

    For a CPU, whose matrix products are its fastest code; no (S, S) matrix is kept. Scores are in
    the type of q: float32 where that is exact enough for you, bfloat16 where speed counts.
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
