"""Segments and their order."""

from __future__ import annotations

import pytest
import torch

from iclora.models.attention import attention_to
from iclora.models.base import Given
from iclora.models.outline import outline_of
from iclora.models.passes import Levels, in_order, in_place, segments, with_text

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


@pytest.mark.parametrize("name", ["klein", "qwen"])
def test_modulation_is_made_once_for_both_passes_of_a_step(name, request, monkeypatch):
    model = request.getfixturevalue(name)
    there = outline_of(model, torch.float32, "full").model
    word, made, once = model.encode_text("a cat"), [], Levels.once
    monkeypatch.setattr(
        Levels, "once", lambda of, what, make: once(of, what, lambda: made.append(what) or make())
    )
    z = torch.randn(1, 24, model.channels, device="meta")

    def step(sigma, *unguided):
        with torch.no_grad():
            there.velocity(z, z.new_full((1,), sigma), [word], (96, 64), 3.5, None, *unguided)

    step(1.0)
    alone = len(made)
    step(1.0, [word])
    assert made[alone:] == made[:alone]
    assert any("modulation" in what for what in made)
    step(0.5, [word])
    assert len(made) == 3 * alone, "another level has another modulation"


def test_given_tokens_are_counted_once_however_often_a_pass_asks(monkeypatch):
    given = Given(torch.tensor([[True, False, True], [False, True, True]]), clean=True)
    assert given.count == 2
    # From here on a look into the tokens would wait for a device.
    for name in ("any", "sum", "item", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the host waits"))
    segments(torch.tensor([0.5, 0.5]), given, 3)
    attention_to(given, 4, CPU)
