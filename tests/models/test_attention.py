"""Attention, and how given tokens are read, against dense float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from iclora.models.attention import Shares, blockwise, by_parts, isolated, parts_of, reading, scaled

WORDS, NOISY, GIVEN = 5, 11, 6


def dense(q, k, v, bias):
    """softmax(q k' / sqrt(d) + bias) v, in float64."""
    q, k, v = (t.double() for t in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return [torch.randn(2, 3, WORDS + NOISY + GIVEN, 16) for _ in range(3)]


@pytest.mark.parametrize("factor", [0.5, 1.3, 4.0])
def test_scaled_attention_is_two_attentions_joined_by_their_log_sum_exp(qkv, factor):
    given = torch.zeros(NOISY + GIVEN, dtype=torch.bool)
    given[torch.randperm(NOISY + GIVEN)[:GIVEN]] = True
    q, k, v = (t.double() for t in qkv)
    of_given = torch.cat([torch.zeros(WORDS, dtype=torch.bool), given])
    scores = q @ k.mT / 4
    parts = []
    for keys, weight in ((of_given, factor), (~of_given, 1.0)):
        part = scores[..., keys]
        mass = part.logsumexp(-1, keepdim=True) + math.log(weight)
        parts.append((part.softmax(-1) @ v[:, :, keys], mass))
    both = torch.cat([mass for _, mass in parts], -1).softmax(-1)
    joined = parts[0][0] * both[..., :1] + parts[1][0] * both[..., 1:]
    plain = scores.softmax(-1) @ v
    asks = ~of_given
    asks[:WORDS] = False
    expected = torch.where(asks[:, None], joined, plain).transpose(1, 2).flatten(2)
    ours = scaled(blockwise, given, WORDS, factor)(*qkv)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


def test_isolated_tokens_attend_to_each_other_alone_and_the_rest_to_all(qkv):
    bias = torch.zeros(WORDS + NOISY + GIVEN, WORDS + NOISY + GIVEN, dtype=torch.float64)
    bias[-GIVEN:, :-GIVEN] = -torch.inf
    ours = isolated(blockwise, GIVEN)(*qkv)
    torch.testing.assert_close(ours.double(), dense(*qkv, bias), atol=1e-5, rtol=1e-5)


def test_gradients_through_isolated_attention_are_those_of_a_mask(qkv):
    leaves = [t.clone().requires_grad_() for t in qkv]
    weights = torch.linspace(-1, 1, 48)
    (isolated(blockwise, GIVEN)(*leaves) * weights).sum().backward()
    theirs = [t.clone().requires_grad_() for t in qkv]
    mask = torch.ones(WORDS + NOISY + GIVEN, WORDS + NOISY + GIVEN, dtype=torch.bool)
    mask[-GIVEN:, :-GIVEN] = False
    out = F.scaled_dot_product_attention(*theirs, attn_mask=mask).transpose(1, 2).flatten(2)
    (out * weights).sum().backward()
    for ours, other in zip(leaves, theirs, strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_cached_keys_and_values_are_read_block_by_block(qkv):
    cache: list[tuple[torch.Tensor, torch.Tensor]] = []
    fill = isolated(blockwise, GIVEN, cache)
    second = [t.flip(2) for t in qkv]
    whole = [fill(*qkv), fill(*second)]
    assert len(cache) == 2
    read = reading(blockwise, cache)
    for full, block in zip(whole, (qkv, second), strict=True):
        some = read(*(t[:, :, :-GIVEN] for t in block))
        torch.testing.assert_close(some, full[:, :-GIVEN], atol=1e-6, rtol=1e-6)


# -- panels that read texts of their own --------------------------------------------------------

# Three panels: one all noisy, one with a given part, one given whole.
SHARES = Shares((3, 1, 2), (6, 5, 0), (0, 2, 4))
READS = torch.tensor([0, 0, 0, 1, 2, 2])
OWNER = torch.tensor([0] * 6 + [1] * 5 + [1] * 2 + [2] * 4)


def told_apart(alone=False):
    """The bias of a mask over all tokens: texts, noisy tokens, given ones."""
    panel = torch.cat([READS, OWNER])
    image = torch.arange(len(panel)) >= len(READS)
    allowed = (panel[:, None] == panel) | (image[:, None] & image)
    if alone:
        allowed[-6:] = False
        allowed[-6:, -6:] = True
    bias = torch.zeros(len(panel), len(panel), dtype=torch.float64)
    return bias.masked_fill(~allowed, -torch.inf)


@pytest.fixture
def panels():
    torch.manual_seed(0)
    return [torch.randn(2, 3, len(READS) + len(OWNER), 16) for _ in range(3)]


def test_parts_of_panels_are_a_mask_that_shows_each_panel_its_own_text_alone(panels):
    ours = by_parts(blockwise, parts_of(SHARES, given_rows=True))
    exact = ours(*(x.double() for x in panels))
    torch.testing.assert_close(exact, dense(*panels, told_apart()), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours(*panels).double(), exact, atol=1e-5, rtol=1e-5)


def test_given_tokens_that_attend_to_themselves_alone_read_no_text(panels):
    rest = by_parts(blockwise, parts_of(SHARES, given_rows=False))
    cache: list[tuple[torch.Tensor, torch.Tensor]] = []
    whole = isolated(blockwise, 6, cache, rest)(*panels)
    expected = dense(*panels, told_apart(alone=True))
    torch.testing.assert_close(whole.double(), expected, atol=1e-5, rtol=1e-5)
    some = reading(rest, cache)(*(x[:, :, :-6] for x in panels))
    torch.testing.assert_close(some, whole[:, :-6], atol=1e-6, rtol=1e-6)


def test_gradients_through_parts_are_those_of_the_mask_in_float64(panels):
    weights = torch.linspace(-1, 1, 48)
    ours = [x.clone().requires_grad_() for x in panels]
    (by_parts(blockwise, parts_of(SHARES, given_rows=True))(*ours) * weights).sum().backward()
    theirs = [x.double().requires_grad_() for x in panels]
    (dense(*theirs, told_apart()) * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_given_tokens_may_be_scaled_where_panels_read_texts_of_their_own(panels, factor):
    given = torch.zeros(len(OWNER), dtype=torch.bool)
    given[[1, 7, 8]] = True
    shares = Shares(SHARES.texts, (6, 7, 4), (0, 0, 0))
    bias = told_apart()
    asks, tells = len(READS) + (~given).nonzero(), len(READS) + given.nonzero()
    bias[asks, tells.T] += math.log(factor)
    ours = scaled(by_parts(blockwise, parts_of(shares, given_rows=True)), given, 6, factor)
    expected = dense(*panels, bias)
    torch.testing.assert_close(ours(*panels).double(), expected, atol=1e-5, rtol=1e-5)


def test_one_panel_and_its_text_are_a_single_attention(panels):
    calls = []
    parts = parts_of(Shares((6,), (17,), (0,)), given_rows=True)
    by_parts(lambda *x: calls.append(x) or blockwise(*x), parts)(*panels)
    assert len(calls) == 1
    assert all(torch.equal(*pair) for pair in zip(calls[0], panels, strict=True))
