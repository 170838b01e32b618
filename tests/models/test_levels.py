"""What all steps of a sampling are modulated by, made at once, against level after level."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from torch import nn

from iclora.adapter import remove
from iclora.adapter.layers import apply
from iclora.models import flow
from iclora.models.base import Given, Panels
from iclora.models.double import of_silu
from iclora.models.levels import Levels, Schedule
from iclora.models.quantize import Frozen, quantize
from iclora.sets.layout import Layout
from tests.models.helpers import random_lora

SIZE, TOKENS, STEPS = (64, 32), 8, 3
GIVEN = torch.arange(TOKENS) % 4 == 1
MODULATING = re.compile(r".*(norm\d?(_context)?\.linear|odulation.*|_mod_proj|(img|txt)_mod\.1)$")
"""The layers that modulate, in all families."""
HALF = torch.arange(TOKENS) >= TOKENS // 2


@pytest.fixture(params=["clean", "klein", "zimage", "krea", "qwen"])
def model(request):
    model = request.getfixturevalue(request.param)
    yield model
    remove(model)


def texts_of(model):
    """The texts of two samples, short, of one length and unlike; and those of an unguided pass."""
    word = model.encode_text("a cat")
    short = {k: v if "real" in word or k != "prompt" else v[:12] for k, v in word.items()}
    other = {k: v if k == "real" else v + 0.3 * v.flip(-1) for k, v in short.items()}
    two = model.sampling.guided == "two-pass"
    return [short, other], [other, short] if two else None


@torch.no_grad()
def sampled(model, texts, *, ahead=True, steps=STEPS, how="clean", sigmas=None, schedule=None):
    """Latents of two samples with some tokens given; a step is taken twice."""
    noise = torch.randn(2, TOKENS, model.channels, generator=flow.generator("levels"))
    sigmas = sigmas or model.sigmas(steps, TOKENS)
    schedule = schedule or Schedule(sigmas)
    given, panels, (guided, unguided) = Given(GIVEN, clean=True), None, texts
    if how == "kept":
        given = Given(GIVEN, clean=True, isolated=True, cache=[])
    if how == "references":
        given = Given(HALF, references=HALF.int())
    if how == "apart":
        text, lengths = model.as_one(guided)
        guided, panels = [text] * 2, Panels.of(Layout.of_rows([2], *SIZE), lengths, model.grid)

    def velocity(z, sigma):
        step = schedule.at(sigma) if ahead else None
        level = torch.full((2,), sigma)
        return model.velocity(z, level, guided, SIZE, 3.0, given, unguided, panels, step)

    again = flow.Resample(1, 0.9, 1.0, lambda *at: noise.roll(sum(at), 1))
    known = {"given": given.tokens, "x0": noise.roll(1, 2), "clean": True, "resample": again}
    with schedule:
        return flow.denoise(velocity, noise, sigmas, **known)


def near(one, other):
    # Of all numbers and of the largest: a small one has the rounding of what it is the sum of.
    off = one - other
    assert off.norm() <= 1e-5 * other.norm()
    assert off.abs().max() <= 1e-5 * other.abs().max()


def test_latents_are_those_of_steps_that_are_modulated_one_by_one(model):
    """With clean given tokens, read at each step or once, with texts read apart, and with
    references; without an adapter and with one."""
    texts = texts_of(model)
    plain = sampled(model, texts, ahead=False)
    near(sampled(model, texts), plain)
    for how in ("kept", "apart", *["references"] * model.reads_references):
        near(sampled(model, texts, how=how), sampled(model, texts, how=how, ahead=False))
    apply(model, [(random_lora(model), 0.2)])
    adapted = sampled(model, texts)
    near(adapted, sampled(model, texts, ahead=False))
    assert (adapted - plain).abs().max() > 1e-3
    # The same bytes whatever was sampled before, by more steps and without the adapter.
    remove(model)
    sampled(model, texts, steps=5)
    apply(model, [(random_lora(model), 0.2)])
    assert torch.equal(sampled(model, texts), adapted)


def test_a_layer_that_modulates_is_computed_once_in_a_sampling(model):
    texts, calls, two = texts_of(model), {}, model.sampling.guided == "two-pass"
    taken = sum(1 + (sigma >= 0.9) for sigma in model.sigmas(STEPS, TOKENS)[:-1])
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, module in model.denoiser.named_modules()
        if isinstance(module, nn.Linear) and MODULATING.match(name)
    ]
    for ahead, times in ((True, 1), (False, taken * (1 + two))):
        calls |= {n: 0 for n, _ in model.denoiser.named_modules() if MODULATING.match(n)}
        sampled(model, texts, ahead=ahead)
        found = {name: count for name, count in calls.items() if count}
        assert len(found) == len(hooks) > 0
        assert set(found.values()) == {times}
    for hook in hooks:
        hook.remove()


def test_all_that_is_kept_is_counted_and_let_go_also_behind_an_error(clean, monkeypatch):
    texts, schedule, seen = texts_of(clean), Schedule(sigmas := clean.sigmas(3, TOKENS)), []
    velocity = clean.velocity

    def watched(*how):
        if len(seen) == 2:
            raise KeyboardInterrupt
        v = velocity(*how)
        seen.append(schedule.nbytes)
        return v

    monkeypatch.setattr(clean, "velocity", watched)
    with pytest.raises(KeyboardInterrupt):
        sampled(clean, texts, sigmas=sigmas, schedule=schedule)
    double, single = len(clean.denoiser.transformer_blocks), clean.blocks
    width = clean.denoiser.inner_dim
    numbers = (12 * double + 3 * (single - double) + 2 + 1) * width
    # Of two samples at three levels and at 0.
    assert seen == [4 * 2 * 4 * numbers] * 2
    assert schedule.nbytes == 0


def test_with_gradients_every_pass_makes_its_own(clean):
    (text, _), _ = texts_of(clean)
    apply(clean, [(random_lora(clean), 0.2)])
    lora = [p.requires_grad_() for n, p in clean.denoiser.named_parameters() if "lora_" in n]
    schedule, found = Schedule([0.7, 0.0]), []
    for step in (None, schedule.at(0.7)):
        z = torch.randn(1, TOKENS, clean.channels, generator=flow.generator("z"))
        out = clean.velocity(z, torch.tensor([0.7]), [text], SIZE, 3.0, step=step)
        found.append(torch.autograd.grad(out.square().sum(), lora, allow_unused=True))
    assert schedule.nbytes == 0
    assert all(a is b or torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert any(grad is not None and grad.any() for grad in found[0])
    remove(clean)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_blocks_are_modulated_as_level_after_level(clean, monkeypatch, kind):
    whole = sampled(clean, texts := texts_of(clean))
    net = quantize(deepcopy(clean.denoiser), kind, torch.device("cpu"), clean.block_prefixes)
    monkeypatch.setitem(clean.__dict__, "denoiser", net)
    found = sampled(clean, texts)
    near(found, sampled(clean, texts, ahead=False))
    assert (found - whole).abs().max() > 1e-4


@torch.no_grad()
def test_levels_are_modulated_as_exactly_by_a_layer_in_fp8_however_many_there_are():
    """One product of as many rows would round them to fp8."""
    torch.manual_seed(0)
    exact = nn.Linear(32, 96)
    layer, calls = Frozen(exact, "fp8", torch.device("cpu")), []
    schedule = Schedule([n / 50 for n in range(50, -1, -1)])
    embed = lambda sigma: torch.sin(sigma[..., None] * torch.arange(1, 33))  # noqa: E731
    make = lambda layer, temb: calls.append(len(temb)) or of_silu(layer, temb)  # noqa: E731
    found = []
    for sigma in schedule.levels:
        alone = Levels(torch.tensor([[sigma]]), (4,))
        among = Levels(alone.sigma, (4,), schedule.at(sigma))
        one, other = (own.made(layer, make, own.embedded(embed)) for own in (alone, among))
        near(one, other)
        found.append(one[0, 0])
    whole = of_silu(layer, embed(torch.tensor([schedule.levels])))
    assert (whole[0] - torch.stack(found)).abs().max() > 1e-3
    assert sum(calls) == 2 * len(schedule.levels)
    assert len(calls) == len(schedule.levels) + 2


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_blocks_are_compiled_once_however_many_steps_a_sampling_has(clean, counted, monkeypatch):
    texts, began = texts_of(clean), counted()
    plain = [sampled(clean, texts, steps=steps) for steps in (2, 4)]
    monkeypatch.setattr(clean, "compiled", frozenset({"sampling"}))
    made = []
    for steps, expected in zip((2, 4), plain, strict=True):
        near(sampled(clean, texts, steps=steps), expected)
        made.append(counted() - began)
    # The halves of two sorts of block, one again for words that come out of a double block;
    # modulation is made once, and as it is.
    assert made == [5, 5]
