"""Whole runs on a Krea 2: sets against diffusers' pipeline, training, adapters elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iclora.adapter import Adapter, AdapterInfo, remove
from iclora.adapter.export import export
from iclora.adapter.formats import fit, read_tensors
from iclora.errors import SettingsError
from iclora.making import sampling
from iclora.making.sampling import panel_noise
from iclora.making.session import complete, generate
from iclora.models import flow, load_model
from iclora.models.licences import LICENCES
from iclora.train.run import resume_settings, train
from tests.conftest import CAPTION, FAST, encoded, picture, stop_after, write_dataset
from tests.making.helpers import SIZE, STORY, carry_noise, prepared, run, told


@pytest.fixture
def clean(krea):
    remove(krea)
    yield krea
    remove(krea)


@pytest.fixture
def settings(tmp_path, encodings):
    """Settings of a short run of Krea 2 on a small dataset."""
    from iclora.settings import TrainSettings, read_settings

    data = write_dataset(tmp_path / "data")

    def make(out="run", **more):
        own = {
            "base": "tiny-krea",
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
    return pipeline(
        prompt=made.request.prompt,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=steps,
        guidance_scale=guidance - 1,
        latents=panel_noise(made.request.layout, made.request.seeds, 16, 64),
        **more,
    ).images[0]


def alike(made, other):
    """True if a picture is the pipeline's but for rounding."""
    return np.abs(np.asarray(made.composite) / 255 - other).max() <= 0.5 / 255 + 1e-4


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


@pytest.mark.parametrize("mode", ["sdedit", "boost", "clean"])
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
    assert (adapter.info.family, adapter.info.base) == ("krea2", "tiny-krea")
    made = generate(clean, CAPTION, adapter=adapter, seed=4, **told(steps=2))
    plain = generate(clean, CAPTION, seed=4, **told(steps=2))
    assert np.abs(np.asarray(made.composite).astype(int) - np.asarray(plain.composite)).max() > 3
    try:
        with caplog.at_level("WARNING"):
            pipeline.load_lora_weights(str(result.adapter.parent), weight_name=result.adapter.name)
        assert caplog.text == ""
        loaded = {n for n, m in pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
        assert loaded == {key.rsplit(".lora_", 1)[0] for key in adapter.weights}
        assert len(loaded) == 2 * 8
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
    model = load_model("tiny-krea", device="cpu", precision="int8")
    result = train(settings(precision="int8", lr=0.02, steps=1), model)
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
    assert all(p.grad is not None for p in clean.denoiser.parameters() if p.requires_grad)
    expected = 0.0
    for sample in samples:
        entry = data.sets[sample.set]
        layout, x0 = entry.layouts[sample.size], entry.latents(sample.size)
        key = (own.seed, sample.number)
        eps = torch.randn(x0.shape, generator=flow.generator("noise", *key))
        sigma = torch.sigmoid(torch.randn(1, generator=flow.generator("sigma", *key)))
        ((text,), z) = entry.texts(), (1 - sigma) * x0 + sigma * eps
        prompt = text["prompt"][None]
        rows, columns = layout.height // 16, layout.width // 16
        ids = torch.zeros(prompt.shape[1] + rows * columns, 3)
        ids[prompt.shape[1] :, 1:] = torch.cartesian_prod(
            torch.arange(rows), torch.arange(columns)
        ).float()
        with torch.no_grad():
            v = clean.denoiser(z[None], prompt, sigma, ids, return_dict=False)[0][0]
        expected += float((v - (eps - x0)).square().mean()) / 2
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
        ("krea/Krea-2-Raw", "distilled kin: it runs here, in 8 steps"),
        ("me/another", "is called Krea-2-Turbo: if it is another, what it makes is a matter of"),
        ("/home/me/Krea-2-Turbo", None),
    ],
)
def test_an_adapter_of_raw_runs_on_turbo_and_that_is_said(turbo, trained, says):
    info = AdapterInfo(
        base=trained,
        family="krea2",
        rank=1,
        alpha=1,
        targets="all",
        steps=1,
        recipe=STORY.sampled(28, 5.5),
        layout=STORY.canvas.to_json(),
    )
    request, notes = prepared(turbo, CAPTION, adapter=Adapter({}, info))
    assert (request.steps, request.guidance) == (8, 0)
    about = [note for note in notes if "adapter was trained on" in note]
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


def random_lora(model, names):
    rng = torch.Generator().manual_seed(0)
    truth = {}
    for module in names:
        tall, wide = model.names.linears[module]
        truth[f"{module}.lora_A.weight"] = torch.randn(2, wide, generator=rng)
        truth[f"{module}.lora_B.weight"] = torch.randn(tall, 2, generator=rng)
    return truth


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

    truth = random_lora(clean, clean.lora_targets("all"))
    assert len(truth) == 2 * 2 * 8
    (data,) = export(truth, "kohya", clean.names, dtype=torch.float32).values()
    assert "lora_unet_blocks_1_attn_wq.lora_down.weight" in load(data)
    ours = fit(read_tensors(load(data), {}, None, "x").weights, clean.names, "tiny-krea")
    assert ours.keys() == truth.keys()
    assert all(torch.equal(ours[key], truth[key]) for key in truth)


def test_a_model_card_names_its_licence():
    licence = LICENCES["krea/Krea-2-Raw"]
    assert (licence.id, licence.name) == ("other", "krea-2-community-license")
