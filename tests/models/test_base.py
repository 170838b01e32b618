"""Panels that read texts of their own, by all families: against masks and one text for all."""

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

# A canvas that Z-Image does not fill up: what fills one up reads no text of a panel.
SIZE, TOKENS = (64, 128), 32
# The tokens of panels lie between each other's, row by row.
LAYOUT = Layout.of_rows([2, 2], *SIZE)
WORDS = ("a cat", "a dog in a hat", "two birds, " + "and on " * 20, "a boat")
FAMILIES = ["tiny", "klein", "zimage", "krea", "qwen"]


@pytest.fixture(params=FAMILIES)
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
        # Z-Image's are of 32 tokens or 64, and say which of them are real.
        text if "real" in text else {**text, "prompt": text["prompt"][: 12 + number]}
        for number, text in enumerate(_encoded[model.name])
    ]


def noise(model):
    torch.manual_seed(0)
    return torch.randn(2, TOKENS, model.channels)


@torch.no_grad()
def velocity(model, text, panels=None, given=None, unguided=None, guidance=3.5):
    sigma = torch.tensor([0.3, 0.8])
    z = noise(model)
    both = None if unguided is None else [unguided] * 2
    return model.velocity(z, sigma, [text] * 2, SIZE, guidance, given, both, panels)


def apart(model, texts, layout=LAYOUT):
    text, lengths = model.as_one(texts)
    return text, Panels.of(layout, lengths, model.grid)


def masked(panels, given=None, order=slice(None)):
    """Attention with a mask over (S, S), image tokens in this order, by default the canvas's."""
    reads = torch.repeat_interleave(torch.arange(len(panels.lengths)), torch.tensor(panels.lengths))
    panel = torch.cat([reads, panels.owner[order]])
    image = torch.arange(len(panel)) >= len(reads)
    allowed = (panel[:, None] == panel) | (image[:, None] & image)
    bias = torch.zeros(len(panel), len(panel)).masked_fill(~allowed, -torch.inf)
    if given is not None:
        of = torch.cat([torch.zeros(len(reads), dtype=torch.bool), given.tokens[order]])
        bias[(image & ~of)[:, None] & of] += torch.tensor(given.scale).log()

    def attend(q, k, v):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return out.transpose(1, 2).flatten(2)

    return attend


def with_masks(model, monkeypatch):
    """Make every attention of panels that read apart one with a mask."""
    module = __import__(type(model).__module__, fromlist=["attention_to"])
    real = module.attention_to

    def attention_to(given, text_tokens, device, panels=None, order=None, *more, **named):
        if panels is None:
            return real(given, text_tokens, device, panels, order, *more, **named)
        return masked(panels, given, slice(None) if order is None else order)

    monkeypatch.setattr(module, "attention_to", attention_to)


@pytest.mark.parametrize("boost", [1.0, 3.0])
def test_reading_apart_is_the_pass_with_a_mask(model, texts, monkeypatch, boost):
    tokens = torch.from_numpy(token_owners(LAYOUT, model.grid) == 1).flatten()
    given = Given(tokens, scale=boost)
    text, panels = apart(model, texts)
    ours = velocity(model, text, panels, given)
    whole = velocity(model, text, None, given)
    with_masks(model, monkeypatch)
    # In the canvas's own order; the positions of texts are still those of several.
    monkeypatch.setattr(Panels, "order", None)
    theirs = velocity(model, text, replace(panels), given)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert (ours - whole).abs().max() > 1e-4


def test_one_panel_that_reads_its_text_apart_is_joint(model, texts):
    text, lengths = model.as_one(texts[:1])
    panels = Panels(torch.zeros(TOKENS, dtype=torch.long), lengths)
    assert Panels.of(LAYOUT, lengths, model.grid) is None
    joint = velocity(model, text)
    torch.testing.assert_close(velocity(model, text, panels), joint, atol=1e-5, rtol=1e-5)


def test_equal_texts_that_see_all_panels_are_joint(model, texts, monkeypatch):
    same = [texts[1]] * 4
    text, panels = apart(model, same)
    joint = velocity(model, texts[1])
    closed = velocity(model, text, panels)

    def opened(shares, given_rows):
        if not sum(shares.noisy):  # of Z-Image's texts, before they meet the image
            return parts_of(shares, given_rows)
        words = sum(shares.texts)
        image = slice(words, words + TOKENS)
        return [
            (rows, (*columns[:1], image) if rows.stop <= words else columns)
            for rows, columns in parts_of(shares, given_rows)
        ]

    monkeypatch.setattr(attention, "parts_of", opened)
    torch.testing.assert_close(velocity(model, text, panels), joint, atol=1e-5, rtol=1e-5)
    assert (closed - joint).abs().max() > 1e-5


def gradients(model, text, panels, dtype):
    """Of what is not given, by all weights of the blocks, each with the rest of its matrix."""
    weights = {
        name: weight
        for name, weight in model.denoiser.named_parameters()
        if weight.ndim == 2 and name.startswith(model.block_prefixes)
    }
    tokens = torch.from_numpy(token_owners(LAYOUT, model.grid) == 1).flatten()
    text = {name: x.to(dtype) for name, x in text.items()}
    z, sigma = noise(model)[:1].to(dtype), torch.tensor([0.4])
    model.denoiser.to(dtype)
    for weight in weights.values():
        weight.requires_grad_(True)
    given = Given(tokens, clean=True)
    out = model.velocity(z, sigma, [text], SIZE, 1.0, given, None, panels)[:, ~tokens]
    aim = torch.linspace(-1, 1, out.numel()).view_as(out)
    found = torch.autograd.grad((out.double() * aim).sum(), weights.values(), allow_unused=True)
    pairs = zip(weights, found, strict=True)
    return {name: grad.double() for name, grad in pairs if grad is not None}


# diffusers' norms in Krea 2 compute in float32 whatever their weights are.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_gradients_of_reading_apart_are_those_of_a_mask_in_float64(model, texts, monkeypatch):
    """With a panel given and every block recomputed."""
    text, panels = apart(model, texts)
    dtype, needed = model.dtype, {n: p.requires_grad for n, p in model.denoiser.named_parameters()}
    try:
        model.recompute = model.blocks
        ours, joint = (gradients(model, text, p, torch.float32) for p in (panels, None))
        model.recompute, model.dtype = 0, torch.float64
        with_masks(model, monkeypatch)
        exact = gradients(model, text, panels, torch.float64)
    finally:
        model.recompute, model.dtype = 0, dtype
        model.denoiser.to(dtype)
        for name, parameter in model.denoiser.named_parameters():
            parameter.requires_grad_(needed[name])
    assert ours.keys() == exact.keys()
    assert len(ours) >= 8
    off = {name: float((ours[name] - exact[name]).norm() / exact[name].norm()) for name in ours}
    assert max(off.values()) < 1e-4, off
    far = {name: float((joint[name] - exact[name]).norm() / exact[name].norm()) for name in ours}
    assert max(far.values()) > 1e-2


@pytest.mark.parametrize("known", [(1,), (0, 3)])
def test_cached_keys_of_given_panels_serve_panels_that_read_apart(model, texts, known):
    owners = token_owners(LAYOUT, model.grid)
    tokens = torch.from_numpy(sum(owners == n for n in known) > 0).flatten()
    text, panels = apart(model, texts)
    cached = Given(tokens, clean=True, isolated=True, cache=[])
    alone = replace(cached, cache=None)
    first, second = (velocity(model, text, panels, cached)[:, ~tokens] for _ in range(2))
    plain = velocity(model, text, panels, alone)[:, ~tokens]
    # A refiner of Z-Image's texts sees no image.
    assert len(cached.cache) == model.blocks - (model.family == "zimage")
    torch.testing.assert_close(first, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, plain, atol=1e-5, rtol=1e-5)


def test_the_unguided_pass_reads_one_text_for_all_panels(klein, monkeypatch):
    texts = [klein.encode_text(words) for words in WORDS[:2]]
    layout = Layout.of_rows([2], *SIZE)
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


# One that Z-Image fills up.
FILLED = Layout.of_rows([2, 2], 64, 96)
HIDDEN = torch.from_numpy(token_owners(FILLED, 16) == 1).flatten()
WAYS = (
    None,
    Given(HIDDEN, clean=True, isolated=True, cache=[]),
    Given(HIDDEN, scale=2.0),
    Given(HIDDEN, references=HIDDEN.int()),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_step_waits_for_the_device(name, request):
    """On a device that has no numbers to read back, steps of sampling and gradients are taken."""
    model = request.getfixturevalue(name)
    there = outline_of(model, torch.float32, "full").model
    word = model.encode_text("a cat")
    one = model.as_one([word])[0]
    several, panels = apart(model, [word] * 4, FILLED)
    unguided = [word] if model.sampling.guided == "two-pass" else None
    noise = torch.randn(1, 24, model.channels, device="meta")

    def velocity(z, sigma, text=one, given=None, panels=None):
        return there.velocity(
            z, z.new_full((1,), sigma), [text], FILLED.size, 3.5, given, unguided, panels
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
