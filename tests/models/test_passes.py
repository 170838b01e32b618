"""Segments and their order."""

from __future__ import annotations

import pytest
import torch

from iclora.models.attention import attention_to
from iclora.models.base import Given
from iclora.models.passes import in_order, in_place, segments, with_text

CPU = torch.device("cpu")


def test_clean_given_tokens_stand_last_and_come_back_to_their_places():
    tokens = torch.tensor([True, False, True, False, False])
    sigma = torch.tensor([0.3, 0.9])
    levels, order = segments(sigma, Given(tokens, clean=True), 5)
    assert levels.tokens == (3, 2)
    assert levels.sigma.tolist() == [[pytest.approx(0.3), 0], [pytest.approx(0.9), 0]]
    assert order.tolist() == [1, 3, 4, 0, 2]
    x = torch.randn(2, 5, 4)
    assert torch.equal(in_place(in_order(x, order), order), x)
    first = in_place(in_order(x, order)[:, : levels.first().tokens[0]], order)
    assert torch.equal(first[:, ~tokens], x[:, ~tokens])
    assert not first[:, tokens].any()


@pytest.mark.parametrize(
    "given", [None, Given(torch.tensor([True, False])), Given(torch.zeros(2).bool(), clean=True)]
)
def test_other_tokens_are_one_segment_in_their_own_order(given):
    levels, order = segments(torch.tensor([0.5]), given, 2)
    assert (levels.tokens, order) == ((2,), None)


def test_the_text_takes_the_first_level():
    assert with_text((3, 2), 10) == (13, 2)
    assert with_text((5,), 10) == (15,)


def test_given_tokens_are_counted_once_however_often_a_pass_asks(monkeypatch):
    given = Given(torch.tensor([[True, False, True], [False, True, True]]), clean=True)
    assert given.count == 2
    # From here on a look into the tokens would wait for a device.
    for name in ("any", "sum", "item", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the host waits"))
    segments(torch.tensor([0.5, 0.5]), given, 3)
    attention_to(given, 4, CPU)
