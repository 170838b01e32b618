"""Qwen-Image's parts against diffusers' pipeline."""

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
from iclora.models.levels import Schedule
from iclora.models.qwen_image import model as module
from iclora.models.qwen_image.model import QwenImageModel
from iclora.models.single_file import whole_of
from iclora.sets.layout import Layout
from tests.conftest import CAPTION

SIZE = (96, 64)
TOKENS = 24


def noise(seed=0, samples=1, tokens=TOKENS):
    return torch.randn(samples, tokens, 64, generator=torch.Generator().manual_seed(seed))


def opened(folder, dtype=torch.float32):
    return QwenImageModel(folder, "copy", torch.device("cpu"), dtype)


@pytest.fixture
def copy(qwen, tmp_path):
    shutil.copytree(qwen.folder, tmp_path / "model")
    return tmp_path / "model"


def change(folder, part, **settings):
    path = folder / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@torch.no_grad()
def theirs(pipeline, z, sigma, texts, size):
    """What the pipeline's transformer makes of tokens, its texts padded to one length."""
    prompt, mask = pipeline.encode_prompt(texts)
    shapes = [[(1, size[1] // 16, size[0] // 16)]] * len(z)
    return pipeline.transformer(z, prompt, mask, sigma, shapes, return_dict=False)[0]


# -- text ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("text", [CAPTION, " ", "[A] \n\n(b) 猫"])
def test_text_embeddings_are_the_pipelines_to_the_bit(qwen, pipeline, text):
    ours = qwen.encode_text(text)["prompt"]
    other, mask = pipeline.encode_prompt(text)
    assert mask is None
    assert torch.equal(ours, other[0])
    assert qwen.count_tokens(text) == qwen.text_tokens({"prompt": ours}) == len(ours)


def test_an_empty_text_is_read_as_one_blank(qwen):
    assert torch.equal(qwen.encode_text("")["prompt"], qwen.encode_text(" ")["prompt"])


def test_texts_have_1024_tokens_where_the_pipeline_cuts_at_512_unless_told(qwen, pipeline):
    each = qwen.count_tokens("a a ") - qwen.count_tokens("a ")
    most = (1024 - qwen.count_tokens("a ")) // each + 1
    long = "a " * most
    assert 1020 < qwen.count_tokens(long) <= 1024
    with torch.no_grad():
        assert torch.equal(qwen.encode_text(long)["prompt"], pipeline.encode_prompt(long)[0][0])
    with pytest.raises(CaptionError, match="the base reads 1024"):
        qwen.encode_text(long + "a ")


def test_an_encoder_without_a_head_and_settings_of_before_are_read_the_same(qwen, copy):
    """As transformers has saved them: flat settings; layers under two names."""
    from safetensors.torch import load_file, save_file

    path = copy / "text_encoder/model.safetensors"
    weights = load_file(path)
    assert {"model.embed_tokens.weight", "visual.patch_embed.proj.weight"} < weights.keys()
    found = {name.replace("model.", "model.language_model."): w for name, w in weights.items()}
    save_file(found, path, {"format": "pt"})
    settings = json.loads((copy / "text_encoder/config.json").read_text())
    own = settings.pop("text_config")
    settings |= {key: value for key, value in own.items() if key != "model_type"}
    (copy / "text_encoder/config.json").write_text(json.dumps(settings))
    ours = opened(copy).encode_text("a cat")["prompt"]
    assert torch.equal(ours, qwen.encode_text("a cat")["prompt"])


# -- latents and schedule -----------------------------------------------------------------------


@torch.no_grad()
def test_the_schedule_is_the_pipelines_and_ends_at_a_fiftieth(qwen, pipeline):
    """Stretched so behind the shift; training's noise levels are shifted alone."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

    settings = pipeline.scheduler.config
    for tokens in (TOKENS, 4096, 8192):
        keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(tokens, *(settings[key] for key in keys))
        pipeline.scheduler.set_timesteps(sigmas=np.linspace(1, 0.2, 5), mu=mu)
        found = qwen.sigmas(5, tokens)
        assert found == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)
        assert found[-2:] == pytest.approx([0.02, 0], abs=1e-6)
        shifted = np.exp(mu) / (np.exp(mu) + 1 / 0.3 - 1)
        assert float(qwen.shift(torch.tensor([0.3]), tokens)) == pytest.approx(shifted, abs=1e-6)


# -- flow ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [SIZE, (48, 112)])
def test_a_velocity_is_diffusers_and_guidance_keeps_each_tokens_length(qwen, pipeline, size):
    """Of even and odd numbers of rows and columns, which count from the middle."""
    z, sigma = noise(5, tokens=size[0] * size[1] // 256), torch.tensor([0.4])
    one, free = qwen.encode_text(CAPTION), qwen.encode_text("")
    c, u = (theirs(pipeline, z, sigma, text, size) for text in (CAPTION, " "))
    alone = qwen.velocity(z, sigma, [one], size, 1.0, None, [free])
    torch.testing.assert_close(alone, c, atol=1e-5, rtol=1e-5)
    both = u + 4 * (c - u)
    both = both * c.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True)
    step = Schedule([0.9, 0.4, 0.0]).at(0.4)
    found = qwen.velocity(z, sigma, [one], size, 4.0, None, [free], step=step)
    torch.testing.assert_close(found, both, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_a_text_alone_is_what_the_pipeline_computes_of_it_padded_and_masked(qwen, pipeline):
    z, sigma, texts = noise(4, 2), torch.tensor([0.2, 0.9]), ["a cat", CAPTION]
    other = theirs(pipeline, z, sigma, texts, SIZE)
    for i, text in enumerate(texts):
        part = slice(i, i + 1)
        ours = qwen.velocity(z[part], sigma[part], [qwen.encode_text(text)], SIZE, 1.0)
        torch.testing.assert_close(ours[0], other[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_kept_keys_of_clean_panels_alone_change_nothing_in_either_pass(qwen):
    texts, free = ([qwen.encode_text(text)] for text in (CAPTION, ""))
    tokens = torch.zeros(TOKENS, dtype=torch.bool)
    tokens[3:11] = True
    kept = Given(tokens, clean=True, isolated=True, cache=[])
    for sigma in (0.9, 0.4):
        args = (noise(1), torch.tensor([sigma]), texts, SIZE, 5.0)
        plain = qwen.velocity(*args, replace(kept, cache=None), free)
        saved = qwen.velocity(*args, kept, free)
        torch.testing.assert_close(saved[:, ~tokens], plain[:, ~tokens], atol=1e-5, rtol=1e-5)
    assert torch.isfinite(saved).all(), "tokens that were left out have no length"
    assert len(kept.cache) == 2


@torch.no_grad()
def test_clean_tokens_are_diffusers_blocks_with_a_level_for_each_token(qwen, pipeline):
    """As the Edit models modulate their second picture, here on the canvas's own places."""
    net, z, sigma = pipeline.transformer, noise(3), torch.tensor([0.7])
    tokens = torch.zeros(TOKENS, dtype=torch.bool)
    tokens[12:] = True
    ours = qwen.velocity(z, sigma, [qwen.encode_text("a cat")], SIZE, 1.0, Given(tokens, True))
    img, txt = net.img_in(z), net.txt_in(net.txt_norm(pipeline.encode_prompt("a cat")[0]))
    temb = net.time_text_embed(torch.tensor([0.7, 0.0]), img)
    rotary = net.pos_embed([(1, 4, 6)], device="cpu", max_txt_seq_len=txt.shape[1])
    for block in net.transformer_blocks:
        block.zero_cond_t = True
        try:
            txt, img = block(img, txt, None, temb, rotary, None, tokens[None].int())
        finally:
            block.zero_cond_t = False
    out = net.proj_out(net.norm_out(img, temb[:1]))
    torch.testing.assert_close(ours[:, ~tokens], out[:, ~tokens], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_samples_of_a_batch_may_differ_in_which_tokens_are_given(qwen):
    texts = [qwen.encode_text("a cat")] * 2
    texts[1] = {"prompt": texts[1]["prompt"].flip(0)}
    z, sigma = noise(1, 2), torch.tensor([0.3, 0.9])
    tokens = torch.zeros(2, TOKENS, dtype=torch.bool)
    tokens[0, 4:12], tokens[1, 16:] = True, True
    both = qwen.velocity(z, sigma, texts, SIZE, 1.0, Given(tokens, True, True))
    for i in range(2):
        part, given = slice(i, i + 1), Given(tokens[i], True, True)
        one = qwen.velocity(z[part], sigma[part], texts[part], SIZE, 1.0, given)
        torch.testing.assert_close(both[i], one[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bf16_computes_close_to_float32(qwen):
    half = opened(qwen.folder, torch.bfloat16)
    args = (torch.tensor([0.5]), [qwen.encode_text("one")], SIZE, 1.0)
    exact, rough = qwen.velocity(noise(), *args), half.velocity(noise(), *args)
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 0.05


# -- texts apart --------------------------------------------------------------------------------


def masked(bias):
    """Attention with a mask over (S, S)."""

    def attend(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).flatten(2)

    return attend


@torch.no_grad()
def test_panels_that_read_texts_apart_are_the_pass_with_a_mask(qwen, monkeypatch):
    """Ragged texts, and a panel that is boosted; one panel alone is read as ever."""
    layout = Layout.of_rows([1, 1], *SIZE)
    texts = [qwen.encode_text(text) for text in (CAPTION, "a cat")]
    text, lengths = qwen.as_one(texts)
    panels = Panels.of(layout, lengths, qwen.grid)
    tokens = panels.owner == 1
    sigma, boosted = torch.tensor([0.5]), Given(tokens, scale=3.0)
    args = (noise(), sigma, [text], SIZE, 1.0)
    ours = qwen.velocity(*args, boosted, None, panels)
    panel = torch.cat([torch.zeros(lengths[0]), torch.ones(lengths[1]), panels.owner])
    image = torch.arange(len(panel)) >= sum(lengths)
    allowed = (panel[:, None] == panel) | (image[:, None] & image)
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    asks, tells = image & (panel == 0), image & (panel == 1)
    bias[asks[:, None] & tells] += torch.tensor(3.0).log()
    monkeypatch.setattr(module, "attention_to", lambda *_: masked(bias))
    other = qwen.velocity(*args, boosted, None, panels)
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-4)
    monkeypatch.undo()
    assert (ours - qwen.velocity(*args, None, None, panels)).abs().max() > 1e-3
    one = Panels(torch.zeros(TOKENS, dtype=torch.long), lengths[:1])
    joint, apart = (
        qwen.velocity(noise(), sigma, texts[:1], SIZE, 1.0, None, None, p) for p in (None, one)
    )
    torch.testing.assert_close(apart, joint, atol=1e-5, rtol=1e-5)


# -- what is no Qwen-Image ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "settings", "says"),
    [
        ("transformer/config.json", {"in_channels": 16}, "they are not of one Qwen-Image"),
        ("transformer/config.json", {"joint_attention_dim": 64}, "texts 64 wide, and its other"),
        ("transformer/config.json", {"zero_cond_t": True}, "has zero_cond_t, as one that edits"),
        ("vae/config.json", {"latents_std": [1.0]}, "are not those of a Qwen-Image"),
        ("scheduler/scheduler_config.json", {"shift_terminal": 1.0}, "for shift_terminal, where"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_weights_are_read(copy, part, settings, says):
    change(copy, part, **settings)
    with pytest.raises(ModelError, match=says):
        opened(copy).sigmas(2, TOKENS)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("QwenImageEditPlusPipeline", "changes a picture that it is shown"),
        ("QwenImageLayeredPipeline", "paints layers of one picture"),
        ("QwenImage21Pipeline", "not for commercial use"),
    ],
)
def test_its_relatives_are_refused_by_name(copy, kind, says):
    change(copy, "model_index.json", _class_name=kind)
    with pytest.raises(ModelError, match=f"is a {kind}: .*{says}"):
        load_model(str(copy), device="cpu")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("qwen_image_bf16", "Qwen/Qwen-Image"),
        ("qwen_image_2512_bf16", "Qwen/Qwen-Image-2512"),
        ("qwen_image_edit_2511_bf16", None),
        ("qwen_image_layered_bf16", None),
    ],
)
def test_a_lone_checkpoint_is_told_from_others_by_its_tensors(tmp_path, name, base):
    header = {
        "transformer_blocks.0.img_mod.1.weight": {
            "dtype": "BF16",
            "shape": [18432, 3072],
            "data_offsets": [0, 0],
        }
    }
    data = json.dumps(header).encode()
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    assert whole_of(path) == base
    if base:
        with pytest.raises(ModelError, match="is a file; a base is a folder") as error:
            load_model(str(path), device="cpu")
        assert f"`hf download {base}`" in error.value.advice
