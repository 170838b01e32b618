"""What a ledger books of tensors without content, asked for the first time and again."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from iclora.train.ledger import Ledger


def described(out):
    tensors = out if isinstance(out, tuple) else (out,)
    return [(x.shape, x.stride(), x.dtype) for x in tensors]


ASKED = {
    "numbers": lambda x, n: (n * 2, n * 2.0, n * True, n + n),
    "a product of three dimensions": lambda x, n: x.view(2, 4, 6) @ x.view(2, 4, 6).mT,
    "another order of memory": lambda x, n: (x.mT * 2, torch.empty_like(x.mT), x.mT.contiguous()),
    "another type": lambda x, n: (x.bfloat16(), x.bfloat16() * x[0, 0], n * x),
    "several": lambda x, n: torch.native_layer_norm(x, (6,), None, None, 1e-5),
    "in place": lambda x, n: (x.clone().add_(1), x.clone().addmm_(x, x[:6])),
    "an activation": lambda x, n: F.gelu(x, approximate="tanh"),
    "views": lambda x, n: (x.mT, x[2:, 1:], *x.chunk(3, 1)),
}


@pytest.mark.parametrize("kind", ASKED)
def test_what_an_operation_makes_is_what_it_makes_of_real_tensors(kind):
    def real(device):
        return torch.ones(8, 6, device=device), torch.ones(6, dtype=torch.int32, device=device)

    expected = described(ASKED[kind](*real("cpu")))
    for _ in ("asked for the first time", "known"):
        with Ledger():
            assert described(ASKED[kind](*real("meta"))) == expected


def test_bytes_live_as_long_as_their_tensors_and_views_and_changes_in_place_add_none():
    outside = torch.empty(10, 10, device="meta")
    for _ in range(2):
        with Ledger() as ledger:
            outside.add_(1).view(100)
            assert (ledger.live, ledger.peak) == (0, 0)
            one = outside * 2
            part = one[:5]
            del one
            assert ledger.live == 400
            other = part @ outside
            assert (ledger.live, ledger.peak, ledger.flops) == (600, 600, 2 * 5 * 10 * 10)
            del part, other
            assert (ledger.live, ledger.peak) == (0, 600)
            assert ledger.mark() == ledger.peak == 0


def test_real_tensors_keep_their_numbers():
    for number in (1.0, 2.0):
        with Ledger():
            assert (torch.full((2,), number) + 1).tolist() == [number + 1] * 2
