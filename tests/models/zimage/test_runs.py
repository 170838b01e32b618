"""Whole runs on a Z-Image: sets against diffusers' pipelines, training, adapters elsewhere."""

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
from iclora.models.latents import fold, unfold
from tests.conftest import CAPTION, picture
from tests.making.helpers import SIZE, STORY, prepared, run, told
from tests.models.helpers import (
    alike,
    asked_with_adapter_of,
    loss_by_formula,
    random_lora,
    short_runs,
    trained_elsewhere,
    trained_only_if_said,
    without_adapter,
)

COLUMNS = SIZE[0] // 16


@pytest.fixture
def clean(zimage):
    with without_adapter(zimage):
        yield zimage


@pytest.fixture
def settings(tmp_path, encodings):
    return short_runs("tiny-zimage", tmp_path, encodings)


# -- making -------------------------------------------------------------------------------------


def theirs(pipeline, made, guidance, steps, **more):
    """The pipeline's picture from the same noise; its guidance counts from 0, ours from 1."""
    noise = panel_noise(made.request.layout, made.request.seeds, 16, 64)
    return pipeline(
        prompt=made.request.prompt,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=steps,
        guidance_scale=guidance - 1,
        latents=unfold(noise[0], COLUMNS),
        **more,
    ).images[0]


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_generate_is_the_pipeline(clean, pipeline, guidance):
    made = generate(clean, CAPTION, seed=7, **told(steps=3, guidance=guidance))
    latents = unfold(torch.cat(made.latents).flatten(0, 1), COLUMNS)[0]
    other = theirs(pipeline, made, guidance, 3, output_type="latent")
    assert (latents - other).abs().max() < 1e-4
    image = pipeline.vae.decode(
        other[None] / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    ).sample
    expected = pipeline.image_processor.postprocess(image.detach(), output_type="np")[0]
    assert alike(made, expected)


def test_the_bases_own_guidance_is_the_pipelines_4(clean):
    request, _ = prepared(clean, CAPTION, recipe=STORY, size=SIZE)
    assert (request.steps, request.guidance) == (50, 5.0)


def test_turbo_takes_8_steps_unguided_as_its_pipeline_does(turbo):
    pipeline = diffusers.ZImagePipeline.from_pretrained(turbo.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    told_ = {key: value for key, value in told().items() if key != "steps"}
    made = generate(turbo, CAPTION, seed=2, **told_)
    assert made.request.steps == 8
    other = theirs(pipeline, made, 1.0, 8, output_type="np")
    assert alike(made, other)


def test_sets_are_made_together_if_their_texts_are_filled_up_to_one_length(clean, monkeypatch):
    from iclora.making import session
    from iclora.making.session import AS_IS, Ask, Session

    prompts = (CAPTION, CAPTION + " It rains and rains." * 4, CAPTION[:-1])
    asks = [Ask(prepared(clean, text, **told(steps=1))[0], adapter=AS_IS) for text in prompts]
    lengths = [clean.text_tokens(clean.encode_text(ask.request.prompt)) for ask in asks]
    assert lengths[0] == lengths[2] < lengths[1]
    sizes, real = [], session.paint
    monkeypatch.setattr(session, "paint", lambda m, a, *r: sizes.append(len(a)) or real(m, a, *r))
    made = dict(Session(clean).make(asks, together=3))
    assert sizes == [2, 1]
    for number, ask in enumerate(asks):
        alone = run(clean, ask.request)
        for one, other in zip(made[number].latents, alone.latents, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_completing_by_sdedit_is_diffusers_inpainting(clean, pipeline, monkeypatch):
    """At strength 1, on panels that are encoded one by one."""
    panels = {2: picture(96, 64, seed=2)}
    request, _ = prepared(clean, CAPTION, seed=5, given=panels, **told(guidance=4.0, steps=3))
    box = request.layout.boxes[1]
    mask = Image.new("L", SIZE, 255)
    mask.paste(0, box.corners)
    tokens = torch.zeros(SIZE[1] // 16, COLUMNS, 64)
    own = clean.encode_image(np.asarray(panels[2]))
    tokens[box.top // 16 : box.bottom // 16] = own.view(box.height // 16, -1, 64)
    noise = unfold(panel_noise(request.layout, request.seeds, 16, 64)[0], COLUMNS)
    inpaint = diffusers.ZImageInpaintPipeline(**pipeline.components)
    inpaint.set_progress_bar_config(disable=True)
    image = unfold(tokens.flatten(0, 1), COLUMNS)
    monkeypatch.setattr(inpaint, "prepare_latents", lambda *_: (noise, noise, image))
    other = inpaint(
        prompt=request.prompt,
        image=Image.new("RGB", SIZE),
        mask_image=mask,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="latent",
    ).images[0]
    made = torch.cat(run(clean, request, panels).latents).flatten(0, 1)
    assert (unfold(made, COLUMNS)[0] - other).abs().max() < 1e-4


# -- training -----------------------------------------------------------------------------------


def test_a_run_ends_with_an_adapter_that_stock_diffusers_loads_to_the_same_picture(
    clean, settings, pipeline, caplog
):
    more = {"conditional": 0.7, "isolate_given": True, "recompute": 2, "shift": "resolution"}

    def painted(pipeline, made):
        return theirs(pipeline, made, made.request.guidance, 2, output_type="np")

    own = settings(**more, lr=0.05, ema=0)
    adapter, loaded = trained_elsewhere(clean, own, pipeline, painted, caplog)
    assert (adapter.info.family, adapter.info.base) == ("zimage", "tiny-zimage")
    # Of the text's refiner too, which knows no noise level.
    assert "context_refiner.0.feed_forward.w2" in loaded


def test_the_loss_is_that_of_diffusers_own_pass(clean, settings, tmp_path):
    """The objective by its formula, on the pipeline's transformer; captions of two lengths."""

    def velocity(z, sigma, text, layout):
        columns = layout.width // 16
        cells, prompt = unfold(z, columns)[0][:, None], text["prompt"][text["real"] > 0]
        v = -clean.denoiser([cells], 1 - sigma, [prompt], return_dict=False)[0][0][:, 0]
        return fold(v[None])

    own = settings(batch=2, caption_dropout=0, micro_batch=2)
    loss_by_formula(clean, own, tmp_path, velocity)


def test_turbo_is_trained_only_if_that_is_said(turbo, settings):
    trained_only_if_said(turbo, settings)


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        ("Tongyi-MAI/Z-Image", "distilled kin: it runs here, in 8 steps; what others report"),
        ("me/another", "is called Z-Image-Turbo: if it is another, what it makes is a matter of"),
        ("/home/me/Z-Image-Turbo", None),
    ],
)
def test_an_adapter_of_the_base_runs_on_turbo_and_that_is_said(turbo, trained, says):
    request, _, about = asked_with_adapter_of(trained, turbo, "zimage", 50, 5.0)
    assert (request.steps, request.guidance) == (8, 0)
    assert (says in about[0]) if says else not about


# -- names --------------------------------------------------------------------------------------


def test_a_kohya_export_is_read_by_diffusers_as_the_same_update(clean):
    from diffusers.loaders import lora_conversion_utils
    from safetensors.torch import load

    truth = random_lora(clean)
    (data,) = export(truth, "kohya", clean.names, dtype=torch.float32).values()
    read = lora_conversion_utils._convert_non_diffusers_z_image_lora_to_diffusers(load(data))
    assert read.keys() == {f"transformer.{key}" for key in truth}
    assert all(torch.equal(read[f"transformer.{key}"], truth[key]) for key in truth)
    assert clean.names.header["modelspec.architecture"] == "z-image/lora"


def test_files_in_other_tools_names_are_read(clean):
    """ai-toolkit's are diffusers' behind `diffusion_model.`; some for ComfyUI fuse q, k and v."""
    truth = random_lora(clean)
    raw = {f"diffusion_model.{key}": value for key, value in truth.items()}
    ours = fit(read_tensors(raw, {}, None, "x").weights, clean.names, "tiny-zimage")
    assert ours.keys() == truth.keys()
    assert all(torch.equal(ours[key], truth[key]) for key in truth)
    rng = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 64, generator=rng), torch.randn(192, 2, generator=rng)
    stem = "diffusion_model.layers.1.attention.qkv"
    raw = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    ours = fit(read_tensors(raw, {}, None, "x").weights, clean.names, "tiny-zimage")
    for place, part in zip("qkv", up.chunk(3), strict=True):
        assert torch.equal(ours[f"layers.1.attention.to_{place}.lora_B.weight"], part)
        assert torch.equal(ours[f"layers.1.attention.to_{place}.lora_A.weight"], down)
