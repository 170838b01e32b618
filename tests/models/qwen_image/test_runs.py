"""Whole runs on a Qwen-Image: sets against diffusers' pipelines, training, adapters elsewhere."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from iclora.adapter.export import export
from iclora.adapter.formats import fit, read_tensors
from iclora.making.sampling import panel_noise
from iclora.making.session import generate
from iclora.models.latents import unfold
from iclora.models.licences import LICENCES
from tests.conftest import CAPTION, picture
from tests.making.helpers import SIZE, STORY, prepared, run, told
from tests.models.helpers import (
    alike,
    loss_by_formula,
    random_lora,
    short_runs,
    trained_elsewhere,
    without_adapter,
)


@pytest.fixture
def clean(qwen):
    with without_adapter(qwen):
        yield qwen


@pytest.fixture
def settings(tmp_path, encodings):
    return short_runs("tiny-qwen", tmp_path, encodings)


# -- making -------------------------------------------------------------------------------------


def theirs(pipeline, made, guidance, steps, negative=" ", **more):
    """The pipeline's picture from the same noise."""
    return pipeline(
        prompt=made.request.prompt,
        negative_prompt=negative,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=steps,
        true_cfg_scale=guidance,
        latents=panel_noise(made.request.layout, made.request.seeds, 16, 64),
        **more,
    ).images[0]


@pytest.mark.parametrize(("guidance", "negative"), [(4.0, ""), (4.0, "a dog"), (1.0, "")])
def test_generate_is_the_pipeline(clean, pipeline, guidance, negative):
    """Latents; and of a picture what its VAE paints of them, so encoding and decoding too."""
    more = {"steps": 2, "guidance": guidance, "negative": negative}
    made = generate(clean, CAPTION, seed=7, **told(**more))
    own = {"negative": negative or " "}
    other = theirs(pipeline, made, guidance, 2, output_type="latent", **own)
    latents = torch.cat(made.latents).flatten(0, 1)
    assert (latents - other).abs().max() < 1e-4
    vae, image = pipeline.vae, picture(*SIZE)
    mean, deviation = (
        torch.tensor(vae.config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        back = vae.decode((unfold(latents, SIZE[0] // 16) * deviation + mean)[:, :, None]).sample
        read = vae.encode(pipeline.image_processor.preprocess(image)[:, :, None]).latent_dist.mode()
    painted = pipeline.image_processor.postprocess(back[:, :, 0], output_type="np")[0]
    assert alike(made, painted)
    found = unfold(clean.encode_image(np.asarray(image)), SIZE[0] // 16)
    torch.testing.assert_close(found, (read[:, :, 0] - mean) / deviation)


def test_the_bases_own_guidance_is_the_pipelines(clean):
    request, _ = prepared(clean, CAPTION, recipe=STORY, size=SIZE)
    assert (request.steps, request.guidance) == (50, 4.0)


def test_completing_by_sdedit_is_diffusers_inpainting(clean, pipeline, monkeypatch):
    """At strength 1, on panels that are encoded one by one."""
    panels = {2: picture(96, 64, seed=2)}
    request, _ = prepared(clean, CAPTION, seed=5, given=panels, **told(guidance=4.0, steps=3))
    box = request.layout.boxes[1]
    mask = Image.new("L", SIZE, 255)
    mask.paste(0, box.corners)
    tokens = torch.zeros(SIZE[1] // 16, SIZE[0] // 16, 64)
    own = clean.encode_image(np.asarray(panels[2]))
    tokens[box.top // 16 : box.bottom // 16] = own.view(box.height // 16, -1, 64)
    noise = panel_noise(request.layout, request.seeds, 16, 64)
    inpaint = diffusers.QwenImageInpaintPipeline(**pipeline.components)
    inpaint.set_progress_bar_config(disable=True)
    known = tokens.flatten(0, 1)[None]
    monkeypatch.setattr(inpaint, "prepare_latents", lambda *_: (noise, noise, known))
    other = inpaint(
        prompt=request.prompt,
        negative_prompt=" ",
        image=Image.new("RGB", SIZE),
        mask_image=mask,
        width=SIZE[0],
        height=SIZE[1],
        strength=1.0,
        num_inference_steps=3,
        true_cfg_scale=4.0,
        output_type="latent",
    ).images[0]
    made = torch.cat(run(clean, request, panels).latents).flatten(0, 1)
    assert (made - other).abs().max() < 1e-4


# -- training -----------------------------------------------------------------------------------


def test_a_run_ends_with_an_adapter_that_stock_diffusers_loads_to_the_same_picture(
    clean, settings, pipeline, caplog
):
    more = {"conditional": 0.7, "isolate_given": True, "recompute": 1, "shift": "resolution"}

    def painted(pipeline, made):
        return theirs(pipeline, made, made.request.guidance, 2, output_type="np")

    own = settings(**more, lr=0.05, ema=0)
    adapter, loaded = trained_elsewhere(clean, own, pipeline, painted, caplog)
    assert (adapter.info.family, adapter.info.base) == ("qwen-image", "tiny-qwen")
    assert len(loaded) == 2 * 14


def test_the_loss_is_that_of_diffusers_own_pass(clean, settings, tmp_path):
    """The objective by its formula, on the pipeline's transformer; captions of two lengths."""

    def velocity(z, sigma, text, layout):
        shape = [[(1, layout.height // 16, layout.width // 16)]]
        prompt = text["prompt"][None]
        return clean.denoiser(z[None], prompt, None, sigma, shape, return_dict=False)[0][0]

    own = settings(batch=2, caption_dropout=0, micro_batch=2)
    loss_by_formula(clean, own, tmp_path, velocity, unread=2 * 3)


# -- names --------------------------------------------------------------------------------------


def test_trainers_files_are_what_diffusers_makes_of_them_and_so_is_our_kohya_export(clean):
    from diffusers.loaders import lora_conversion_utils
    from safetensors.torch import load

    read = lora_conversion_utils._convert_non_diffusers_qwen_lora_to_diffusers
    truth = random_lora(clean)
    (data,) = export(truth, "kohya", clean.names, dtype=torch.float32).values()
    files = (load(data), {f"diffusion_model.{key}": value for key, value in truth.items()})
    for raw in files:
        ours = fit(read_tensors(dict(raw), {}, None, "x").weights, clean.names, "tiny-qwen")
        assert ours.keys() == truth.keys()
        assert all(torch.equal(ours[key], truth[key]) for key in truth)
        other = {key.removeprefix("transformer."): value for key, value in read(dict(raw)).items()}
        assert other.keys() == truth.keys()
        assert all(torch.equal(other[key], truth[key]) for key in truth)
    assert clean.names.header["modelspec.architecture"] == "Qwen-Image/lora"


def test_a_model_card_names_its_licence():
    assert LICENCES["Qwen/Qwen-Image-2512"].id == "apache-2.0"
