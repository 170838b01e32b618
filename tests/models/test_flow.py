"""The flow against float64 formulas and diffusers' scheduler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from iclora.models import flow


def test_noise_and_loss_equal_the_float64_formula():
    rng = np.random.default_rng(0)
    x0, eps, v = (rng.standard_normal((3, 5, 4)) for _ in range(3))
    sigma = np.array([0.0, 0.3, 1.0])
    noisy = flow.add_noise(*(torch.tensor(a) for a in (x0, eps, sigma)))
    s = sigma[:, None, None]
    np.testing.assert_allclose(noisy.numpy(), (1 - s) * x0 + s * eps, rtol=1e-12)
    loss = flow.loss(*(torch.tensor(a, dtype=torch.float32) for a in (v, x0, eps)))
    np.testing.assert_allclose(loss.numpy(), ((v - (eps - x0)) ** 2).mean((1, 2)), rtol=1e-5)


def test_sigma_is_logit_normal_with_the_asked_mean_and_spread():
    draws = torch.cat([flow.draw_sigma(flow.generator("t", i), 0.5, 1.5) for i in range(4000)])
    logits = torch.logit(draws)
    assert abs(float(logits.mean()) - 0.5) < 0.1
    assert abs(float(logits.std()) - 1.5) < 0.1


@pytest.mark.parametrize("tokens", [256, 6144, 9216])
def test_the_shift_equals_diffusers_scheduler(tokens):
    mu = flow.resolution_shift(tokens, 256, 4096, 0.5, 1.15)
    assert math.isclose(mu, calculate_shift(tokens), rel_tol=1e-9)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigma = np.linspace(1, 0.05, 20)
    expected = scheduler.time_shift(mu, 1.0, sigma)
    np.testing.assert_allclose(flow.shift(torch.tensor(sigma), mu).numpy(), expected, rtol=1e-6)


def test_a_shift_of_zero_changes_nothing():
    sigma = torch.linspace(0.01, 1, 50)
    torch.testing.assert_close(flow.shift(sigma, 0.0), sigma)


def test_the_same_key_gives_the_same_numbers_and_another_key_others():
    def draw(*key):
        return torch.randn(8, generator=flow.generator(*key))

    assert torch.equal(draw(1, "a", 2), draw(1, "a", 2))
    assert not torch.equal(draw(1, "a", 2), draw(1, "a", 3))
    assert not torch.equal(draw(1, 23), draw(12, 3))


def test_the_euler_loop_reaches_the_data_exactly_when_the_velocity_is_exact():
    x0, noise = torch.randn(2, 1, 6, 4, generator=flow.generator("x"))
    out = flow.denoise(lambda z, s: noise - x0, noise, [1.0, 0.7, 0.2, 0.0])
    torch.testing.assert_close(out, x0)


def test_given_tokens_are_noised_to_each_sigma_and_end_clean():
    x0, noise = torch.randn(2, 1, 6, 4, generator=flow.generator("y"))
    given = torch.tensor([True, False, True, False, False, False])
    seen = []

    def velocity(z, sigma):
        seen.append((z.clone(), sigma))
        return torch.full_like(z, 3.0)

    out = flow.denoise(velocity, noise, [1.0, 0.5, 0.0], given=given, x0=x0)
    for z, sigma in seen:
        expected = (1 - sigma) * x0 + sigma * noise
        torch.testing.assert_close(z[:, given], expected[:, given])
    assert torch.equal(out[:, given], x0[:, given])
    torch.testing.assert_close(out[:, ~given], noise[:, ~given] - 3.0)


def test_progress_is_reported_after_every_step():
    steps = []
    z = torch.zeros(1, 2, 2)
    flow.denoise(lambda z, s: z, z, [1.0, 0.5, 0.0], on_step=lambda *a: steps.append(a))
    assert steps == [(1, 2), (2, 2)]


def test_going_back_gives_the_marginal_of_the_higher_level():
    sigma, sigma_next = 0.9, 0.6
    drawn = torch.randn(1, 20000, 1, generator=torch.Generator().manual_seed(0))
    x0, eps = torch.full_like(drawn, 2.0), torch.randn_like(drawn)
    z = flow.Resample.renoise((1 - sigma_next) * x0 + sigma_next * eps, sigma_next, sigma, drawn)
    assert abs(float(z.mean()) - (1 - sigma) * 2) < 0.03
    assert abs(float(z.std()) - sigma) < 0.03
    # From pure noise nothing of what was there is left.
    torch.testing.assert_close(flow.Resample.renoise(z, 0.8, 1.0, drawn), drawn)


def test_steps_in_the_range_are_repeated_and_end_where_the_velocity_leads():
    x0 = torch.linspace(-1, 1, 8).view(1, 4, 2)
    noise = torch.randn(1, 4, 2)
    seen, drawn = [], []

    def velocity(z, sigma):
        seen.append(sigma)
        return (z - x0) / sigma

    def draw(step, repeat):
        drawn.append((step, repeat))
        return torch.randn(1, 4, 2)

    made = flow.denoise(
        velocity, noise, [1.0, 0.8, 0.5, 0.2, 0.0], resample=flow.Resample(2, 0.4, 0.9, draw)
    )
    assert seen == [1.0, 0.8, 0.8, 0.8, 0.5, 0.5, 0.5, 0.2]
    assert drawn == [(1, 1), (1, 2), (2, 1), (2, 2)]
    torch.testing.assert_close(made, x0, atol=1e-5, rtol=1e-5)


def test_a_given_token_is_seen_through_other_noise_in_each_repetition():
    x0, noise = torch.ones(1, 2, 2), torch.randn(1, 2, 2)
    given, seen = torch.tensor([True, False]), []

    def velocity(z, sigma):
        seen.append((z[:, 0] - (1 - sigma) * x0[:, 0]) / sigma)
        return z - x0

    draws = [torch.randn(1, 2, 2) for _ in range(2)]
    resample = flow.Resample(2, 0.9, 1.0, lambda step, repeat: draws[repeat - 1])
    flow.denoise(velocity, noise, [1.0, 0.5, 0.0], given=given, x0=x0, resample=resample)
    for found, drawn in zip(seen, (noise, *draws, noise), strict=True):
        torch.testing.assert_close(found, drawn[:, 0])


def test_clean_tokens_are_clean_at_every_step():
    x0, noise = torch.ones(1, 4, 2), torch.randn(1, 4, 2)
    given = torch.tensor([True, False, True, False])

    def velocity(z, sigma):
        assert torch.equal(z[:, given], x0[:, given])
        return z - x0

    flow.denoise(velocity, noise, [1.0, 0.5, 0.0], given=given, x0=x0, clean=True)


def test_the_loss_of_some_tokens_is_their_mean():
    v, x0, eps = (torch.randn(3, 5, 4) for _ in range(3))
    of = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    error = (v - (eps - x0)) ** 2
    whole = torch.stack([e[chosen].mean() for e, chosen in zip(error, of, strict=True)])
    torch.testing.assert_close(flow.loss(v, x0, eps, of), whole)
