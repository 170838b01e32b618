"""Updates of other kinds as the LoRA they are: LoHa and factored LoKr.

Both are products of small matrices, hence low-rank, and so equal a LoRA exactly.
Source: LyCORIS (arXiv:2309.14859), whose names for the factors are kept here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["loha", "loha_size", "lokr", "lokr_size"]


def loha(w: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """LoHa, the elementwise product (w1_a w1_b) * (w2_a w2_b), as a LoRA of rank r squared.

    Every column of w1_a is multiplied by every column of w2_a, and the rows of w1_b and w2_b
    likewise, so that entry (o, i) sums w1_a[o, j] w2_a[o, k] w1_b[j, i] w2_b[k, i] over j and k.

    Args:
        w: hada_w1_a and hada_w2_a (out, r), hada_w1_b and hada_w2_b (r, in).
    Returns: A (r * r, in), B (out, r * r), and r, by which alpha is divided.
    """
    one_a, one_b, two_a, two_b = (w[f"hada_w{n}"] for n in ("1_a", "1_b", "2_a", "2_b"))
    up = (one_a[:, :, None] * two_a[:, None, :]).flatten(1)
    down = (one_b[:, None, :] * two_b[None, :, :]).flatten(0, 1)
    return down, up, one_b.shape[0]


def lokr(w: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """LoKr, the Kronecker product of w1 and w2_a w2_b, as a LoRA.

    kron(w1, w2_a w2_b) = kron(w1, w2_a) kron(1, w2_b).

    Args:
        w: lokr_w1 (o1, i1), or lokr_w1_a (o1, r) and lokr_w1_b (r, i1); lokr_w2_a (o2, r) and
            lokr_w2_b (r, i2).
    Returns: A (i1 * r, i1 * i2), B (o1 * o2, i1 * r), and r, by which alpha is divided.
    """
    one = w["lokr_w1"] if "lokr_w1" in w else w["lokr_w1_a"] @ w["lokr_w1_b"]
    two_a, two_b = w["lokr_w2_a"], w["lokr_w2_b"]
    same = torch.eye(one.shape[1], dtype=one.dtype)
    return torch.kron(same, two_b), torch.kron(one, two_a.contiguous()), two_b.shape[0]


def loha_size(w: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Rows and columns of the update, and its rank as a LoRA, before anything is multiplied."""
    return w["hada_w1_a"].shape[0], w["hada_w1_b"].shape[1], w["hada_w1_b"].shape[0] ** 2


def lokr_size(w: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Rows and columns of the update, and its rank as a LoRA, before anything is multiplied."""
    left, right = ("lokr_w1",) * 2 if "lokr_w1" in w else ("lokr_w1_a", "lokr_w1_b")
    columns = w[right].shape[1]
    r, wide = w["lokr_w2_b"].shape
    return w[left].shape[0] * w["lokr_w2_a"].shape[0], columns * wide, columns * r
