"""Whole runs on a Krea 2: sets against diffusers' pipeline, training, adapters elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iclora.adapter import Adapter, remove
from iclora.adapter.export import export
from iclora.adapter.formats import fit, read_tensors
from iclora.making.sampling import panel_noise
from iclora.making.session import generate
from iclora.models.licences import LICENCES
from iclora.train.run import train
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


@pytest.fixture
def clean(krea):
    with without_adapter(krea):
        yield krea


@pytest.fixture
def settings(tmp_path, encodings):
    return short_runs("tiny-krea", tmp_path, encodings)


# -- making -------------------------------------------------------------------------------------


def theirs(pipeline, made, guidance, steps, **more):
    """The pipeline's picture from the same noise; its guidance counts from 0, ours from 1."""
    return pipeline(
        prompt=made.request.prompt,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=steps,
        guidance_scale=guidance - 1,
        latents=panel_noise(made.request.layout, made.request.seeds, 16, 64),
        **more,
    ).images[0]


@pytest.mark.parametrize(("guidance", "negative"), [(5.5, "a dog"), (1.0, "")])
def test_generate_is_the_pipeline(clean, pipeline, guidance, negative):
    more = {"steps": 2, "guidance": guidance, "negative": negative}
    made = generate(clean, CAPTION, seed=7, **told(**more))
    told_ = {"negative_prompt": negative}
    other = theirs(pipeline, made, guidance, 2, output_type="latent", **told_)
    assert (torch.cat(made.latents).flatten(0, 1) - other).abs().max() < 1e-4
    assert alike(made, theirs(pipeline, made, guidance, 2, output_type="np", **told_))


def test_the_bases_own_guidance_is_the_pipelines_4_and_a_half(clean):
    request, _ = prepared(clean, CAPTION, recipe=STORY, size=SIZE)
    assert (request.steps, request.guidance) == (28, 5.5)


def test_turbo_takes_8_steps_unguided_as_its_pipeline_does(turbo):
    import diffusers

    pipeline = diffusers.Krea2Pipeline.from_pretrained(turbo.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    told_ = {key: value for key, value in told().items() if key != "steps"}
    made = generate(turbo, CAPTION, seed=2, **told_)
    assert made.request.steps == 8
    assert alike(made, theirs(pipeline, made, 1.0, 8, output_type="np"))


def test_completing_by_sdedit_is_the_pipeline_with_known_tokens_put_back(clean, pipeline):
    """It has no pipeline for inpainting; after each step its own one is given what those give."""
    panels = {2: picture(96, 64, seed=2)}
    request, _ = prepared(clean, CAPTION, seed=5, given=panels, **told(guidance=4.0, steps=3))
    box = request.layout.boxes[1]
    known, free = torch.zeros(SIZE[1] // 16, SIZE[0] // 16, 64), torch.ones(SIZE[1] // 16, 1, 1)
    own = clean.encode_image(np.asarray(panels[2]))
    rows = slice(box.top // 16, box.bottom // 16)
    known[rows] = own.view(box.height // 16, -1, 64)
    free[rows] = 0
    known, free = known.flatten(0, 1), free.expand(-1, SIZE[0] // 16, 1).flatten(0, 1)
    noise = panel_noise(request.layout, request.seeds, 16, 64)

    def put_back(pipe, step, _, kept):
        sigma = pipe.scheduler.sigmas[step + 1]
        there = (1 - sigma) * known + sigma * noise
        return {"latents": free * kept["latents"] + (1 - free) * there}

    made = run(clean, request, panels)
    more = {"output_type": "latent", "callback_on_step_end": put_back}
    other = theirs(pipeline, made, 4.0, 3, **more)
    assert (torch.cat(made.latents).flatten(0, 1) - other).abs().max() < 1e-4


# -- training -----------------------------------------------------------------------------------


def test_a_run_ends_with_an_adapter_that_stock_diffusers_loads_to_the_same_picture(
    clean, settings, pipeline, caplog
):
    more = {"conditional": 0.7, "isolate_given": True, "recompute": 1, "shift": "resolution"}

    def painted(pipeline, made):
        return theirs(pipeline, made, made.request.guidance, 2, output_type="np")

    own = settings(**more, lr=0.05, ema=0)
    adapter, loaded = trained_elsewhere(clean, own, pipeline, painted, caplog)
    assert (adapter.info.family, adapter.info.base) == ("krea2", "tiny-krea")
    assert len(loaded) == 2 * 8


def test_the_loss_is_that_of_diffusers_own_pass(clean, settings, tmp_path):
    """The objective by its formula, on the pipeline's transformer; captions of two lengths."""

    def velocity(z, sigma, text, layout):
        prompt = text["prompt"][None]
        rows, columns = layout.height // 16, layout.width // 16
        ids = torch.zeros(prompt.shape[1] + rows * columns, 3)
        ids[prompt.shape[1] :, 1:] = torch.cartesian_prod(
            torch.arange(rows), torch.arange(columns)
        ).float()
        return clean.denoiser(z[None], prompt, sigma, ids, return_dict=False)[0][0]

    own = settings(batch=2, caption_dropout=0, micro_batch=2)
    loss_by_formula(clean, own, tmp_path, velocity)


def test_turbo_is_trained_only_if_that_is_said(turbo, settings):
    trained_only_if_said(turbo, settings)


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        ("krea/Krea-2-Raw", "distilled kin: it runs here, in 8 steps"),
        ("me/another", "is called Krea-2-Turbo: if it is another, what it makes is a matter of"),
        ("/home/me/Krea-2-Turbo", None),
    ],
)
def test_an_adapter_of_raw_runs_on_turbo_and_that_is_said(turbo, trained, says):
    request, _, about = asked_with_adapter_of(trained, turbo, "krea2", 28, 5.5)
    assert (request.steps, request.guidance) == (8, 0)
    assert (says in about[0]) if says else not about


def test_an_adapter_of_raw_paints_on_turbo(clean, turbo, settings):
    result = train(settings(lr=0.05, ema=0, steps=1), clean)
    adapter = Adapter.load(result.adapter)
    made = generate(turbo, CAPTION, adapter=adapter, seed=4, size=SIZE)
    remove(turbo)
    plain = generate(turbo, CAPTION, recipe=STORY, seed=4, size=SIZE)
    assert made.request.steps == plain.request.steps == 8
    assert made.composite.tobytes() != plain.composite.tobytes()


# -- names --------------------------------------------------------------------------------------


def test_files_in_its_makers_and_trainers_names_are_those_that_diffusers_makes_of_them(clean):
    """Of every linear layer that has such a name, the text's fusion and the embedders included."""
    from diffusers.loaders import lora_conversion_utils

    names = clean.names
    assert {part for place in names.fused.values() for part in place.parts} == set(names.linears)
    truth = random_lora(clean, names.linears)
    theirs = {place.parts[0]: name for name, place in names.fused.items()}
    for prefix in ("diffusion_model.", "base_model.model."):
        raw = {
            f"{prefix}{theirs[key.split('.lora_')[0]]}.lora_{key.split('.lora_')[1]}": value
            for key, value in truth.items()
        }
        ours = fit(read_tensors(raw, {}, None, "x").weights, names, "tiny-krea")
        read = lora_conversion_utils._convert_non_diffusers_krea2_lora_to_diffusers(raw)
        assert ours.keys() == truth.keys()
        assert {f"transformer.{key}" for key in ours} == read.keys()
        assert all(torch.equal(read[f"transformer.{key}"], value) for key, value in ours.items())


def test_a_kohya_export_has_its_makers_names_and_is_read_back_as_the_same_update(clean):
    from safetensors.torch import load

    truth = random_lora(clean)
    assert len(truth) == 2 * 2 * 8
    (data,) = export(truth, "kohya", clean.names, dtype=torch.float32).values()
    assert "lora_unet_blocks_1_attn_wq.lora_down.weight" in load(data)
    ours = fit(read_tensors(load(data), {}, None, "x").weights, clean.names, "tiny-krea")
    assert ours.keys() == truth.keys()
    assert all(torch.equal(ours[key], truth[key]) for key in truth)


def test_a_model_card_names_its_licence():
    licence = LICENCES["krea/Krea-2-Raw"]
    assert (licence.id, licence.name) == ("other", "krea-2-community-license")
