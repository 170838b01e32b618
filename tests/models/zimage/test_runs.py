"""Whole runs on a Z-Image: sets against diffusers' pipelines, training, adapters elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iclora.adapter import remove
from iclora.making.sampling import panel_noise
from iclora.making.session import generate
from iclora.models.latents import unfold
from tests.conftest import CAPTION, FAST, write_dataset
from tests.making.helpers import SIZE, STORY, prepared, told

COLUMNS = SIZE[0] // 16


@pytest.fixture
def clean(zimage):
    remove(zimage)
    yield zimage
    remove(zimage)


@pytest.fixture
def settings(tmp_path, encodings):
    """Settings of a short run of Z-Image on a small dataset."""
    from iclora.settings import TrainSettings, read_settings

    data = write_dataset(tmp_path / "data")

    def make(out="run", **more):
        own = {
            "base": "tiny-zimage",
            "data": str(data),
            "out": str(tmp_path / out),
            "steps": 3,
            "resolutions": (64,),
            "cache": encodings,
        }
        return read_settings(TrainSettings, None, {**FAST, **own, **more})

    return make


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
    assert np.abs(np.asarray(made.composite) / 255 - expected).max() <= 0.5 / 255 + 1e-4


def test_the_bases_own_guidance_is_the_pipelines_4(clean):
    request, _ = prepared(clean, CAPTION, recipe=STORY, size=SIZE)
    assert (request.steps, request.guidance) == (50, 5.0)
