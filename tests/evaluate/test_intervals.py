"""Bootstrap intervals, against the normal approximation and known cases."""

import math

import numpy as np
import pytest

from iclora.evaluate.intervals import bootstrap, compare


def test_an_interval_agrees_with_the_normal_approximation_and_with_the_exact_one():
    n = 400
    values = (np.random.default_rng(1).random(n) < 0.3).astype(float)
    found = bootstrap(values)
    share = values.mean()
    error = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(share)
    assert found.low == pytest.approx(share - error, abs=0.006)
    assert found.high == pytest.approx(share + error, abs=0.006)
    # How many ones are drawn is a binomial: the interval of all draws there are.
    chances = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    low, high = np.searchsorted(np.cumsum(chances), (0.025, 0.975)) / n
    assert found.low == pytest.approx(low, abs=0.004)
    assert found.high == pytest.approx(high, abs=0.004)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth():
    rng = np.random.default_rng(7)
    held = 0
    for turn in range(200):
        found = bootstrap(rng.normal(5, 2, 60), seed=turn)
        held += found.low <= 5 <= found.high
    assert 180 <= held <= 198


def test_one_value_has_no_interval_and_none_is_refused():
    assert bootstrap([0.5]).low is None
    assert not bootstrap([0.5]).telling
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_pairs_tell_a_difference_that_the_spread_would_hide():
    rng = np.random.default_rng(2)
    hard = {str(n): float(v) for n, v in enumerate(rng.normal(0, 10, 50))}
    better = {name: value + 1 + rng.normal(0, 0.5) for name, value in hard.items()}
    found = compare(hard, {**better, "asked of one alone": 99.0})
    assert found.count == 50
    assert found.telling
    assert found.low > 0.7
    assert found.high < 1.3
    assert compare({"a": 1.0}, {"b": 1.0}) is None


def test_sets_of_one_prompt_count_as_one_where_they_are_all_alike():
    rng = np.random.default_rng(4)
    prompts = rng.normal(0, 1, 30)
    values = np.repeat(prompts, 8)
    groups = np.repeat(np.arange(30), 8).tolist()
    alone, grouped, plain = bootstrap(prompts), bootstrap(values, groups=groups), bootstrap(values)
    assert grouped.mean == pytest.approx(alone.mean)
    assert grouped.low == pytest.approx(alone.low, abs=0.03)
    assert grouped.high == pytest.approx(alone.high, abs=0.03)
    assert plain.high - plain.low < 0.5 * (grouped.high - grouped.low)
    # Of one prompt alone only its own sets can speak.
    assert bootstrap([1.0, 2.0, 3.0], groups=["a"] * 3) == bootstrap([1.0, 2.0, 3.0])


def test_groups_of_different_sizes_weigh_as_many_sets_as_they_hold():
    found = bootstrap([0.0, 0.0, 0.0, 1.0], groups=["a", "a", "a", "b"])
    assert found.mean == 0.25
    assert (found.low, found.high) == (0.0, 1.0)
    pairs = compare({"x": 1.0, "y": 1.0}, {"x": 2.0, "y": 4.0}, {"x": "p", "y": "q"})
    assert (pairs.mean, pairs.low, pairs.high) == (2.0, 1.0, 3.0)
