"""Toyland in klein's layout: what makes it, against diffusers' own and plain arithmetic."""

from __future__ import annotations

import random

import diffusers
import numpy as np
import pytest
import torch

from iclora.models import load_model
from iclora.toyland.shipped import base_folder
from iclora.toyland.world import draw_canvas as draw
from workshop.toyland.klein import export, network, painter, reader, translate, words
from workshop.toyland.pretrain.canvases import Encoded


@pytest.fixture(scope="module")
def tokenizer():
    return words.make_words(0, captions=300)


@pytest.fixture(scope="module")
def read_by(tokenizer):
    torch.manual_seed(0)
    return reader.Reader(len(tokenizer)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base(tokenizer, read_by, tmp_path_factory):
    """An untrained base as it is written."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("klein") / "base"
    vae = diffusers.AutoencoderKL.from_pretrained(base_folder() / "vae")
    export.write_klein(folder, network.new_painter(), vae, read_by, tokenizer)
    return folder


def test_a_pass_gives_what_diffusers_own_gives():
    torch.manual_seed(0)
    net = network.new_painter()
    for module in net.modules():
        if isinstance(module, torch.nn.RMSNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    z, text, sigma = torch.randn(2, 24, 32), torch.randn(2, 7, 192), torch.tensor([0.3, 0.9])
    places = torch.cartesian_prod(*(torch.arange(edge) for edge in (1, 6, 4, 1))).float()
    text_ids = torch.zeros(7, 4)
    text_ids[:, 3] = torch.arange(7)
    with torch.no_grad():
        ours, seen = network.Painting(net)(z, text, sigma, places)
        theirs = net(z, text, sigma, places, text_ids, None, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [tuple(tokens.shape) for tokens in seen] == [(2, 24, 192)] * 6


def test_the_written_base_is_read_as_klein_with_its_own_budget_and_reads_texts_as_was_trained(
    base, tokenizer, read_by
):
    model = load_model(str(base), device="cpu", dtype="fp32")
    assert model.max_text_tokens == words.TEXT_TOKENS
    ids, mask, _ = reader.read_ids(tokenizer, ["A bear, [TOP] in the snow"])
    expected = read_by(ids, mask)[0]
    found = model.encode_text("A bear, [TOP] in the snow")["prompt"]
    # The base is stored in bf16.
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_latents_are_those_of_toylands_flux(base):
    pixels = draw(random.Random(0), arrangement="single").render()
    mine, flux = (load_model(name, device="cpu", dtype="fp32") for name in (str(base), "toyland"))
    ours, theirs = (model.encode_image(np.asarray(pixels)) for model in (mine, flux))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02
    assert abs(mine.decode(ours, 64, 64).astype(int) - flux.decode(theirs, 64, 64)).mean() < 1


def test_a_fit_finds_the_matrix_that_made_the_targets():
    torch.manual_seed(0)
    matrix = torch.randn(3, 5)
    inputs = [torch.randn(4, 9, 5), torch.randn(2, 9, 5)]
    found = translate.fit(inputs, [x @ matrix.T for x in inputs], 1e-9)
    torch.testing.assert_close(found, matrix, rtol=1e-4, atol=1e-4)


def test_one_modulation_serves_blocks_that_differ_by_a_factor_and_a_constant():
    torch.manual_seed(0)
    levels, width = 12, 6
    wave = 1 + 0.3 * torch.randn(levels, width)
    factor = torch.tensor([0.7, 1.6])[:, None, None]
    scale, moving, gate = factor * wave - 1, factor * wave.flip(0), factor * wave.roll(1, 0)
    one = translate.curves(scale, moving + torch.tensor([0.4, -2.0])[:, None, None], gate)
    for block in range(2):
        for curve, own in ((1 + one[0], 1 + scale), (one[2], gate)):
            ratio = own[block] / curve
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=1e-4)
        ratio = (1 + scale[block])[:1] / (1 + one[0])[:1]
        rest = moving[block] - ratio * one[1]
        torch.testing.assert_close(rest, rest[:1].expand_as(rest), rtol=1e-3, atol=1e-3)


def test_a_fitted_modulation_is_near_its_goal_at_every_level_samplers_ask_for():
    flux = diffusers.FluxTransformer2DModel.from_pretrained(base_folder() / "transformer")
    flux, net, pooled = flux.float(), network.new_painter(), torch.zeros(1, 96)
    blocks = flux.single_transformer_blocks
    with torch.no_grad():
        work = translate._Translation(net, flux, [], pooled, lambda **_: None)
        readers = [[block.attn.to_q.weight for block in blocks]]
        _, (fixed,) = work._modulate(
            net.single_stream_modulation.linear, [block.norm.linear for block in blocks], readers
        )
        linear = net.single_stream_modulation.linear
        found = linear(work._temb(work.grid))
        # Between the levels it was fitted on, too.
        between = linear(work._temb(torch.linspace(0, 1, 1999)))
        told = torch.stack([block.norm.linear(work.theirs).mean(0) for block in blocks])
        shift, scale, gate = told.chunk(3, -1)
        scale, shift, gate = translate.curves(scale, shift, gate)
    scale[:, fixed], shift[:, fixed] = -1.0, 1.0
    goal = torch.cat([shift, scale, gate], -1)
    assert float((found - goal).square().mean().sqrt()) < 0.05
    assert float(between.abs().max()) < 1.5 * float(goal.abs().max())


def test_words_stand_for_words_at_the_same_letters_and_the_end_for_whole_panels(tokenizer):
    canvas = draw(random.Random(3), arrangement="side by side")
    caption = painter.draw_caption(random.Random(4), canvas)
    _, mask, offsets = reader.read_ids(tokenizer, [caption.text])
    # As if FLUX.1 had a token a letter.
    theirs = torch.zeros(1, words.TEXT_TOKENS, 2, dtype=torch.long)
    count = min(len(caption.text), words.TEXT_TOKENS)
    theirs[0, :count, 0], theirs[0, :count, 1] = torch.arange(count), torch.arange(1, count + 1)
    real = (theirs[..., 1] > 0).long()
    front = words.message(tokenizer, "\0").index("\0")
    to = translate.aligned([caption], mask, offsets, front, theirs, real)[0]
    torch.testing.assert_close(to.sum(-1), torch.ones(len(to)))
    length = int(mask.sum())
    for place in range(3, length - words.SUFFIX):
        last = int(offsets[0, place, 1]) - front - 1
        if last < count:
            assert int(to[place].argmax()) == last
    start, end = caption.spans[0]
    first = to[length - words.SUFFIX + reader.ANSWERS.index(1)].nonzero().flatten()
    assert first.tolist() == list(range(start, min(end, count)))


@pytest.mark.machine
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(painter, "_HELD", 2)
    monkeypatch.setattr(painter, "SHARES", {"single": 1.0})
    canvases = [draw(random.Random(i), arrangement="single") for i in range(8)]
    torch.manual_seed(0)
    data = {"single": Encoded(canvases, torch.randn(8, 64, 32).bfloat16())}
    course = painter.Course(steps=2, shown_steps=0, tokens=400)

    def run(name, *untils):
        (tmp_path / name).mkdir()
        for until in untils:
            net = painter.train_painter(
                course,
                tmp_path / name,
                lambda **_: None,
                lambda texts: torch.zeros(len(texts), words.TEXT_TOKENS, 192),
                None,
                data,
                until=until,
            )
        return net.state_dict()

    whole, stopped = run("whole", None), run("stopped", 1, None)
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
