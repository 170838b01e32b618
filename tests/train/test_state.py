"""The state of a run: written and taken over whole, or not at all."""

from __future__ import annotations

import pytest
import torch

from iclora.models.stored import Damaged
from iclora.train.state import Mismatch, TrainState


@pytest.fixture
def state(clean, config):
    """A state after one optimizer step."""
    state = TrainState.fresh(clean, config(rank=2, targets="attention"))
    for parameter in state.live.values():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.step = 1
    state.average(0.5)
    return state


def copied(state):
    return {key: value.clone() for key, value in state.tensors().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_state_that_was_written_is_taken_over_whole(state, clean, config):
    written = copied(state)
    other = TrainState.fresh(clean, config(rank=2, targets="attention", seed=1))
    assert not torch.equal(next(iter(other.live.values())), next(iter(state.live.values())))
    other.restore(written, 7)
    assert other.step == 7
    assert same(copied(other), written)


@pytest.mark.parametrize("fault", ["shape", "missing", "unknown"])
def test_tensors_of_another_lora_are_refused_before_anything_is_changed(state, fault):
    before = copied(state)
    other = {key: value + 1 for key, value in before.items()}
    key = list(other)[-1]  # the last one, so that a copy would have begun
    if fault == "shape":
        other[key] = torch.zeros(3, 5)
    else:
        value = other.pop(key)
        if fault == "unknown":
            other |= {key: value, "live/nowhere": value}
    with pytest.raises(Mismatch, match="nowhere is unknown" if fault == "unknown" else key):
        state.restore(other, 9)
    assert state.step == 1
    assert same(copied(state), before)


@pytest.mark.parametrize("fault", ["negative", "steps", "half", "none", "dtype"])
def test_numbers_that_no_optimizer_leaves_are_refused_before_anything_is_changed(state, fault):
    before = copied(state)
    other = {key: value + 1 for key, value in before.items()}
    moment = [key for key in other if key.startswith("adamw/exp_avg_sq/")][-1]
    count = [key for key in other if key.startswith("adamw/step/")][-1]
    if fault == "negative":
        other[moment].flatten()[-1] *= -1
    elif fault == "steps":
        other[count] += 1
    elif fault == "dtype":
        other[moment] = other[moment].double()
    else:
        for key in other:
            if key.startswith("adamw/step/"):
                other[key] = torch.tensor(0.5 if fault == "half" else 0.0)
    with pytest.raises(Damaged, match=r"adamw|steps"):
        state.restore(other, 9)
    assert state.step == 1
    assert same(copied(state), before)


def test_inside_the_block_the_base_computes_with_the_averaged_weights(state):
    live = {key: value.detach().clone() for key, value in state.live.items()}
    with state.averaged():
        assert all(torch.equal(state.live[key], value) for key, value in state.ema.items())
    assert all(torch.equal(state.live[key], value) for key, value in live.items())
