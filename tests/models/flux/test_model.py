"""FLUX.1's parts against diffusers' pipeline code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from iclora.errors import CaptionError, ModelError, SettingsError
from iclora.models.base import Given
from iclora.models.flux.model import FluxModel
from iclora.models.tiny import write_tiny
from tests.conftest import CAPTION, picture


@pytest.fixture(scope="module")
def pipeline(tiny):
    return diffusers.FluxPipeline.from_pretrained(tiny.folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schnell")
    write_tiny(folder, guidance_embeds=False)
    return FluxModel(folder, "schnell", torch.device("cpu"), torch.float32)


def test_text_embeddings_equal_diffusers(tiny, pipeline):
    ours = tiny.encode_text(CAPTION)
    prompt, pooled, _ = pipeline.encode_prompt(CAPTION, max_sequence_length=512)
    torch.testing.assert_close(ours["prompt"], prompt[0])
    torch.testing.assert_close(ours["pooled"], pooled[0])


def test_latents_equal_diffusers_packed_posterior_mode(tiny, pipeline):
    image = picture(96, 64)
    pixels = pipeline.image_processor.preprocess(image)
    with torch.no_grad():
        mode = pipeline.vae.encode(pixels).latent_dist.mode()
    mode = (mode - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    packed = pipeline._pack_latents(mode, 1, 16, 8, 12)
    torch.testing.assert_close(tiny.encode_image(np.asarray(image))[None], packed)


def test_decoding_equals_diffusers(tiny, pipeline):
    tokens = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    latents = pipeline._unpack_latents(tokens[None], 64, 96, 8)
    latents = latents / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    with torch.no_grad():
        image = pipeline.vae.decode(latents).sample
    expected = np.asarray(pipeline.image_processor.postprocess(image)[0])
    assert np.array_equal(tiny.decode(tokens, 96, 64), expected)


def test_velocity_of_a_batch_equals_that_of_its_samples(clean):
    texts = [clean.encode_text("one"), clean.encode_text("two")]
    z = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        both = clean.velocity(z, sigma, texts, (96, 64), 1.0)
        single = [
            clean.velocity(z[i : i + 1], sigma[i : i + 1], texts[i : i + 1], (96, 64), 1.0)
            for i in range(2)
        ]
    torch.testing.assert_close(both, torch.cat(single), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("alone", [False, True])
def test_samples_of_a_batch_may_differ_in_which_tokens_are_given(clean, alone):
    texts = [clean.encode_text("one"), clean.encode_text("two")]
    z = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.3, 0.9])
    tokens = torch.zeros(2, 24, dtype=torch.bool)
    tokens[0, 4:12], tokens[1, 16:] = True, True
    with torch.no_grad():
        both = clean.velocity(z, sigma, texts, (96, 64), 1.0, Given(tokens, True, alone))
        for i in range(2):
            one = clean.velocity(
                z[i : i + 1],
                sigma[i : i + 1],
                texts[i : i + 1],
                (96, 64),
                1.0,
                Given(tokens[i], True, alone),
            )
            torch.testing.assert_close(both[i], one[0], rtol=1e-4, atol=1e-5)


def test_guidance_and_canvas_shape_matter(clean):
    text = [clean.encode_text("one")]
    z = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        base = clean.velocity(z, torch.tensor([0.5]), text, (96, 64), 1.0)
        guided = clean.velocity(z, torch.tensor([0.5]), text, (96, 64), 3.5)
        turned = clean.velocity(z, torch.tensor([0.5]), text, (64, 96), 1.0)
    assert not torch.allclose(base, guided)
    assert not torch.allclose(base, turned)


def test_the_schedule_equals_fluxpipelines_at_each_canvas(tiny, pipeline):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (24, 6144, 9072):
        sigmas = np.linspace(1.0, 1 / 20, 20)
        pipeline.scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(tokens))
        assert tiny.sigmas(20, tokens) == pipeline.scheduler.sigmas.tolist()


def test_schnell_samples_unguided_in_4_steps_without_shift_from_256_tokens(schnell):
    assert (schnell.max_text_tokens, schnell.sampling.steps) == (256, 4)
    assert schnell.sampling.guided == "none"
    assert schnell.sampling.fixed_steps
    assert schnell.sigmas(4, 6144) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    z = torch.randn(1, 24, 64)
    with torch.no_grad():
        text = [schnell.encode_text("one")]
        one, two = (schnell.velocity(z, torch.tensor([0.5]), text, (96, 64), g) for g in (1, 9))
    assert torch.equal(one, two)


def test_a_text_over_the_limit_is_refused_and_never_cut(tiny):
    with pytest.raises(CaptionError, match="the base reads 512"):
        tiny.encode_text("word " * 600)


def test_lora_targets_of_true_flux_are_the_494_of_the_papers_trainer(tiny, monkeypatch):
    with torch.device("meta"):
        full = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    monkeypatch.setitem(tiny.__dict__, "denoiser", full)
    everything = tiny.lora_targets("all")
    assert len(everything) == 494
    no_modulation = tiny.lora_targets("attention+mlp")
    assert len(no_modulation) == 494 - 2 * 19 - 38
    attention = tiny.lora_targets("attention")
    assert len(attention) == 19 * 8 + 38 * 3
    assert set(attention) < set(no_modulation) < set(everything)
    with pytest.raises(SettingsError, match="not a choice"):
        tiny.lora_targets("everything")


def test_released_parts_load_again_and_compute_the_same(tiny):
    before = tiny.encode_text("one")
    tiny.release("text", "vae")
    assert "_t5" not in tiny.__dict__
    assert torch.equal(tiny.encode_text("one")["prompt"], before["prompt"])


@pytest.fixture
def copy(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "model")
    return tmp_path / "model"


def open_copy(folder):
    return FluxModel(folder, "copy", torch.device("cpu"), torch.float32)


def test_a_fingerprint_changes_with_the_parts_own_weights(tiny, copy):
    before = open_copy(copy)
    assert before.fingerprint("vae") == tiny.fingerprint("vae")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert open_copy(copy).fingerprint("vae") != tiny.fingerprint("vae")
    assert open_copy(copy).fingerprint("text") == tiny.fingerprint("text")


def test_a_fingerprint_is_of_what_is_read_and_not_of_what_lies_beside_it(tiny, copy):
    for name in (".DS_Store", "config.json~", "model.fp16.safetensors", "pytorch_model.bin"):
        (copy / "text_encoder" / name).write_bytes(b"x")
    (copy / "vae" / ".cache").mkdir()
    (copy / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"x")
    assert open_copy(copy).identity() == tiny.identity()


def test_shards_that_an_index_names_are_part_of_the_fingerprint(copy):
    part = copy / "transformer"
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (part / "diffusion_pytorch_model.safetensors").rename(part / names[0])
    (part / names[1]).write_bytes(b"one")
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    before = open_copy(copy).fingerprint("denoiser")
    (part / names[1]).write_bytes(b"two")
    assert open_copy(copy).fingerprint("denoiser") != before
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        open_copy(copy).fingerprint("denoiser")


def test_a_fingerprint_is_of_the_weights_in_memory_until_they_are_released(copy):
    model = open_copy(copy)
    model.encode_image(np.zeros((16, 16, 3), np.uint8))
    before = model.fingerprint("vae")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert model.fingerprint("vae") == before
    model.release("vae")
    assert model.fingerprint("vae") != before


def test_files_are_hashed_again_only_if_they_change(copy, monkeypatch):
    model, opened = open_copy(copy), []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: opened.append(self) or real(self, *a, **k)
    )
    first = model.identity()
    assert opened
    opened.clear()
    assert model.identity() == first
    assert not opened


def test_releasing_empties_the_cache_of_the_device_that_holds_it(copy, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    for device in ("cpu", "mps", "cuda"):
        model = FluxModel(copy, "copy", torch.device(device), torch.float32)
        model.release("text")
        assert emptied.count(device) == 0, "nothing was loaded yet"
        # In place of weights: no such device is here to load them to.
        model.__dict__[model.held["text"][0]] = object()
        model.release("text")
    assert emptied == ["mps", "cuda"]


def test_texts_are_moved_to_the_device_once_for_all_steps(clean, monkeypatch):
    texts = [clean.encode_text("one"), clean.encode_text("two")]
    z, sigma = torch.randn(2, 24, 64), torch.tensor([0.5, 0.5])
    stacked = []
    real = torch.stack
    monkeypatch.setattr(
        torch, "stack", lambda t, *a, **k: stacked.append(list(t)) or real(list(t), *a, **k)
    )

    def moved():
        stacked.clear()
        with torch.no_grad():
            clean.velocity(z, sigma, list(texts), (96, 64), 1.0)
        return sum(any(t is text["prompt"] for text in texts) for s in stacked for t in s)

    assert moved() == 2
    assert moved() == 0
    texts.reverse()
    assert moved() == 2


def test_a_text_for_an_unguided_pass_is_refused(clean):
    text = [clean.encode_text("one")]
    with pytest.raises(ModelError, match="not guided by two passes") as caught:
        clean.velocity(torch.randn(1, 24, 64), torch.tensor([0.5]), text, (96, 64), 1.0, None, text)
    assert caught.value.setting == "negative"


def test_a_text_says_how_many_tokens_it_takes(tiny, schnell):
    assert tiny.text_tokens(tiny.encode_text("one")) == 512
    assert schnell.text_tokens(schnell.encode_text("one")) == 256


def test_how_far_a_text_is_padded_is_part_of_the_text_fingerprint(copy, tiny):
    config = json.loads((copy / "transformer" / "config.json").read_text())
    (copy / "transformer" / "config.json").write_text(
        json.dumps({**config, "guidance_embeds": False})
    )
    assert open_copy(copy).fingerprint("text") != tiny.fingerprint("text")
    assert open_copy(copy).fingerprint("vae") == tiny.fingerprint("vae")


def test_settings_that_are_no_flux_s_are_named(copy):
    config = json.loads((copy / "vae" / "config.json").read_text())
    del config["shift_factor"]
    (copy / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="shift_factor"):
        open_copy(copy)


def test_a_missing_encoder_is_named_before_anything_is_encoded(copy):
    shutil.rmtree(copy / "text_encoder")
    with pytest.raises(ModelError, match="lacks a readable text part"):
        open_copy(copy).identity()


def test_weights_in_a_pickle_file_are_never_opened(copy):
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"vae of copy.*\n.*never opened"):
        open_copy(copy).encode_image(np.zeros((16, 16, 3), np.uint8))


def test_a_missing_part_is_named(copy):
    shutil.rmtree(copy / "transformer")
    with pytest.raises(ModelError, match=r"transformer/config\.json"):
        open_copy(copy)


def test_damaged_weights_are_named(copy):
    weights = copy / "text_encoder_2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="text_encoder_2 of copy"):
        open_copy(copy).encode_text("one")


def test_damaged_settings_are_named(copy):
    (copy / "text_encoder" / "config.json").write_text('{"hidden_size": "wide"}')
    with pytest.raises(ModelError, match="text_encoder of copy"):
        open_copy(copy).encode_text("one")


def test_a_fill_variant_is_refused_with_its_reason(copy):
    config = json.loads((copy / "transformer" / "config.json").read_text())
    (copy / "transformer" / "config.json").write_text(json.dumps({**config, "in_channels": 384}))
    with pytest.raises(ModelError, match="Fill"):
        open_copy(copy)


def test_bf16_computes_close_to_float32(tiny, clean):
    half = FluxModel(tiny.folder, "tiny", torch.device("cpu"), torch.bfloat16)
    z = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        args = (torch.tensor([0.5]), [clean.encode_text("one")], (96, 64), 3.5)
        exact, rough = clean.velocity(z, *args), half.velocity(z, *args)
    assert rough.dtype == torch.float32
    # bf16 keeps 8 bits: the embedding of guidance 3.5 * 1000 alone moves from 3500 to 3504.
    assert float((rough - exact).norm() / exact.norm()) < 0.05
