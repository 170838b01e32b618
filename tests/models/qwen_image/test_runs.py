"""Whole runs on a Qwen-Image: sets against diffusers' pipelines, training, adapters elsewhere."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from iclora.adapter import Adapter, remove
from iclora.adapter.export import export
from iclora.adapter.formats import fit, read_tensors
from iclora.errors import SettingsError
from iclora.making import sampling
from iclora.making.sampling import panel_noise
from iclora.making.session import complete, generate
from iclora.models import flow, load_model
from iclora.models.latents import unfold
from iclora.models.licences import LICENCES
from iclora.train.run import resume_settings, train
from tests.conftest import CAPTION, FAST, encoded, picture, stop_after, write_dataset
from tests.making.helpers import SIZE, STORY, carry_noise, prepared, run, told


@pytest.fixture
def clean(qwen):
    remove(qwen)
    yield qwen
    remove(qwen)


@pytest.fixture
def settings(tmp_path, encodings):
    """Settings of a short run of Qwen-Image on a small dataset."""
    from iclora.settings import TrainSettings, read_settings

    data = write_dataset(tmp_path / "data")

    def make(out="run", **more):
        own = {
            "base": "tiny-qwen",
            "data": str(data),
            "out": str(tmp_path / out),
            "steps": 2,
            "targets": "all",
            "resolutions": (64,),
            "cache": encodings,
        }
        return read_settings(TrainSettings, None, {**FAST, **own, **more})

    return make


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


def alike(made, other):
    """True if a picture is the pipeline's but for rounding."""
    return np.abs(np.asarray(made.composite) / 255 - other).max() <= 0.5 / 255 + 1e-4


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


@pytest.mark.parametrize("mode", ["resample", "boost", "clean"])
def test_given_panels_come_back_pixel_for_pixel(clean, mode):
    panels = {1: picture(96, 64, 1), 3: picture(96, 64, 3)}
    more = told(steps=1, mode=mode, guidance=1)
    made = complete(clean, CAPTION, panels, **more)
    for n, image in panels.items():
        assert made.panels[n - 1].tobytes() == image.tobytes()
    other = complete(clean, CAPTION, {**panels, 3: picture(96, 64, 9)}, **more)
    assert made.panels[1].tobytes() != other.panels[1].tobytes()


def test_it_reads_no_references(clean):
    with pytest.raises(SettingsError, match="not trained to read pictures beside the canvas"):
        prepared(clean, CAPTION, given={1: picture(96, 64)}, **told(mode="reference"))


def test_a_whole_completion_with_kept_keys_is_the_one_without(clean, monkeypatch):
    """In two passes whose texts differ in length."""
    panels = {2: picture(96, 64, 2)}
    request, _ = prepared(clean, CAPTION, given=panels, **told(mode="clean", steps=2))
    request = request.model_copy(update={"isolate_given": True})
    kept = run(clean, request, panels)
    real = sampling.Given
    monkeypatch.setattr(
        sampling, "Given", lambda tokens, clean, isolated, cache: real(tokens, clean, isolated)
    )
    plain = run(clean, request, panels)
    for one, other in zip(kept.latents, plain.latents, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# -- training -----------------------------------------------------------------------------------


def test_a_run_ends_with_an_adapter_that_stock_diffusers_loads_to_the_same_picture(
    clean, settings, pipeline, caplog
):
    more = {"conditional": 0.7, "isolate_given": True, "recompute": 1, "shift": "resolution"}
    result = train(settings(**more, lr=0.05, ema=0), clean)
    assert result.finished
    adapter = Adapter.load(result.adapter)
    assert (adapter.info.family, adapter.info.base) == ("qwen-image", "tiny-qwen")
    made = generate(clean, CAPTION, adapter=adapter, seed=4, **told(steps=2))
    plain = generate(clean, CAPTION, seed=4, **told(steps=2))
    assert np.abs(np.asarray(made.composite).astype(int) - np.asarray(plain.composite)).max() > 3
    try:
        with caplog.at_level("WARNING"):
            pipeline.load_lora_weights(str(result.adapter.parent), weight_name=result.adapter.name)
        assert caplog.text == ""
        loaded = {n for n, m in pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
        assert loaded == {key.rsplit(".lora_", 1)[0] for key in adapter.weights}
        assert len(loaded) == 2 * 14
        other = theirs(pipeline, made, made.request.guidance, 2, output_type="np")
    finally:
        pipeline.unload_lora_weights()
    assert alike(made, other)


def test_a_run_that_was_stopped_and_resumed_writes_the_same_bytes(clean, settings):
    """With panels that read texts of their own."""
    more = {"conditional": 0.5, "save_every": 1, "text": "isolated"}
    whole = train(settings("whole", **more), clean)
    broken = settings("broken", **more)
    assert not train(broken, clean, progress=stop_after(1)).finished
    again = train(resume_settings(broken.out, {}), clean, resume=True)
    assert again.adapter.read_bytes() == whole.adapter.read_bytes()


def test_a_run_on_quantised_blocks_learns_and_its_adapter_serves_the_base_in_full(settings, clean):
    model = load_model("tiny-qwen", device="cpu", precision="nf4")
    result = train(settings(precision="nf4", lr=0.02, steps=1), model)
    made = generate(clean, CAPTION, adapter=Adapter.load(result.adapter), **told(steps=1))
    plain = generate(clean, CAPTION, **told(steps=1))
    assert made.composite.tobytes() != plain.composite.tobytes()


def test_the_loss_is_that_of_diffusers_own_pass(clean, settings, tmp_path):
    """The objective by its formula, on the pipeline's transformer; captions of two lengths."""
    from iclora.train.objective import Sample, accumulate

    own = settings(batch=2, caption_dropout=0, micro_batch=2)
    data = encoded(clean, own, tmp_path / "cache")
    remove(clean)
    carry_noise(clean)
    samples = [Sample(20, 0, 0), Sample(21, 1, 0)]
    loss = accumulate(clean, data, samples, own)
    expected = 0.0
    for sample in samples:
        entry = data.sets[sample.set]
        layout, x0 = entry.layouts[sample.size], entry.latents(sample.size)
        key = (own.seed, sample.number)
        eps = torch.randn(x0.shape, generator=flow.generator("noise", *key))
        sigma = torch.sigmoid(torch.randn(1, generator=flow.generator("sigma", *key)))
        ((text,), z) = entry.texts(), (1 - sigma) * x0 + sigma * eps
        shape = [[(1, layout.height // 16, layout.width // 16)]]
        with torch.no_grad():
            v = clean.denoiser(z[None], text["prompt"][None], None, sigma, shape, return_dict=False)
        expected += float((v[0][0] - (eps - x0)).square().mean()) / 2
    assert loss == pytest.approx(expected, rel=1e-5)


# -- names --------------------------------------------------------------------------------------


def test_trainers_files_are_what_diffusers_makes_of_them_and_so_is_our_kohya_export(clean):
    from diffusers.loaders import lora_conversion_utils
    from safetensors.torch import load

    read = lora_conversion_utils._convert_non_diffusers_qwen_lora_to_diffusers
    rng, truth = torch.Generator().manual_seed(0), {}
    for module in clean.lora_targets("all"):
        tall, wide = clean.names.linears[module]
        truth[f"{module}.lora_A.weight"] = torch.randn(2, wide, generator=rng)
        truth[f"{module}.lora_B.weight"] = torch.randn(tall, 2, generator=rng)
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
