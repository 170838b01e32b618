"""Z-Image's parts against diffusers' pipeline."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from iclora.adapter import remove
from iclora.errors import CaptionError, ModelError
from iclora.models import load_model
from iclora.models.base import Given, Panels
from iclora.models.latents import fold, unfold
from iclora.models.levels import Schedule
from iclora.models.zimage import model as module
from iclora.models.zimage.forward import Attends
from iclora.models.zimage.model import ZImageModel
from iclora.models.zimage.outline import ZImageOutline
from iclora.models.zimage.tiny import write_tiny_zimage
from iclora.sets.layout import Layout
from tests.conftest import CAPTION, picture

SIZE = (96, 64)
TOKENS = 24
"""8 less than a multiple of 32."""


def noise(seed=0, samples=1, tokens=TOKENS):
    return torch.randn(samples, tokens, 64, generator=torch.Generator().manual_seed(seed))


def opened(folder, dtype=torch.float32, name="copy"):
    return ZImageModel(folder, name, torch.device("cpu"), dtype)


@pytest.fixture
def copy(zimage, tmp_path):
    shutil.copytree(zimage.folder, tmp_path / "model")
    return tmp_path / "model"


def change(folder, part, **settings):
    path = folder / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@torch.no_grad()
def theirs(pipeline, z, sigmas, texts, size):
    """What the pipeline's transformer makes of tokens, negated as the pipeline does."""
    columns = size[0] // 16
    latents = [unfold(tokens, columns)[0][:, None] for tokens in z]
    prompts = [pipeline.encode_prompt(text)[0][0] for text in texts]
    out = pipeline.transformer(latents, 1 - torch.tensor(sigmas), prompts, return_dict=False)[0]
    return torch.stack([-fold(found.transpose(0, 1)) for found in out])


# -- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [CAPTION, "", "a cat"])
def test_text_embeddings_are_the_pipelines_to_the_bit_filled_up_to_32(zimage, pipeline, text):
    ours = zimage.encode_text(text)
    with torch.no_grad():
        other = pipeline.encode_prompt(text)[0][0]
    length = len(other)
    assert torch.equal(ours["prompt"][:length], other)
    assert not ours["prompt"][length:].any()
    assert ours["real"].tolist() == [1.0] * length + [0.0] * (-length % 32)
    assert zimage.text_tokens(ours) == length + -length % 32
    assert zimage.count_tokens(text) == length


def test_a_text_over_the_limit_is_refused_and_never_cut(zimage):
    each = zimage.count_tokens("a a ") - zimage.count_tokens("a ")
    most = (512 - zimage.count_tokens("a ")) // each + 1
    assert zimage.count_tokens("a " * most) <= 512
    with pytest.raises(CaptionError, match="the base reads 512"):
        zimage.encode_text("a " * (most + 1))


def test_the_encoder_ends_at_the_layer_that_is_read(zimage):
    zimage.encode_text("one")
    assert len(zimage._encoder.layers) == 2
    assert zimage.config("text_encoder")["num_hidden_layers"] == 3


def test_a_tokenizer_without_a_chat_template_is_refused(copy):
    (copy / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template, which says how Z-Image reads"):
        opened(copy).count_tokens("one")


def test_a_chat_template_inside_the_tokenizers_settings_is_read(zimage, copy):
    """As in the folder of Z-Image's authors."""
    path = copy / "tokenizer" / "chat_template.jinja"
    change(copy, "tokenizer/tokenizer_config.json", chat_template=path.read_text())
    path.unlink()
    assert opened(copy).count_tokens(CAPTION) == zimage.count_tokens(CAPTION)


# -- latents and schedule -----------------------------------------------------------------------


def test_latents_are_the_pipelines_and_decoding_undoes_them(zimage, pipeline):
    image = picture(*SIZE)
    config = pipeline.vae.config
    pixels = pipeline.image_processor.preprocess(image)
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode()
        found = zimage.encode_image(np.asarray(image))
        scaled = (latents - config.shift_factor) * config.scaling_factor
        torch.testing.assert_close(unfold(found, 6), scaled)
        back = unfold(found, 6) / config.scaling_factor + config.shift_factor
        back = pipeline.vae.decode(back).sample
    expected = np.asarray(pipeline.image_processor.postprocess(back)[0])
    assert np.array_equal(zimage.decode(found, *SIZE), expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_schedule_is_the_pipelines(zimage, pipeline, monkeypatch, dynamic):
    """A static shift, as both checkpoints have; by the canvas, if a scheduler says so."""
    made = diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0, use_dynamic_shifting=dynamic)
    monkeypatch.setitem(zimage.__dict__, "_scheduler", made)
    other = diffusers.ZImagePipeline(**{**pipeline.components, "scheduler": made})
    other.set_progress_bar_config(disable=True)
    latents = torch.zeros(1, 16, 8, 12)
    told = {"prompt_embeds": [torch.zeros(1, 32)], "guidance_scale": 0, "output_type": "latent"}
    other(width=96, height=64, num_inference_steps=5, latents=latents, **told)
    expected = made.sigmas.tolist()
    assert zimage.sigmas(5, TOKENS) == pytest.approx(expected, abs=1e-6)
    plain = torch.linspace(1.0, 0.2, 5)
    found = zimage.shift(plain, TOKENS)
    assert found.tolist() == pytest.approx(expected[:-1], abs=1e-5)


# -- flow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, (64, 128)])
@pytest.mark.parametrize("length", [31, 32, 33])
def test_a_velocity_is_diffusers_at_any_canvas_and_length_of_text(zimage, pipeline, size, length):
    """With 8 tokens that fill the canvas up, and with none."""
    text = "a " * (length - zimage.count_tokens(""))
    text = next(t for t in (text, text[:-2], text[:-1], f"{text}a") if count(zimage, t, length))
    z = noise(3, tokens=size[0] * size[1] // 256)
    with torch.no_grad():
        ours = zimage.velocity(z, torch.tensor([0.4]), [zimage.encode_text(text)], size, 1.0)
    torch.testing.assert_close(ours, theirs(pipeline, z, [0.4], [text], size), atol=1e-5, rtol=1e-5)


def count(model, text, length):
    return model.count_tokens(text) == length


@torch.no_grad()
def test_unlike_texts_of_one_filled_length_share_a_batch(zimage, pipeline):
    texts = ["a cat", "a dog in a hat"]
    z, sigma = noise(4, 2), torch.tensor([0.2, 0.9])
    ours = zimage.velocity(z, sigma, [zimage.encode_text(t) for t in texts], SIZE, 1.0)
    other = theirs(pipeline, z, sigma.tolist(), texts, SIZE)
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_guidance_is_u_plus_w_times_c_minus_u_where_the_pipeline_adds_one_more(zimage, pipeline):
    """The pipeline's c + g (c - u), so its 4 is 5 here; texts of unlike lengths."""
    z, sigma = noise(5), torch.tensor([0.5])
    one, free = zimage.encode_text(CAPTION), zimage.encode_text("")
    assert len(one["prompt"]) > len(free["prompt"])
    step = Schedule([0.9, 0.5, 0.0]).at(0.5)
    both = zimage.velocity(z, sigma, [one], SIZE, 5.0, None, [free], step=step)
    c, u = (theirs(pipeline, z, [0.5], [text], SIZE) for text in (CAPTION, ""))
    torch.testing.assert_close(both, c + 4 * (c - u), atol=1e-4, rtol=1e-5)
    alone = zimage.velocity(z, sigma, [one], SIZE, 1.0, None, [free])
    torch.testing.assert_close(alone, c, atol=1e-5, rtol=1e-5)


def test_turbo_makes_8_unguided_steps_and_is_known_by_name_or_schedule(turbo, zimage, copy):
    assert (turbo.sampling.steps, turbo.sampling.guided) == (8, "none")
    assert turbo.sampling.fixed_steps
    assert turbo.takes_adapters_of >= {"Z-Image"}
    assert (zimage.sampling.steps, zimage.sampling.guidance) == (50, 5.0)
    change(copy, "scheduler/scheduler_config.json", shift=3.0)
    for name, fixed in (
        ("me/own", True),
        ("Tongyi-MAI/Z-Image", False),
        ("/home/turbo/Z-Image", False),
        ("me/z-de-turbo", False),
    ):
        assert opened(copy, name=name).sampling.fixed_steps == fixed
    change(copy, "scheduler/scheduler_config.json", shift=6.0)
    assert not opened(copy, name="me/own").sampling.fixed_steps
    cached = "/hub/models--Tongyi-MAI--Z-Image-Turbo/snapshots/0a1b"
    assert opened(copy, name=cached).sampling.fixed_steps
    change(copy, "model_index.json", _name_or_path="Tongyi-MAI/Z-Image-Turbo")
    assert opened(copy, name="me/own").sampling.fixed_steps


@torch.no_grad()
def test_kept_keys_of_clean_panels_alone_change_nothing_in_either_pass(zimage):
    """The texts of both passes are of unlike lengths, and the canvas is filled up."""
    texts, free = ([zimage.encode_text(text)] for text in (CAPTION, ""))
    tokens = torch.zeros(TOKENS, dtype=torch.bool)
    tokens[3:11] = True
    kept = Given(tokens, clean=True, isolated=True, cache=[])
    for sigma in (0.9, 0.4):
        args = (noise(1), torch.tensor([sigma]), texts, SIZE, 5.0)
        plain = zimage.velocity(*args, Given(tokens, clean=True, isolated=True), free)
        saved = zimage.velocity(*args, kept, free)
        torch.testing.assert_close(saved[:, ~tokens], plain[:, ~tokens], atol=1e-5, rtol=1e-5)
    assert len(kept.cache) == 3, "a refiner of the image and two joint blocks"


@torch.no_grad()
@pytest.mark.parametrize("alone", [False, True])
def test_samples_of_a_batch_may_differ_in_which_tokens_are_given(zimage, alone):
    texts = [zimage.encode_text("one"), zimage.encode_text("two")]
    z, sigma = noise(1, 2), torch.tensor([0.3, 0.9])
    tokens = torch.zeros(2, TOKENS, dtype=torch.bool)
    tokens[0, 4:12], tokens[1, 16:] = True, True
    both = zimage.velocity(z, sigma, texts, SIZE, 1.0, Given(tokens, True, alone))
    for i in range(2):
        part = slice(i, i + 1)
        one = zimage.velocity(
            z[part], sigma[part], texts[part], SIZE, 1.0, Given(tokens[i], True, alone)
        )
        torch.testing.assert_close(both[i], one[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bf16_computes_close_to_float32(zimage):
    half = opened(zimage.folder, torch.bfloat16)
    args = (torch.tensor([0.5]), [zimage.encode_text("one")], SIZE, 1.0)
    exact, rough = zimage.velocity(noise(), *args), half.velocity(noise(), *args)
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 0.05


def test_a_canvas_with_more_rows_than_the_base_has_places_for_is_refused(zimage):
    with pytest.raises(ModelError, match="16x8208 px is larger than the 8192x8192"):
        zimage._position_ids((16, 8208), 33)


# -- texts apart --------------------------------------------------------------------------------


def masked(bias):
    """Attention with a mask over (S, S)."""

    def attend(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).flatten(2)

    return attend


@torch.no_grad()
def test_panels_that_read_texts_apart_are_the_pass_with_a_mask(zimage, monkeypatch):
    """Ragged texts, a canvas that is filled up, and a panel that is boosted."""
    layout = Layout.of_rows([1, 1], *SIZE)
    texts = [zimage.encode_text(text) for text in (CAPTION, "a cat")]
    text, lengths = zimage.as_one(texts)
    assert lengths[0] > lengths[1]
    panels = Panels.of(layout, lengths, zimage.grid)
    tokens = panels.owner == 1
    sigma, boosted = torch.tensor([0.5]), Given(tokens, scale=3.0)
    ours = zimage.velocity(noise(), sigma, [text], SIZE, 1.0, boosted, None, panels)
    # Texts, then the 8 that fill up (they read no text and nothing of theirs is boosted), image.
    t = sum(lengths)
    panel = torch.cat(
        [torch.zeros(lengths[0]), torch.ones(lengths[1]), torch.full((8,), 2), panels.owner]
    )
    image = torch.arange(len(panel)) >= t
    allowed = (panel[:, None] == panel) | (image[:, None] & image)
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    asks, tells = image & (panel == 0), image & (panel == 1)
    bias[asks[:, None] & tells] += torch.tensor(3.0).log()
    attends = Attends(masked(bias), masked(bias[t:, t:]), masked(bias[:t, :t]))
    monkeypatch.setattr(module, "attends_of", lambda *_: attends)
    other = zimage.velocity(noise(), sigma, [text], SIZE, 1.0, boosted, None, panels)
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-4)
    monkeypatch.undo()
    plain = zimage.velocity(noise(), sigma, [text], SIZE, 1.0, None, None, panels)
    assert (ours - plain).abs().max() > 1e-3


@torch.no_grad()
def test_kept_keys_serve_panels_that_read_texts_of_unlike_lengths(zimage):
    layout = Layout.of_rows([1, 1], *SIZE)
    text, lengths = zimage.as_one([zimage.encode_text(words) for words in ("a cat", CAPTION)])
    panels, free = Panels.of(layout, lengths, zimage.grid), [zimage.encode_text("")]
    tokens = panels.owner == 0
    kept = Given(tokens, clean=True, isolated=True, cache=[])
    args = (noise(2), torch.tensor([0.6]), [text], SIZE, 3.0)
    plain = zimage.velocity(*args, replace(kept, cache=None), free, panels)[:, ~tokens]
    for _ in range(2):
        saved = zimage.velocity(*args, kept, free, panels)[:, ~tokens]
        torch.testing.assert_close(saved, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_text_that_is_read_apart_ends_where_the_image_begins(zimage):
    """So it has the places of an only text; one panel alone is read as ever."""
    text = zimage.encode_text("a cat")
    # What fills a canvas up reads no text then, so this one is not filled up.
    args = (noise(0, 1, 32), torch.tensor([0.5]), [text], (64, 128))
    panels = Panels(torch.zeros(32, dtype=torch.long), (32,))
    joint, apart = zimage.velocity(*args, 1.0), zimage.velocity(*args, 1.0, None, None, panels)
    torch.testing.assert_close(apart, joint, atol=1e-5, rtol=1e-5)


# -- adapters -----------------------------------------------------------------------------------


def test_all_layers_of_true_z_image_are_adapted(zimage, monkeypatch):
    config = json.loads(
        (ZImageOutline.shipped["Tongyi-MAI/Z-Image"] / "transformer/config.json").read_text()
    )
    with torch.device("meta"):
        net = diffusers.ZImageTransformer2DModel(**config)
    remove(zimage)
    monkeypatch.setitem(zimage.__dict__, "denoiser", net)
    everything = zimage.lora_targets("all")
    assert len(everything) == 34 * 7 + 32
    assert len(zimage.lora_targets("attention+mlp")) == 34 * 7
    assert len(zimage.lora_targets("attention")) == 34 * 4


# -- what is no Z-Image -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cap_feat_dim": 64}, "texts 64 wide, and its other parts make 64 and 32"),
        ({"siglip_feat_dim": 32}, "or it reads pictures: it is not a text-to-image Z-Image"),
        ({"all_patch_size": [4]}, "not a text-to-image Z-Image"),
        ({"axes_lens": 5}, "axes_lens, where a list of"),
    ],
)
def test_settings_of_another_model_are_named(copy, settings, says):
    change(copy, "transformer/config.json", **settings)
    with pytest.raises(ModelError, match=says):
        opened(copy)


def test_the_tiny_z_image_opens_by_its_name_and_has_the_same_bytes_every_time(zimage, tmp_path):
    assert isinstance(load_model("tiny-zimage", device="cpu"), ZImageModel)
    assert (zimage.grid, zimage.channels, zimage.family) == (16, 64, "zimage")
    write_tiny_zimage(tmp_path)
    files = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file()}
    assert {p.name for p in files} >= {"chat_template.jinja", "model_index.json"}
    assert all((zimage.folder / name).read_bytes() == data for name, data in files.items())
