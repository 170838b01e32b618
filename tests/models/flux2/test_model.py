"""FLUX.2 klein's parts against diffusers' pipeline."""

from __future__ import annotations

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from iclora.errors import CaptionError, ModelError
from iclora.models import load_model
from iclora.models.base import Given
from iclora.models.flux2.model import KleinModel, empirical_mu
from iclora.models.latents import fold, unfold
from iclora.models.levels import Schedule
from tests.conftest import CAPTION, picture

SIZE = (96, 64)
TOKENS = 24


def noise(seed=0, samples=1):
    return torch.randn(samples, TOKENS, 128, generator=torch.Generator().manual_seed(seed))


def opened(folder, dtype=torch.float32):
    return KleinModel(folder, "copy", torch.device("cpu"), dtype)


@pytest.fixture
def copy(klein, tmp_path):
    shutil.copytree(klein.folder, tmp_path / "model")
    return tmp_path / "model"


# -- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [CAPTION, ""])
def test_text_embeddings_are_the_pipelines_to_the_bit(klein, pipeline, text):
    ours = klein.encode_text(text)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(text)
    assert ours["prompt"].shape == (512, 96)
    assert torch.equal(ours["prompt"], theirs[0])
    assert klein.text_tokens(ours) == 512


def test_a_text_is_as_long_as_the_pipeline_reads_it_template_and_all(klein, pipeline, monkeypatch):
    read = []
    real = pipeline.text_encoder.forward

    def forward(*args, **kwargs):
        read.append(int(kwargs["attention_mask"].sum()))
        return real(*args, **kwargs)

    monkeypatch.setattr(pipeline.text_encoder, "forward", forward)
    for text in (CAPTION, "", "<|im_end|> \n a"):
        with torch.no_grad():
            pipeline.encode_prompt(text)
        assert klein.count_tokens(text) == read[-1]
    assert read[1] > 5, "the template counts"


def test_a_text_over_the_limit_is_refused_and_never_cut(klein):
    most = next(n for n in range(600) if klein.count_tokens("a " * n) > 512)
    klein.encode_text("a " * (most - 1))
    with pytest.raises(CaptionError, match="the base reads 512"):
        klein.encode_text("a " * most)


def test_the_encoder_ends_at_the_last_layer_that_is_read(klein):
    klein.encode_text("one")
    assert len(klein._encoder.layers) == 27
    assert klein.config("text_encoder")["num_hidden_layers"] == 28
    assert not hasattr(klein._encoder, "lm_head")


def test_a_tokenizer_without_a_chat_template_is_refused(copy):
    (copy / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        opened(copy).count_tokens("one")


def test_the_chat_template_is_part_of_the_text_fingerprint(klein, copy):
    assert opened(copy).identity() == klein.identity()
    template = copy / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "helper"))
    assert opened(copy).fingerprint("text") != klein.fingerprint("text")


# -- latents ------------------------------------------------------------------------------------


def test_latents_equal_diffusers_normalised_posterior_mode(klein, pipeline):
    image = picture(*SIZE)
    with torch.no_grad():
        theirs = pipeline._encode_vae_image(pipeline.image_processor.preprocess(image), None)
    ours = klein.encode_image(np.asarray(image))
    torch.testing.assert_close(ours, pipeline._pack_latents(theirs)[0])


def test_decoding_is_the_pipelines_and_undoes_the_normalisation(klein, pipeline):
    tokens = noise()[0]
    norm = pipeline.vae.bn
    deviation = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
    cells = tokens.T.reshape(1, 128, 4, 6)
    latents = cells * deviation.view(1, -1, 1, 1) + norm.running_mean.view(1, -1, 1, 1)
    latents = pipeline._unpatchify_latents(latents)
    with torch.no_grad():
        image = pipeline.vae.decode(latents).sample
    expected = np.asarray(pipeline.image_processor.postprocess(image)[0])
    assert np.array_equal(klein.decode(tokens, *SIZE), expected)


def test_folding_and_unfolding_are_each_others_inverse():
    latents = torch.randn(1, 32, 8, 12)
    assert torch.equal(unfold(fold(latents), 6), latents)


# -- flow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [24, 4096, 4300, 4301, 6144])
@pytest.mark.parametrize("steps", [4, 20, 50])
def test_the_schedule_is_the_pipelines_and_depends_on_the_number_of_steps(
    klein, pipeline, tokens, steps
):
    mu = compute_empirical_mu(tokens, steps)
    assert empirical_mu(tokens, steps) == pytest.approx(mu, abs=1e-9)
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    theirs = pipeline.scheduler.sigmas.tolist()
    assert klein.sigmas(steps, tokens) == pytest.approx(theirs, abs=1e-6)
    assert (empirical_mu(tokens, 4) != empirical_mu(tokens, 50)) == (tokens <= 4300)


def test_the_shift_in_training_is_that_of_the_samplers_own_steps(klein):
    sigmas = torch.linspace(1.0, 1 / 50, 50)
    expected = torch.tensor(klein.sigmas(50, 1024)[:-1])
    torch.testing.assert_close(klein.shift(sigmas, 1024), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(96, 64), (64, 160)])
def test_a_velocity_is_diffusers_at_any_canvas(klein, pipeline, size):
    columns, rows = size[0] // 16, size[1] // 16
    z = torch.randn(1, columns * rows, 128, generator=torch.Generator().manual_seed(3))
    ids = pipeline._prepare_latent_ids(torch.zeros(1, 128, rows, columns))
    with torch.no_grad():
        prompt, text_ids = pipeline.encode_prompt("one")
        theirs = pipeline.transformer(
            z, prompt, torch.tensor([0.4]), ids, text_ids, return_dict=False
        )[0]
        step = Schedule([0.9, 0.4, 0.0]).at(0.4)
        text = [klein.encode_text("one")]
        ours = klein.velocity(z, torch.tensor([0.4]), text, size, 4.0, step=step)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_guidance_is_u_plus_w_times_c_minus_u_and_1_or_less_makes_one_pass(klein, monkeypatch):
    sigma = torch.tensor([0.5])
    one, two = ([klein.encode_text(text)] for text in ("one", "a blur"))
    with torch.no_grad():
        guided, free = (klein.velocity(noise(), sigma, t, SIZE, 4.0) for t in (one, two))
        both = klein.velocity(noise(), sigma, one, SIZE, 4.0, None, two)
        torch.testing.assert_close(both, free + 4 * (guided - free), atol=1e-6, rtol=1e-5)
        assert (both - guided).abs().max() > 1e-3
        monkeypatch.setattr(klein, "on_device", lambda texts, real=klein.on_device: real(one))
        for weight in (1.0, 0.0):
            alone = klein.velocity(noise(), sigma, one, SIZE, weight, None, two)
            assert torch.equal(alone, guided)


def test_a_distilled_base_makes_4_unguided_steps_and_refuses_a_text_for_a_second_pass(distilled):
    assert (distilled.sampling.steps, distilled.sampling.guided) == (4, "none")
    assert distilled.sampling.fixed_steps
    text = [distilled.encode_text("one")]
    with pytest.raises(ModelError, match="not guided by two passes"):
        distilled.velocity(noise(), torch.tensor([0.5]), text, SIZE, 4.0, None, text)


@torch.no_grad()
def test_kept_keys_of_clean_panels_alone_change_nothing_in_either_pass(klein):
    texts, free = ([klein.encode_text(text)] for text in ("one", ""))
    tokens = torch.zeros(TOKENS, dtype=torch.bool)
    tokens[3:11] = True
    kept = Given(tokens, clean=True, isolated=True, cache=[])
    for sigma in (0.9, 0.4):
        args = (noise(1), torch.tensor([sigma]), texts, SIZE, 4.0)
        plain = klein.velocity(*args, Given(tokens, clean=True, isolated=True), free)
        saved = klein.velocity(*args, kept, free)
        torch.testing.assert_close(saved[:, ~tokens], plain[:, ~tokens], atol=1e-5, rtol=1e-5)
    assert len(kept.cache) == 3


@torch.no_grad()
@pytest.mark.parametrize("alone", [False, True])
def test_samples_of_a_batch_may_differ_in_which_tokens_are_given(klein, alone):
    texts = [klein.encode_text("one"), klein.encode_text("two")]
    z, sigma = noise(1, 2), torch.tensor([0.3, 0.9])
    tokens = torch.zeros(2, TOKENS, dtype=torch.bool)
    tokens[0, 4:12], tokens[1, 16:] = True, True
    both = klein.velocity(z, sigma, texts, SIZE, 1.0, Given(tokens, True, alone))
    for i in range(2):
        part = slice(i, i + 1)
        one = klein.velocity(
            z[part], sigma[part], texts[part], SIZE, 1.0, Given(tokens[i], True, alone)
        )
        torch.testing.assert_close(both[i], one[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bf16_computes_close_to_float32(klein):
    half = opened(klein.folder, torch.bfloat16)
    args = (torch.tensor([0.5]), [klein.encode_text("one")], SIZE, 1.0)
    exact, rough = klein.velocity(noise(), *args), half.velocity(noise(), *args)
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 0.05


# -- adapters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "linears"), [("4B", 100), ("9B", 144)])
def test_all_layers_of_true_klein_are_adapted_and_the_shared_modulation_is_not(
    klein, monkeypatch, size, linears
):
    from iclora.models.flux2.outline import KleinOutline

    settings = KleinOutline.shipped[f"black-forest-labs/FLUX.2-klein-base-{size}"]
    config = json.loads((settings / "transformer" / "config.json").read_text())
    with torch.device("meta"):
        net = diffusers.Flux2Transformer2DModel(**config)
    monkeypatch.setitem(klein.__dict__, "denoiser", net)
    everything = klein.lora_targets("all")
    assert len(everything) == linears
    assert not any("modulation" in name for name in everything)
    assert klein.lora_targets("attention+mlp") == everything
    double = config["num_layers"]
    assert len(everything) - len(klein.lora_targets("attention")) == 4 * double


# -- what is no FLUX.2 klein --------------------------------------------------------------------


def test_parts_that_do_not_belong_together_are_named(copy):
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "joint_attention_dim": 64}))
    with pytest.raises(ModelError, match="texts 64 wide, and its other parts make 128 and 96"):
        opened(copy)


def test_an_encoder_with_too_few_layers_is_named(copy):
    path = copy / "text_encoder" / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"num_hidden_layers": 20, "layer_types": settings["layer_types"][:20]}
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"has 20 layers, and FLUX\.2 klein reads number 27"):
        opened(copy).encode_text("one")


def test_the_tiny_klein_opens_by_its_name_and_has_the_same_bytes_every_time(klein, tmp_path):
    from iclora.models.flux2.tiny import write_tiny_klein

    assert isinstance(load_model("tiny-klein", device="cpu"), KleinModel)
    assert (klein.grid, klein.channels, klein.family) == (16, 128, "flux2")
    write_tiny_klein(tmp_path)
    files = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file()}
    assert {p.name for p in files} >= {"chat_template.jinja", "model_index.json"}
    assert all((klein.folder / name).read_bytes() == data for name, data in files.items())
