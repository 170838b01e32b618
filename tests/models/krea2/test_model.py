"""Krea 2's parts against diffusers' pipeline."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from iclora.errors import CaptionError, ModelError
from iclora.models import load_model
from iclora.models.base import Given, Panels
from iclora.models.krea2 import model as module
from iclora.models.krea2.model import Krea2Model
from iclora.models.latents import unfold
from iclora.models.levels import Schedule
from iclora.models.qwen_vl import BEFORE
from iclora.sets.layout import Layout
from tests.conftest import CAPTION, picture

SIZE = (96, 64)
TOKENS = 24


def noise(seed=0, samples=1, tokens=TOKENS):
    return torch.randn(samples, tokens, 64, generator=torch.Generator().manual_seed(seed))


def opened(folder, dtype=torch.float32):
    return Krea2Model(folder, "copy", torch.device("cpu"), dtype)


@pytest.fixture
def copy(krea, tmp_path):
    shutil.copytree(krea.folder, tmp_path / "model")
    return tmp_path / "model"


def change(folder, part, **settings):
    path = folder / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@torch.no_grad()
def theirs(pipeline, z, sigma, text, size):
    """What the pipeline's transformer makes of tokens, its text padded and masked."""
    prompt, mask = pipeline.encode_prompt(text)
    ids = pipeline.prepare_position_ids(prompt.shape[1], size[1] // 16, size[0] // 16, "cpu")
    return pipeline.transformer(z, prompt, sigma, ids, mask, return_dict=False)[0]


# -- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [CAPTION, ""])
def test_text_embeddings_are_the_pipelines_to_the_bit_without_padding(krea, pipeline, text):
    """The pipeline pads between the text and the words that end it."""
    ours = krea.encode_text(text)["prompt"]
    with torch.no_grad():
        other, mask = pipeline.encode_prompt(text)
    assert torch.equal(ours, other[0][mask[0]])
    assert krea.count_tokens(text) == len(ours) == int(mask.sum())


def test_a_text_over_the_limit_is_refused_and_never_cut(krea):
    each = krea.count_tokens("a a ") - krea.count_tokens("a ")
    most = (512 - krea.count_tokens("a ")) // each + 1
    assert 510 < krea.count_tokens("a " * most) <= 512
    with pytest.raises(CaptionError, match="the base reads 512"):
        krea.encode_text("a " * (most + 1))


def test_the_encoder_ends_at_the_layer_that_is_read_and_sees_no_pictures(krea):
    krea.encode_text("one")
    assert len(krea._encoder.layers) == 3
    assert krea.config("text_encoder")["text_config"]["num_hidden_layers"] == 4
    names = (krea.folder / "text_encoder").glob("*.safetensors")
    assert any(b"visual.blocks.0" in path.read_bytes() for path in names)


def test_a_tokenizer_that_cuts_the_sentence_before_a_text_otherwise_is_refused(klein, copy):
    """The pipeline leaves out 34 tokens, whatever they are; klein's has other merges."""
    assert len(klein._tokenizer(BEFORE).input_ids) > 34
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(klein.folder / "tokenizer", copy / "tokenizer")
    with pytest.raises(ModelError, match=r"where Krea 2 leaves out 34 and reads 5"):
        opened(copy).count_tokens("one")


# -- latents and schedule -----------------------------------------------------------------------


@torch.no_grad()
def test_latents_are_the_pipelines_and_decoding_undoes_them(krea, pipeline):
    image = picture(*SIZE)
    vae = pipeline.vae
    mean, deviation = (
        torch.tensor(vae.config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std")
    )
    pixels = pipeline.image_processor.preprocess(image)[:, :, None]
    latents = vae.encode(pixels).latent_dist.mode()[:, :, 0]
    found = krea.encode_image(np.asarray(image))
    torch.testing.assert_close(unfold(found, 6), (latents - mean) / deviation)
    back = vae.decode((unfold(found, 6) * deviation + mean)[:, :, None]).sample[:, :, 0]
    expected = np.asarray(pipeline.image_processor.postprocess(back)[0])
    assert np.array_equal(krea.decode(found, *SIZE), expected)


def test_the_schedule_is_the_pipelines_by_the_canvas_and_turbos_on_any(krea, turbo, pipeline):
    for model, distilled, tokens in ((krea, False, 6400), (turbo, True, TOKENS)):
        mu = 1.15 if distilled else 0.5 + 0.65 * (tokens - 256) / (6400 - 256)
        pipeline.scheduler.set_timesteps(sigmas=np.linspace(1, 0.2, 5), mu=mu)
        expected = pipeline.scheduler.sigmas.tolist()
        assert model.sigmas(5, tokens) == pytest.approx(expected, abs=1e-6)
        found = model.shift(torch.linspace(1.0, 0.2, 5), tokens)
        assert found.tolist() == pytest.approx(expected[:-1], abs=1e-5)


# -- flow ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [SIZE, (64, 128)])
def test_a_velocity_is_diffusers_and_guidance_is_u_plus_w_times_c_minus_u(krea, pipeline, size):
    """The pipeline's c + g (c - u), so its 4.5 is 5.5 here; texts of unlike lengths."""
    z, sigma = noise(5, tokens=size[0] * size[1] // 256), torch.tensor([0.4])
    one, free = krea.encode_text(CAPTION), krea.encode_text("")
    c, u = (theirs(pipeline, z, sigma, text, size) for text in (CAPTION, ""))
    alone = krea.velocity(z, sigma, [one], size, 1.0, None, [free])
    torch.testing.assert_close(alone, c, atol=1e-5, rtol=1e-5)
    step = Schedule([0.9, 0.4, 0.0]).at(0.4)
    both = krea.velocity(z, sigma, [one], size, 5.5, None, [free], step=step)
    torch.testing.assert_close(both, c + 4.5 * (c - u), atol=1e-4, rtol=1e-5)


def test_turbo_makes_8_unguided_steps_and_is_known_by_its_index(turbo, krea):
    assert (turbo.sampling.steps, turbo.sampling.guided) == (8, "none")
    assert turbo.sampling.fixed_steps
    assert turbo.takes_adapters_of >= {"Krea-2-Raw"}
    assert (krea.sampling.steps, krea.sampling.guidance) == (28, 5.5)


@torch.no_grad()
def test_kept_keys_of_clean_panels_alone_change_nothing_in_either_pass(krea):
    """And they are kept for each head that has keys, not for each that asks."""
    texts, free = ([krea.encode_text(text)] for text in (CAPTION, ""))
    tokens = torch.zeros(TOKENS, dtype=torch.bool)
    tokens[3:11] = True
    kept = Given(tokens, clean=True, isolated=True, cache=[])
    for sigma in (0.9, 0.4):
        args = (noise(1), torch.tensor([sigma]), texts, SIZE, 5.0)
        plain = krea.velocity(*args, replace(kept, cache=None), free)
        saved = krea.velocity(*args, kept, free)
        torch.testing.assert_close(saved[:, ~tokens], plain[:, ~tokens], atol=1e-5, rtol=1e-5)
    assert len(kept.cache) == 2
    assert kept.cache[0][0].shape == (1, 2, 8, 32)


@torch.no_grad()
def test_samples_of_a_batch_may_differ_in_which_tokens_are_given(krea):
    texts = [krea.encode_text("a cat"), krea.encode_text("a cat")]
    texts[1] = {"prompt": texts[1]["prompt"].flip(0)}
    z, sigma = noise(1, 2), torch.tensor([0.3, 0.9])
    tokens = torch.zeros(2, TOKENS, dtype=torch.bool)
    tokens[0, 4:12], tokens[1, 16:] = True, True
    both = krea.velocity(z, sigma, texts, SIZE, 1.0, Given(tokens, True, True))
    for i in range(2):
        part, given = slice(i, i + 1), Given(tokens[i], True, True)
        one = krea.velocity(z[part], sigma[part], texts[part], SIZE, 1.0, given)
        torch.testing.assert_close(both[i], one[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_in_bf16_it_is_close_to_float32_and_norms_stay_in_float32(krea):
    half = opened(krea.folder, torch.bfloat16)
    args = (torch.tensor([0.5]), [krea.encode_text("one")], SIZE, 1.0)
    exact, rough = krea.velocity(noise(), *args), half.velocity(noise(), *args)
    block = half.denoiser.transformer_blocks[0]
    assert (block.norm1.weight.dtype, block.ff.up.weight.dtype) == (torch.float32, torch.bfloat16)
    assert float((rough - exact).norm() / exact.norm()) < 0.05


# -- texts apart --------------------------------------------------------------------------------


def masked(bias):
    """Attention with a mask over (S, S)."""

    def attend(q, k, v):
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).flatten(2)

    return attend


@torch.no_grad()
def test_panels_that_read_texts_apart_are_the_pass_with_a_mask(krea, monkeypatch):
    """Ragged texts, each fused by itself, and a panel that is boosted."""
    layout = Layout.of_rows([1, 1], *SIZE)
    texts = [krea.encode_text(text) for text in (CAPTION, "a cat")]
    text, lengths = krea.as_one(texts)
    assert lengths[0] > lengths[1]
    panels = Panels.of(layout, lengths, krea.grid)
    tokens = panels.owner == 1
    sigma, boosted = torch.tensor([0.5]), Given(tokens, scale=3.0)
    args = (noise(), sigma, [text], SIZE, 1.0)
    ours = krea.velocity(*args, boosted, None, panels)
    t = sum(lengths)
    panel = torch.cat([torch.zeros(lengths[0]), torch.ones(lengths[1]), panels.owner])
    image = torch.arange(len(panel)) >= t
    allowed = (panel[:, None] == panel) | (image[:, None] & image)
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    asks, tells = image & (panel == 0), image & (panel == 1)
    bias[asks[:, None] & tells] += torch.tensor(3.0).log()
    monkeypatch.setattr(module, "attention_to", lambda *_, **__: masked(bias))
    other = krea.velocity(*args, boosted, None, panels)
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-4)
    monkeypatch.undo()
    plain = krea.velocity(*args, None, None, panels)
    assert (ours - plain).abs().max() > 1e-3


@torch.no_grad()
def test_a_text_that_is_read_apart_is_fused_by_itself(krea):
    """One panel alone is read as ever; two texts are not one text fused whole."""
    text = krea.encode_text("a cat")
    args = (torch.tensor([0.5]), [text], SIZE, 1.0)
    panels = Panels(torch.zeros(TOKENS, dtype=torch.long), (krea.text_tokens(text),))
    joint = krea.velocity(noise(), *args)
    apart = krea.velocity(noise(), *args, None, None, panels)
    torch.testing.assert_close(apart, joint, atol=1e-5, rtol=1e-5)
    fusion = krea.denoiser.text_fusion
    whole = fusion(krea.join_texts([text, krea.encode_text(CAPTION)])["prompt"][None])
    assert (whole[:, : panels.lengths[0]] - fusion(text["prompt"][None])).abs().max() > 1e-3


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "settings", "says"),
    [
        ("transformer/config.json", {"in_channels": 16}, "they are not of one Krea 2"),
        ("transformer/config.json", {"num_text_layers": 3}, "they are not of one Krea 2"),
        ("model_index.json", {"text_encoder_select_layers": [3, 1]}, "not of one Krea 2"),
        ("model_index.json", {"patch_size": 4}, "not of one Krea 2"),
        ("vae/config.json", {"latents_std": [1.0]}, "are not those of a Krea 2"),
        ("vae/config.json", {"z_dim": None}, "z_dim"),
        ("transformer/config.json", {"num_text_layers": 10**6}, "num_text_layers"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_weights_are_read(copy, part, settings, says):
    change(copy, part, **settings)
    with pytest.raises(ModelError, match=says):
        opened(copy)


def test_an_encoder_of_too_few_layers_or_another_kind_is_refused(copy):
    change(copy, "model_index.json", text_encoder_select_layers=[1, 9])
    with pytest.raises(ModelError, match="has 4 layers, and Krea 2 reads number 9"):
        opened(copy).encode_text("one")
    change(copy, "model_index.json", text_encoder_select_layers=[1, 3])
    own = json.loads((copy / "text_encoder/config.json").read_text())["text_config"]
    change(copy, "text_encoder/config.json", text_config={**own, "num_hidden_layers": 10**6})
    with pytest.raises(ModelError, match="num_hidden_layers"):
        opened(copy).encode_text("one")


def test_it_is_opened_by_the_name_of_its_pipeline(krea):
    assert isinstance(krea, Krea2Model)
    assert load_model(str(krea.folder), device="cpu").family == "krea2"
