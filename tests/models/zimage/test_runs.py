"""Whole runs on a Z-Image: sets against diffusers' pipelines, training, adapters elsewhere."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from iclora.adapter import Adapter, AdapterInfo, remove
from iclora.adapter.export import export
from iclora.adapter.formats import fit, read_tensors
from iclora.errors import SettingsError
from iclora.making.sampling import panel_noise
from iclora.making.session import complete, generate
from iclora.models import flow, load_model
from iclora.models.latents import unfold
from iclora.train.run import resume_settings, train
from tests.conftest import CAPTION, FAST, encoded, picture, stop_after, write_dataset
from tests.making.helpers import SIZE, STORY, carry_noise, prepared, run, told

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
            "steps": 2,
            "targets": "all",
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


def test_turbo_takes_8_steps_unguided_as_its_pipeline_does(turbo):
    pipeline = diffusers.ZImagePipeline.from_pretrained(turbo.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    told_ = {key: value for key, value in told().items() if key != "steps"}
    made = generate(turbo, CAPTION, seed=2, **told_)
    assert made.request.steps == 8
    other = theirs(pipeline, made, 1.0, 8, output_type="np")
    assert np.abs(np.asarray(made.composite) / 255 - other).max() <= 0.5 / 255 + 1e-4


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


@pytest.mark.parametrize("mode", ["sdedit", "boost", "clean"])
def test_given_panels_come_back_pixel_for_pixel(clean, mode):
    panels = {1: picture(96, 64, 1), 3: picture(96, 64, 3)}
    made = complete(clean, CAPTION, panels, **told(steps=1, mode=mode))
    for n, image in panels.items():
        assert made.panels[n - 1].tobytes() == image.tobytes()
        assert made.composite.crop(made.request.layout.boxes[n - 1].corners) == image
    other = complete(clean, CAPTION, {**panels, 3: picture(96, 64, 9)}, **told(steps=1, mode=mode))
    assert made.panels[1].tobytes() != other.panels[1].tobytes()


def test_it_reads_no_references(clean):
    with pytest.raises(SettingsError, match="not trained to read pictures beside the canvas"):
        prepared(clean, CAPTION, given={1: picture(96, 64)}, **told(mode="reference"))


def test_a_whole_completion_with_kept_keys_is_the_one_without(clean, monkeypatch):
    """On a canvas that is filled up, in two passes whose texts differ in length."""
    from iclora.making import sampling

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
    more = {"conditional": 0.7, "isolate_given": True, "recompute": 2, "shift": "resolution"}
    result = train(settings(**more, lr=0.05, ema=0), clean)
    assert result.finished
    adapter = Adapter.load(result.adapter)
    assert (adapter.info.family, adapter.info.base) == ("zimage", "tiny-zimage")
    made = generate(clean, CAPTION, adapter=adapter, seed=4, **told(steps=2))
    plain = generate(clean, CAPTION, seed=4, **told(steps=2))
    assert np.abs(np.asarray(made.composite).astype(int) - np.asarray(plain.composite)).max() > 3
    try:
        with caplog.at_level("WARNING"):
            pipeline.load_lora_weights(str(result.adapter.parent), weight_name=result.adapter.name)
        assert caplog.text == ""
        loaded = {n for n, m in pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
        assert loaded == {key.rsplit(".lora_", 1)[0] for key in adapter.weights}
        # Of the text's refiner too, which knows no noise level.
        assert "context_refiner.0.feed_forward.w2" in loaded
        other = theirs(pipeline, made, made.request.guidance, 2, output_type="np")
    finally:
        pipeline.unload_lora_weights()
    assert np.abs(np.asarray(made.composite) / 255 - other).max() <= 0.5 / 255 + 1e-4


def test_a_run_that_was_stopped_and_resumed_writes_the_same_bytes(clean, settings):
    """With panels that read texts of their own."""
    more = {"conditional": 0.5, "held_out": 0.3, "save_every": 1, "text": "isolated"}
    whole = train(settings("whole", **more), clean)
    broken = settings("broken", **more)
    assert not train(broken, clean, progress=stop_after(1)).finished
    again = train(resume_settings(broken.out, {}), clean, resume=True)
    assert again.adapter.read_bytes() == whole.adapter.read_bytes()


def test_a_run_on_quantised_blocks_learns_and_its_adapter_serves_the_base_in_full(settings, clean):
    model = load_model("tiny-zimage", device="cpu", precision="int8")
    result = train(settings(precision="int8", lr=0.02), model)
    made = generate(clean, CAPTION, adapter=Adapter.load(result.adapter), **told(steps=1))
    plain = generate(clean, CAPTION, **told(steps=1))
    assert made.composite.tobytes() != plain.composite.tobytes()


def test_the_loss_is_that_of_diffusers_own_pass(clean, settings, tmp_path, pipeline):
    """The objective by its formula, on the pipeline's transformer; captions of two lengths."""
    from iclora.train.objective import Sample, accumulate

    own = settings(batch=2, caption_dropout=0, micro_batch=2)
    data = encoded(clean, own, tmp_path / "cache")
    remove(clean)
    carry_noise(clean)
    samples = [Sample(20, 0, 0), Sample(21, 1, 0)]
    loss = accumulate(clean, data, samples, own)
    assert all(p.grad is not None for p in clean.denoiser.parameters() if p.requires_grad)
    expected = 0.0
    for sample in samples:
        entry = data.sets[sample.set]
        layout, x0 = entry.layouts[sample.size], entry.latents(sample.size)
        key = (own.seed, sample.number)
        eps = torch.randn(x0.shape, generator=flow.generator("noise", *key))
        sigma = torch.sigmoid(torch.randn(1, generator=flow.generator("sigma", *key)))
        (text,) = entry.texts()
        z = unfold((1 - sigma) * x0 + sigma * eps, layout.width // 16)[0][:, None]
        prompt = text["prompt"][text["real"] > 0]
        with torch.no_grad():
            v = -clean.denoiser([z], 1 - sigma, [prompt], return_dict=False)[0][0][:, 0]
        target = unfold(eps - x0, layout.width // 16)[0]
        expected += float((v - target).square().mean()) / 2
    assert loss == pytest.approx(expected, rel=1e-5)


def test_turbo_is_trained_only_if_that_is_said(turbo, settings):
    base = str(turbo.folder)
    with pytest.raises(SettingsError, match="was distilled to 8 steps, which training undoes"):
        train(settings(base=base), turbo)
    assert train(settings(base=base, distilled=True, steps=1), turbo).finished
    remove(turbo)


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        ("Tongyi-MAI/Z-Image", "distilled kin: it runs here, in 8 steps; what others report"),
        ("me/another", "is called Z-Image-Turbo: if it is another, what it makes is a matter of"),
        ("/home/me/Z-Image-Turbo", None),
    ],
)
def test_an_adapter_of_the_base_runs_on_turbo_and_that_is_said(turbo, trained, says):
    info = AdapterInfo(
        base=trained,
        family="zimage",
        rank=1,
        alpha=1,
        targets="all",
        steps=1,
        recipe=STORY.sampled(50, 5.0),
        layout=STORY.canvas.to_json(),
    )
    request, notes = prepared(turbo, CAPTION, adapter=Adapter({}, info))
    assert (request.steps, request.guidance) == (8, 0)
    about = [note for note in notes if "adapter was trained on" in note]
    assert (says in about[0]) if says else not about


# -- names --------------------------------------------------------------------------------------


def random_lora(model):
    rng = torch.Generator().manual_seed(0)
    truth = {}
    for module in model.lora_targets("all"):
        tall, wide = model.names.linears[module]
        truth[f"{module}.lora_A.weight"] = torch.randn(2, wide, generator=rng)
        truth[f"{module}.lora_B.weight"] = torch.randn(tall, 2, generator=rng)
    return truth


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
