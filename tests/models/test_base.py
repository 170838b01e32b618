"""Panels that read texts of their own, by both families: against masks and one text for all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from iclora.errors import ModelError
from iclora.models import attention
from iclora.models.attention import parts_of
from iclora.models.base import Given, Panels
from iclora.models.flow import denoise, loss
from iclora.models.outline import outline_of
from iclora.sets.layout import Layout
from iclora.sets.tokens import token_owners

SIZE = (64, 96)
# The tokens of panels lie between each other's, row by row.
LAYOUT = Layout.of_rows([2, 2], 64, 96)
WORDS = ("a cat", "a dog in a hat", "two birds", "a boat")


@pytest.fixture(params=["tiny", "klein"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def _encoded():
    return {}


@pytest.fixture
def texts(model, _encoded):
    """Four encoded texts of other lengths, cut short: attention costs what a test does."""
    if model.name not in _encoded:
        _encoded[model.name] = [model.encode_text(words) for words in WORDS]
    return [
        {**text, "prompt": text["prompt"][: 12 + number]}
        for number, text in enumerate(_encoded[model.name])
    ]


def noise(model):
    torch.manual_seed(0)
    return torch.randn(2, 24, model.channels)


@torch.no_grad()
def velocity(model, text, panels=None, given=None, unguided=None, guidance=3.5):
    sigma = torch.tensor([0.3, 0.8])
    z = noise(model)
    both = None if unguided is None else [unguided] * 2
    return model.velocity(z, sigma, [text] * 2, SIZE, guidance, given, both, panels)


def apart(model, texts, layout=LAYOUT):
    text, lengths = model.as_one(texts)
    return text, Panels.of(layout, lengths, model.grid)


def masked(panels, given=None):
    """Attention with a mask over (S, S), its tokens in the order of the canvas."""
    reads = torch.repeat_interleave(torch.arange(len(panels.lengths)), torch.tensor(panels.lengths))
    panel = torch.cat([reads, panels.owner])
    image = torch.arange(len(panel)) >= len(reads)
    allowed = (panel[:, None] == panel) | (image[:, None] & image)
    bias = torch.zeros(len(panel), len(panel)).masked_fill(~allowed, -torch.inf)
    if given is not None:
        of = torch.cat([torch.zeros(len(reads), dtype=torch.bool), given.tokens])
        bias[(image & ~of)[:, None] & of] += torch.tensor(given.scale).log()

    def attend(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).flatten(2)

    return attend


@pytest.mark.parametrize("boost", [1.0, 3.0])
def test_reading_apart_is_the_pass_with_a_mask(model, texts, monkeypatch, boost):
    tokens = torch.from_numpy(token_owners(LAYOUT, model.grid) == 1).flatten()
    given = Given(tokens, scale=boost)
    text, panels = apart(model, texts)
    ours = velocity(model, text, panels, given)
    whole = velocity(model, text, None, given)
    module = __import__(type(model).__module__, fromlist=["attention_to"])
    monkeypatch.setattr(module, "attention_to", lambda *_, **__: masked(panels, given))
    # In the canvas's own order; the positions of texts are still those of several.
    monkeypatch.setattr(Panels, "order", None)
    theirs = velocity(model, text, replace(panels), given)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert (ours - whole).abs().max() > 1e-4


def test_one_panel_that_reads_its_text_apart_is_joint(model, texts):
    text, lengths = model.as_one(texts[:1])
    panels = Panels(torch.zeros(24, dtype=torch.long), lengths)
    assert Panels.of(LAYOUT, lengths, model.grid) is None
    joint = velocity(model, text)
    torch.testing.assert_close(velocity(model, text, panels), joint, atol=1e-5, rtol=1e-5)


def test_equal_texts_that_see_all_panels_are_joint(model, texts, monkeypatch):
    same = [texts[1]] * 4
    text, panels = apart(model, same)
    joint = velocity(model, texts[1])
    closed = velocity(model, text, panels)

    def opened(shares, given_rows):
        words = sum(shares.texts)
        image = slice(words, words + 24)
        return [
            (rows, (*columns[:1], image) if rows.stop <= words else columns)
            for rows, columns in parts_of(shares, given_rows)
        ]

    monkeypatch.setattr(attention, "parts_of", opened)
    torch.testing.assert_close(velocity(model, text, panels), joint, atol=1e-5, rtol=1e-5)
    assert (closed - joint).abs().max() > 1e-5


@pytest.mark.parametrize("known", [(1,), (0, 3)])
def test_cached_keys_of_given_panels_serve_panels_that_read_apart(model, texts, known):
    owners = token_owners(LAYOUT, model.grid)
    tokens = torch.from_numpy(sum(owners == n for n in known) > 0).flatten()
    text, panels = apart(model, texts)
    cached = Given(tokens, clean=True, isolated=True, cache=[])
    alone = replace(cached, cache=None)
    first, second = (velocity(model, text, panels, cached)[:, ~tokens] for _ in range(2))
    plain = velocity(model, text, panels, alone)[:, ~tokens]
    assert len(cached.cache) == model.blocks
    torch.testing.assert_close(first, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, plain, atol=1e-5, rtol=1e-5)


def test_the_unguided_pass_reads_one_text_for_all_panels(klein, monkeypatch):
    texts = [klein.encode_text(words) for words in WORDS[:2]]
    layout = Layout.of_rows([2], 64, 96)
    text, panels = apart(klein, texts, layout)
    empty = klein.encode_text("")
    tokens = torch.from_numpy(token_owners(layout, klein.grid) == 1).flatten()
    given = Given(tokens, clean=True, isolated=True, cache=[])
    for _ in range(2):
        both = velocity(klein, text, panels, given, empty, 3.0)[:, ~tokens]
    plain = replace(given, cache=None)
    guided = velocity(klein, text, panels, plain)[:, ~tokens]
    free = velocity(klein, empty, None, plain)[:, ~tokens]
    torch.testing.assert_close(both, free + 3 * (guided - free), atol=1e-4, rtol=1e-4)


def test_what_is_one_vector_of_a_text_is_the_mean_of_the_texts(tiny):
    texts = [tiny.encode_text(words) for words in WORDS]
    joined, lengths = tiny.as_one(texts)
    mean = sum(text["pooled"].double() for text in texts) / 4
    torch.testing.assert_close(joined["pooled"].double(), mean, atol=1e-6, rtol=1e-6)
    assert torch.equal(joined["prompt"], torch.cat([text["prompt"] for text in texts]))
    assert lengths == (512,) * 4
    assert tiny.as_one(texts[:1])[0] is texts[0]


def test_samples_with_other_panels_given_are_not_read_apart_together(tiny):
    panels = Panels(torch.tensor([0, 0, 1, 1]), (3, 3))
    rows = torch.tensor([[True, True, False, False], [False, False, True, True]])
    assert panels.shares(Given(rows[0], clean=True)) == ([0, 2], [2, 0])
    with pytest.raises(AssertionError):
        panels.shares(Given(rows, clean=True))


def test_a_family_that_reads_one_text_refuses_several(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny), "reads_apart", False)
    tiny.check_text("joint")
    with pytest.raises(ModelError, match="one text for all panels"):
        tiny.check_text("alone")


HIDDEN = torch.from_numpy(token_owners(LAYOUT, 16) == 1).flatten()
WAYS = (
    None,
    Given(HIDDEN, clean=True, isolated=True, cache=[]),
    Given(HIDDEN, scale=2.0),
    Given(HIDDEN, references=HIDDEN.int()),
)


@pytest.mark.parametrize("name", ["tiny", "klein", "zimage", "krea", "qwen"])
def test_no_step_waits_for_the_device(name, request):
    """On a device that has no numbers to read back, steps of sampling and gradients are taken."""
    model = request.getfixturevalue(name)
    there = outline_of(model, torch.float32, "full").model
    word = model.encode_text("a cat")
    one = model.as_one([word])[0]
    several, panels = apart(model, [word] * 4)
    unguided = [word] if model.sampling.guided == "two-pass" else None
    noise = torch.randn(1, 24, model.channels, device="meta")

    def velocity(z, sigma, text=one, given=None, panels=None):
        return there.velocity(
            z, z.new_full((1,), sigma), [text], SIZE, 3.5, given, unguided, panels
        )

    for given in WAYS:
        if given is not None and given.references is not None and not model.reads_references:
            continue
        made = denoise(
            partial(velocity, given=given),
            noise,
            [1.0, 0.5, 0.0],
            given=None if given is None else HIDDEN.to("meta"),
            x0=torch.zeros_like(noise),
            clean=given is not None and given.clean,
        )
        assert made.is_meta
    z = noise.clone().requires_grad_()
    error = loss(velocity(z, 0.5, several, panels=panels), noise, noise).sum()
    torch.autograd.grad(error, z)
    with pytest.raises(RuntimeError, match="meta"):
        error.item()
