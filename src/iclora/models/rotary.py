"""Queries and keys: normed, and turned by where their tokens stand (rotary position embedding).

Source: Su et al. 2021 (RoFormer, arXiv 2104.09864), over several axes as in FLUX's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Rotary", "heads", "rotary_of", "rotate"]

Rotary = Tensor
"""Cosine and sine that turn each pair of a query's or key's, float32 (1 or B, S, 1, d / 2, 2)."""


def rotary_of(embedder: Any, position_ids: Tensor) -> Rotary:
    """The turns of position ids (1 or B, S, axes)."""
    # diffusers repeats every angle for both numbers of a pair; here a pair is turned as one.
    shape = (*position_ids.shape[:2], 1, -1)
    both = (t.view(shape)[..., ::2] for t in embedder(position_ids.flatten(0, 1)))
    return torch.stack(tuple(both), -1)


def heads(
    qkv: Sequence[Tensor], norm_q: Any, norm_k: Any, rotary: Rotary, d: int
) -> tuple[Tensor, ...]:
    """q and k normed and rotated, and v, each (B, S, heads, d)."""
    q, k, v = (x.view(*x.shape[:-1], -1, d) for x in qkv)
    turn = _at_once if _is_at_once(q) else _one_by_one
    return turn(q, norm_q, rotary), turn(k, norm_k, rotary), v


def _is_at_once(x: Tensor) -> bool:
    """True on a CPU without gradients, where a norm of bf16 takes longer than what follows it."""
    learns = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not learns


def _one_by_one(x: Tensor, norm: Any, rotary: Rotary) -> Tensor:
    return rotate(F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps), rotary)


def _at_once(x: Tensor, norm: Any, rotary: Rotary) -> Tensor:
    """The same from one copy in float32, not rounded in between."""
    y = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    size = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    y.mul_(size.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()).mul_(norm.weight)
    pairs = torch.view_as_complex(y.view(*y.shape[:-1], -1, 2))
    return torch.view_as_real(pairs.mul_(torch.view_as_complex(rotary))).flatten(-2).to(x.dtype)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn pairs of neighbours in the last dimension of x, (B, S, heads, d), in float32."""
    pairs = x.float().view(*x.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():
        # A compiler makes one loop of it, but none of complex numbers.
        (a, b), (cos, sin) = pairs.unbind(-1), rotary.unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1)
    else:
        # The same numbers as one product, which takes a CPU a sixth of the time.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))
    return turned.flatten(-2).to(x.dtype)
