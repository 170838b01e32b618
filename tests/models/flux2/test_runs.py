"""Whole runs on a FLUX.2 klein: sets against diffusers' pipelines, training, adapters elsewhere."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from iclora.adapter import Adapter, remove
from iclora.adapter.export import export
from iclora.errors import AdapterError, SettingsError
from iclora.making.sampling import panel_noise
from iclora.making.session import complete, generate
from iclora.making.story import ask_again, reroll
from iclora.models import load_model
from iclora.progress import Progress
from iclora.train.data import unread_by_base
from iclora.train.run import resume_settings, train
from tests.conftest import CAPTION, picture, stop_after
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

WORDS = 96
"""Tokens of a text; most of the usual 512 are padding, which steps would spend their time on."""


@pytest.fixture
def clean(klein, monkeypatch):
    monkeypatch.setattr(klein, "max_text_tokens", WORDS)
    with without_adapter(klein):
        yield klein


@pytest.fixture
def settings(tmp_path, encodings):
    return short_runs("tiny-klein", tmp_path, encodings)


# -- making -------------------------------------------------------------------------------------


def latents_of(pipeline, tokens):
    """Tokens (n, 128) of a SIZE canvas as the pipeline's latents, still normalised."""
    return tokens.T.reshape(1, 128, SIZE[1] // 16, SIZE[0] // 16)


def theirs(pipeline, made, prompt, guidance, steps=3, **more):
    noise = panel_noise(made.request.layout, made.request.seeds, 16, 128)
    return pipeline(
        prompt=prompt,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents_of(pipeline, noise[0]),
        **{"max_sequence_length": WORDS, **more},
    ).images[0]


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_generate_is_the_pipeline(clean, pipeline, guidance):
    made = generate(clean, CAPTION, seed=7, **told(steps=3, guidance=guidance))
    other = theirs(pipeline, made, made.request.prompt, guidance, output_type="np")
    ours = np.asarray(made.composite) / 255
    assert np.abs(ours - other).max() <= 0.5 / 255 + 1e-4


def test_latents_are_the_pipelines_to_1e_4_at_the_bases_own_guidance(clean, pipeline, monkeypatch):
    """And with texts as long as both read by default."""
    monkeypatch.setattr(clean, "max_text_tokens", 512)
    made = generate(clean, CAPTION, seed=7, **told(steps=4))
    assert made.request.guidance == 4.0
    more = {"output_type": "latent", "max_sequence_length": 512}
    other = theirs(pipeline, made, made.request.prompt, 4.0, 4, **more)
    norm = pipeline.vae.bn
    deviation = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
    tokens = torch.cat(made.latents).flatten(0, 1) * deviation + norm.running_mean
    ours = pipeline._unpatchify_latents(latents_of(pipeline, tokens))[0]
    assert (ours - other).abs().max() < 1e-4


def test_a_distilled_base_takes_4_steps_unguided_as_its_pipeline_does(distilled):
    pipeline = diffusers.Flux2KleinPipeline.from_pretrained(distilled.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    told_ = {key: value for key, value in told().items() if key != "steps"}
    made = generate(distilled, CAPTION, seed=2, **told_)
    assert made.request.steps == 4
    other = theirs(pipeline, made, made.request.prompt, 1.0, 4, output_type="np")
    assert alike(made, other)


def test_a_negative_prompt_is_what_the_unguided_pass_reads(clean):
    plain = generate(clean, CAPTION, **told(steps=2))
    other = generate(clean, CAPTION, **told(steps=2, negative="a blur"))
    assert plain.composite.tobytes() != other.composite.tobytes()
    alone = [
        generate(clean, CAPTION, **told(steps=2, guidance=1.0, negative=text)).composite.tobytes()
        for text in ("", "a blur")
    ]
    assert alone[0] == alone[1]


def test_completing_by_sdedit_is_diffusers_inpainting(clean, pipeline, monkeypatch):
    """At strength 1, its reference of the whole picture left out."""
    panels = {2: picture(96, 64, seed=2)}
    request, _ = prepared(clean, CAPTION, seed=5, given=panels, **told(guidance=4.0))
    layout = request.layout
    inpaint = diffusers.Flux2KleinInpaintPipeline(**pipeline.components)
    inpaint.set_progress_bar_config(disable=True)

    def nothing(images, batch_size, generator, device, dtype):
        return torch.zeros(1, 0, 128), torch.zeros(1, 0, 4)

    monkeypatch.setattr(inpaint, "prepare_image_latents", nothing)
    mask = Image.new("L", SIZE, 255)
    box = layout.boxes[1]
    mask.paste(0, box.corners)
    # Each given panel is encoded alone: the canvas's latents, not yet normalised.
    tokens = torch.zeros(SIZE[1] // 16, SIZE[0] // 16, 128)
    own = clean.encode_image(np.asarray(panels[2]))
    tokens[box.top // 16 : box.bottom // 16] = own.view(box.height // 16, -1, 128)
    norm = pipeline.vae.bn
    deviation = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
    image = latents_of(pipeline, tokens.flatten(0, 1) * deviation + norm.running_mean)
    noise = panel_noise(layout, request.seeds, 16, 128)
    other = inpaint(
        prompt=request.prompt,
        image=image,
        mask_image=mask,
        width=SIZE[0],
        height=SIZE[1],
        strength=1.0,
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=latents_of(pipeline, noise[0]),
        output_type="latent",
        max_sequence_length=WORDS,
    ).images[0]
    made = torch.cat(run(clean, request, panels).latents).flatten(0, 1)
    made = latents_of(pipeline, made * deviation + norm.running_mean)
    assert (pipeline._unpatchify_latents(made)[0] - other).abs().max() < 1e-4


@pytest.mark.parametrize(("given", "left"), [({1: 1}, (96, 128)), ({1: 1, 3: 3}, (96, 64))])
def test_references_are_the_pipelines_and_the_canvas_is_the_panels_to_make(
    clean, pipeline, given, left
):
    """Pictures in diffusers' own way, at the noise of the rest, 10 apart on their axis."""
    panels = {number: picture(96, 64, seed) for number, seed in given.items()}
    made = complete(clean, CAPTION, panels, seed=3, **told(steps=3, mode="reference"))
    layout, grid = made.request.layout, 16
    words = made.request.prompt
    for k, number in enumerate(sorted(panels), 1):
        words = words.replace(f"[SCENE-{number}]", f"image {k}")
        assert made.panels[number - 1] == panels[number]
        assert made.composite.crop(layout.boxes[number - 1].corners) == panels[number]
    assert made.request.words == words
    missing = [n for n in (1, 2, 3) if n not in panels]
    noise = panel_noise(layout, made.request.seeds, grid, 128).view(12, 6, 128)
    rows = [noise[4 * (n - 1) : 4 * n] for n in missing]
    cells = torch.cat(rows).permute(2, 0, 1)[None]
    other = pipeline(
        image=[panels[n] for n in sorted(panels)],
        prompt=words,
        width=left[0],
        height=left[1],
        num_inference_steps=3,
        guidance_scale=4.0,
        latents=cells,
        output_type="latent",
        max_sequence_length=WORDS,
    ).images
    norm = pipeline.vae.bn
    deviation = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
    ours = torch.cat([made.latents[n - 1] for n in missing]) * deviation + norm.running_mean
    ours = pipeline._unpatchify_latents(ours.permute(2, 0, 1)[None])
    assert (ours - other).abs().max() < 1e-4


def test_a_reference_beside_a_panel_to_make_leaves_a_narrower_canvas(clean):
    """In a grid of panels, rows and columns that nothing is left of are not counted."""
    labels = torch.zeros(4, 6, dtype=torch.int)
    labels[:, :2], labels[:2, 4:] = 1, 2
    ids = clean._position_ids((96, 64), labels.flatten()).view(4, 6, 4)
    assert ids[:, :2, 0].unique().tolist() == [10]
    assert ids[:2, 4:, 0].unique().tolist() == [20]
    assert ids[1, 5].tolist() == [20, 1, 1, 0]
    assert ids[3, 2].tolist() == [0, 3, 0, 0]
    assert ids[3, 5].tolist() == [0, 3, 3, 0]


def test_a_base_that_reads_no_references_says_so(tiny):
    with pytest.raises(SettingsError, match="not trained to read pictures beside the canvas"):
        prepared(tiny, CAPTION, given={1: picture(96, 64)}, **told(mode="reference"))


def test_a_panel_is_made_again_around_references(clean):
    made = generate(clean, CAPTION, **told(steps=2))
    remove(clean)
    other = reroll(clean, made, [2], seed=5, mode="reference")
    assert other.request.mode == "reference"
    assert other.request.words.count("image ") == 2
    assert "[SCENE-2]" in other.request.words
    assert [a == b for a, b in zip(made.panels, other.panels, strict=True)] == [True, False, True]
    # Of a recipe of one's own, which no adapter carries, markers are known too; not of old sets.
    own = STORY.model_copy(update={"name": "own", "markers": ("[A]", "[B]", "[C]")})
    prompt = CAPTION.replace("SCENE-1", "A").replace("SCENE-2", "B").replace("SCENE-3", "C")
    request, _ = prepared(clean, prompt, recipe=own, size=SIZE)
    made = replace(made, request=request)
    again = ask_again(clean, made, [2], seed=5, mode="reference").request
    assert again.words.count("image ") == 2
    assert "[B]" in again.words
    old = replace(made, request=request.model_copy(update={"markers": ()}))
    assert old.request.same_pixels(request)
    assert not again.model_copy(update={"markers": ()}).same_pixels(again)
    assert ask_again(clean, old, [2], seed=5).request.mode == "sdedit"
    with pytest.raises(SettingsError, match="nothing says which those of"):
        ask_again(clean, old, [2], seed=5, mode="reference")


# -- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"shift": "resolution", "targets": "attention"},
        {"conditional": 0.7, "isolate_given": True, "recompute": 2},
    ],
)
def test_a_run_ends_with_an_adapter_that_stock_diffusers_loads_to_the_same_picture(
    clean, settings, pipeline, more, caplog
):
    def painted(pipeline, made):
        return theirs(pipeline, made, made.request.prompt, 4.0, 2, output_type="np")

    own = settings(**more, steps=3, lr=0.05, ema=0)
    adapter, _ = trained_elsewhere(clean, own, pipeline, painted, caplog)
    assert (adapter.info.family, adapter.info.base) == ("flux2", "tiny-klein")


def test_a_run_that_was_stopped_and_resumed_writes_the_same_bytes(clean, settings):
    more = {"steps": 2, "conditional": 0.5, "held_out": 0.3, "save_every": 1}
    whole = train(settings("whole", **more), clean)
    broken = settings("broken", **more)
    assert not train(broken, clean, progress=stop_after(1)).finished
    again = train(resume_settings(broken.out, {}), clean, resume=True)
    assert again.adapter.read_bytes() == whole.adapter.read_bytes()


@pytest.mark.parametrize("precision", ["nf4"])
def test_a_run_on_quantised_blocks_learns_almost_as_one_in_full(settings, precision, clean):
    model = load_model("tiny-klein", device="cpu", precision=precision)
    model.max_text_tokens = WORDS
    losses = []
    for base, name in ((clean, "full"), (model, precision)):
        seen = []
        show = Progress(lambda e, seen=seen: e.what == "training" and seen.append(e.values["loss"]))
        own = settings(name, steps=3, lr=0.02, precision="full" if base is clean else precision)
        train(own, base, progress=show)
        losses.append(seen)
    assert len(losses[0]) == len(losses[1]) == 3
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_loss_is_that_of_diffusers_own_pass(clean, settings, tmp_path, pipeline):
    """The objective by its formula, on the pipeline's transformer."""

    def velocity(z, sigma, text, layout):
        cells = torch.zeros(1, 128, layout.height // 16, layout.width // 16)
        ids, prompt = pipeline._prepare_latent_ids(cells), text["prompt"][None]
        words = pipeline._prepare_text_ids(prompt)
        return clean.denoiser(z[None], prompt, sigma, ids, words, return_dict=False)[0][0]

    loss_by_formula(clean, settings(batch=2, caption_dropout=0), tmp_path, velocity)


def test_a_distilled_base_is_trained_only_if_that_is_said(distilled, settings):
    trained_only_if_said(distilled, settings)


def test_a_guidance_that_training_does_not_read_is_said(clean, settings):
    said = []
    said += unread_by_base(settings(guidance=2.0), clean)
    said += unread_by_base(settings(), clean)
    # As the file of a run sets all of them.
    said += unread_by_base(settings(guidance=settings().guidance), clean)
    assert len(said) == 1
    assert "`guidance` has no effect in training" in said[0]


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        ("black-forest-labs/FLUX.2-klein-base-4B", "distilled kin: it runs here, in 4 steps"),
        (
            "me/another",
            "is called FLUX.2-klein-4B: if it is another, what it makes is a matter of luck",
        ),
        ("/home/me/FLUX.2-klein-4B", None),
    ],
)
def test_an_adapter_of_a_base_runs_on_its_distilled_kin_and_that_is_said(distilled, trained, says):
    request, adapter, about = asked_with_adapter_of(trained, distilled, "flux2", 50, 4.0)
    assert (request.steps, request.guidance) == (4, 0)
    assert (says in about[0]) if says else not about
    other = Adapter({}, adapter.info.model_copy(update={"family": "flux"}))
    for wrong in (other, replace(adapter, beside=(other,))):
        with pytest.raises(AdapterError, match="of the family flux, and"):
            prepared(distilled, CAPTION, adapter=wrong)


# -- names --------------------------------------------------------------------------------------


def test_a_kohya_export_is_read_by_diffusers_as_the_same_update(clean):
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux2_lora_to_diffusers
    from safetensors.torch import load

    names, truth = clean.names, random_lora(clean)
    (data,) = export(truth, "kohya", names, dtype=torch.float32).values()
    read = _convert_kohya_flux2_lora_to_diffusers(load(data))
    assert read.keys() == {f"transformer.{key}" for key in truth}
    assert all(torch.equal(read[f"transformer.{key}"], truth[key]) for key in truth)
    assert names.header["modelspec.architecture"] == "flux-2-klein-4b/lora"


def test_files_in_black_forest_labs_names_are_read(clean):
    """ai-toolkit's and ComfyUI's: q, k and v in one, `diffusion_model.` before."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_flux2_lora_to_diffusers,
    )

    from iclora.adapter.formats import fit, read_tensors

    rng = torch.Generator().manual_seed(0)
    names, raw = clean.names, {}
    for fused, place in names.fused.items():
        if "blocks." not in fused:
            continue
        wide = names.linears[place.parts[0]][1]
        raw[f"diffusion_model.{fused}.lora_A.weight"] = torch.randn(2, wide, generator=rng)
        raw[f"diffusion_model.{fused}.lora_B.weight"] = torch.randn(
            names.width(place), 2, generator=rng
        )
    ours = fit(read_tensors(raw, {}, None, "x").weights, names, "tiny-klein")
    other = _convert_non_diffusers_flux2_lora_to_diffusers(dict(raw))
    assert {f"transformer.{key}" for key in ours} == other.keys()
    assert all(torch.equal(other[f"transformer.{key}"], value) for key, value in ours.items())
