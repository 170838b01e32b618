"""Samples with given panels: which are given, what is learnt from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iclora.adapter import attach
from iclora.models import flow, load_model
from iclora.models.base import Given
from iclora.sets.layout import token_mask
from iclora.train.ledger import Ledger
from iclora.train.objective import Sample, accumulate, draw_given
from tests.conftest import encoded

CPU = torch.device("cpu")


@pytest.fixture
def case(clean, config, request):
    """A dataset of three sets and a LoRA whose B is not zero."""
    kind = getattr(request, "param", "joint")
    settings = config(batch=4, conditional=1.0, micro_batch=1, text=kind)
    data = encoded(clean, settings, Path(settings.cache))
    parameters = attach(clean, rank=4, alpha=6, targets="all", seed=0)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.1)
    samples = [Sample(20 + i, i % 3, 0) for i in range(6)]
    return clean, settings, data, parameters, samples


def test_panels_are_given_as_often_as_asked_the_usual_ones_half_of_the_time(config):
    settings = config(conditional=0.5)
    drawn = Counter(draw_given(flow.generator("t", i), settings, 3, (0,)) for i in range(4000))
    assert set(drawn) == {(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)}
    assert abs(drawn[()] / 4000 - 0.5) < 0.03
    # Half of the rest, and a sixth of the other half: sizes, then panels, are equally likely.
    assert abs(drawn[0,] / 2000 - (0.5 + 0.5 / 6)) < 0.04
    assert abs(drawn[0, 1] / 2000 - 0.5 / 6) < 0.03


def test_joint_training_gives_no_panel_and_a_single_panel_is_never_given(config):
    assert draw_given(flow.generator(0), config(), 3, (0,)) == ()
    assert draw_given(flow.generator(0), config(conditional=1.0), 1, ()) == ()


class Reads(TorchDispatchMode):
    """Counts how often somebody waits for a number of the meta device, and hands out zeros."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        copied = op is torch.ops.aten._to_copy.default and kwargs.get("device") == CPU
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            if copied:
                self.count += 1
                return torch.zeros(args[0].shape)
            if op is torch.ops.aten._local_scalar_dense.default:
                self.count += 1
                return 0.0
        return op(*args, **kwargs)


def test_a_step_waits_for_the_device_once(config, brief):
    """On the meta device nothing can be read but through `Reads`: mask, count or branch."""
    model = load_model("tiny", device="cpu")
    data = encoded(brief, config(), Path(config().cache))
    attach(model, rank=4, alpha=6, targets="all", seed=0)
    model.denoiser.to("meta")
    model.device = torch.device("meta")
    samples = [Sample(20 + i, i % 3, 0) for i in range(3)]
    for conditional in (0.0, 0.6, 1.0):
        settings = config(batch=3, conditional=conditional, isolate_given=conditional > 0)
        # The ledger knows what torch takes long to say of tensors without content.
        with Ledger(), Reads() as reads:
            accumulate(model, data, samples, settings)
        assert reads.count == 1


@pytest.mark.parametrize("isolate", [False, True])
def test_the_loss_is_that_of_the_unknown_tokens_alone_and_each_sample_weighs_the_same(
    case, isolate
):
    model, settings, data, parameters, samples = case
    settings = settings.model_copy(update={"isolate_given": isolate, "caption_dropout": 0.0})
    expected = 0.0
    with torch.no_grad():
        for sample in samples:
            key = (settings.seed, sample.number)
            entry = data.sets[sample.set]
            layout = entry.layouts[sample.size]
            panels = draw_given(flow.generator("given", *key), settings, 3, data.usual)
            assert 0 < len(panels) < 3
            mask = torch.from_numpy(token_mask(layout, panels, model.grid)).flatten()
            x0 = entry.latents(sample.size).double()
            eps = torch.randn(x0.shape, generator=flow.generator("noise", *key)).double()
            sigma = flow.draw_sigma(flow.generator("sigma", *key)).double()
            z = torch.where(mask[:, None], x0, (1 - sigma) * x0 + sigma * eps)
            v = model.velocity(
                z[None],
                sigma.float(),
                entry.texts(),
                (layout.width, layout.height),
                1.0,
                Given(mask, clean=True, isolated=isolate),
            )[0].double()
            expected += float(((v - (eps - x0)) ** 2)[~mask].mean()) / len(samples)
    found = accumulate(model, data, samples, settings)
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())


@pytest.mark.parametrize("case", ["joint", "isolated"], indirect=True)
def test_the_gradient_is_the_same_however_samples_are_grouped(case):
    model, settings, data, parameters, samples = case
    found = []
    for most in (1, 6):
        settings = settings.model_copy(update={"micro_batch": most, "conditional": 0.6})
        loss = accumulate(model, data, samples, settings)
        found.append((loss, [p.grad.clone() for p in parameters.values()]))
        for parameter in parameters.values():
            parameter.grad = None
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)
