"""Segments and their order."""

from __future__ import annotations

import pytest
import torch

from iclora.models.attention import attention_to
from iclora.models.base import Given
from iclora.models.passes import in_order, in_place, joined, modulate, segments, with_text

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


@pytest.mark.parametrize("batch", [1, 2])
def test_halves_of_a_blocks_output_are_joined_without_a_copy_and_others_with_one(batch):
    both = torch.randn(batch, 5, 4)
    with torch.no_grad():
        txt, img = torch.split(both, [2, 3], 1)
        assert joined(txt, img) is both
        for other in (joined(txt.clone(), img), joined(txt, both[:, :3])):
            assert other is not both
        assert torch.equal(joined(txt.clone(), img), both)
        assert torch.equal(joined(txt, both[:, :3]), torch.cat([txt, both[:, :3]], 1))
    txt, img = torch.split(both, [2, 3], 1)
    assert joined(txt, img) is not both, "a gradient would be written into it"


@pytest.mark.parametrize("batch", [1, 2])
def test_one_sample_is_modulated_as_each_of_many(batch):
    x, shift, scale = torch.randn(batch, 5, 8), torch.randn(batch, 2, 8), torch.randn(batch, 2, 8)
    each = torch.tensor([0, 0, 0, 1, 1])
    wanted = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    wanted = wanted * (1 + scale[:, each]) + shift[:, each]
    with torch.no_grad():
        torch.testing.assert_close(modulate(x, shift, scale, (3, 2)), wanted)
