"""Sampling against diffusers' own pipelines, known panels, requests that repeat themselves."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from iclora.adapter import Adapter, attach
from iclora.errors import AdapterError, SettingsError
from iclora.making.generate import complete, generate, make_preview, panel_noise, run
from iclora.making.request import Request, load_adapter_of, prepare
from iclora.models import flow
from iclora.models.base import Given
from iclora.sets.layout import Layout, token_mask
from iclora.sets.recipe import load_recipe
from tests.conftest import CAPTION, picture

STORY = load_recipe("film-storyboard")
SIZE = (96, 192)


def wish(**more):
    return {"recipe": STORY, "size": SIZE, "steps": 4, **more}


@pytest.fixture(scope="module")
def pipeline(tiny):
    return diffusers.FluxPipeline.from_pretrained(tiny.folder, dtype=torch.float32)


def test_generate_equals_diffusers_fluxpipeline(clean, pipeline):
    made = generate(clean, CAPTION, seed=7, **wish())
    noise = panel_noise(made.request.canvas, made.request.seeds, clean.grid, clean.channels)
    theirs = pipeline(
        made.request.prompt,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=4,
        guidance_scale=3.5,
        latents=noise,
        output_type="np",
    ).images[0]
    ours = np.asarray(made.composite) / 255
    assert np.abs(ours - theirs).max() <= 0.5 / 255 + 1e-4


def test_denoised_latents_equal_fluxpipelines_to_1e_4(clean, pipeline):
    request, _ = prepare(clean, CAPTION, seed=3, **wish(steps=20))
    noise = panel_noise(request.canvas, request.seeds, clean.grid, clean.channels)
    text = clean.encode_text(request.prompt)
    with torch.no_grad():
        ours = flow.denoise(
            lambda z, s: clean.velocity(z, torch.tensor([s]), [text], SIZE, 3.5),
            noise,
            clean.sigmas(20, noise.shape[1]),
        )
    theirs = pipeline(
        request.prompt,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=20,
        guidance_scale=3.5,
        latents=noise,
        output_type="latent",
    ).images
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("known", [(1,), (2,), (1, 3)])
def test_complete_equals_fluxinpaintpipeline_at_strength_1(clean, pipeline, known, monkeypatch):
    panels = {n: picture(96, 64, seed=n) for n in known}
    request, _ = prepare(clean, CAPTION, seed=5, known=panels, **wish())
    layout = request.canvas
    # diffusers draws from the VAE's posterior where we take its mode, and encodes the canvas with
    # a placeholder where we encode each panel alone: give it the same latents.
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )
    latents = torch.zeros(1, 16, SIZE[1] // 8, SIZE[0] // 8)
    mask = Image.new("L", SIZE, 255)
    inpaint = diffusers.FluxInpaintPipeline(**pipeline.components)
    for n, image in panels.items():
        box = layout.boxes[n - 1]
        pixels = inpaint.image_processor.preprocess(image)
        top, left = box.top // 8, box.left // 8
        latents[:, :, top : top + box.height // 8, left : left + box.width // 8] = (
            inpaint._encode_vae_image(pixels, None)
        )
        mask.paste(0, box.corners)
    noise = panel_noise(layout, request.seeds, clean.grid, clean.channels)
    noise = inpaint._unpack_latents(noise, SIZE[1], SIZE[0], 8)
    theirs = inpaint(
        request.prompt,
        image=latents,
        masked_image_latents=latents,
        mask_image=mask,
        width=SIZE[0],
        height=SIZE[1],
        strength=1.0,
        num_inference_steps=4,
        guidance_scale=3.5,
        latents=noise,
        output_type="latent",
    ).images[0]
    denoised = []
    decode = clean.decode
    monkeypatch.setattr(clean, "decode", lambda z, *a: denoised.append(z) or decode(z, *a))
    run(clean, request, panels)
    assert (denoised[0] - theirs).abs().max() < 1e-4


def test_known_panels_come_back_unchanged_after_denoising(clean):
    panels = {1: picture(96, 64, 1), 3: picture(96, 64, 3)}
    made = complete(clean, CAPTION, panels, **wish())
    for n, image in panels.items():
        box = made.request.canvas.boxes[n - 1]
        assert made.panels[n - 1].tobytes() == image.tobytes()
        assert made.composite.crop(box.corners).tobytes() == image.tobytes()
    assert made.panels[1].tobytes() == made.composite.crop((0, 64, 96, 128)).tobytes()


@pytest.mark.parametrize("known", [{1}, {2}, {3}, {1, 2}, {1, 3}, {2, 3}])
def test_every_subset_of_known_panels_completes_to_a_different_unknown_panel(clean, known):
    panels = {n: picture(96, 64, n) for n in known}
    one = complete(clean, CAPTION, panels, **wish(steps=2))
    two = complete(clean, CAPTION, {n: picture(96, 64, n + 50) for n in known}, **wish(steps=2))
    for n in {1, 2, 3} - known:
        assert one.panels[n - 1].tobytes() != two.panels[n - 1].tobytes()


def test_a_known_panel_keeps_its_own_size_where_the_grid_allows(clean):
    made = complete(clean, CAPTION, {2: picture(544, 240, 1)}, recipe=STORY, steps=1)
    assert made.request.canvas.sizes == ((544, 272), (544, 240), (544, 272))


def test_a_known_panel_off_the_grid_comes_back_as_given_and_fitted_in_the_composite(clean):
    image = picture(541, 243, 1)
    request, notes = prepare(clean, CAPTION, recipe=STORY, known={2: image}, steps=1)
    assert request.canvas.boxes[1].width % 16 == 0
    assert request.canvas.stretch([(2, 1), image.size, (2, 1)])[1] < 1.03
    assert "541x243" in notes[0]
    request, _ = prepare(clean, CAPTION, known={2: image}, **wish(size=(96, 128)))
    # 96x128 in three rows is 48, 48, 32 px high: near enough to 2.2:1
    made = run(clean, request, {2: image})
    assert made.panels[1].tobytes() == image.tobytes()
    assert made.composite.crop(request.canvas.boxes[1].corners).size == (96, 48)


def test_changing_one_panel_seed_changes_the_noise_of_that_panel_alone(tiny):
    layout = STORY.canvas.resized(*SIZE, 16)
    one = panel_noise(layout, (1, 2, 3), 16, 64).view(12, 6, 64)
    two = panel_noise(layout, (1, 9, 3), 16, 64).view(12, 6, 64)
    assert torch.equal(one[:4], two[:4])
    assert torch.equal(one[8:], two[8:])
    assert not torch.equal(one[4:8], two[4:8])


def test_panel_noise_is_standard_normal_and_fills_gaps_between_free_boxes():
    layout = Layout.free([(0, 0, 256, 128), (0, 256, 256, 256)], 256, 512)
    noise = panel_noise(layout, (1, 2), 16, 64)
    assert noise.shape == (1, 512, 64)
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert not bool((noise == 0).all(-1).any())


def test_an_adapter_carries_its_recipe_so_generate_needs_only_words(clean, tmp_path):
    from iclora.adapter import AdapterInfo

    parameters = attach(clean, rank=2, alpha=2, targets="attention", seed=0)
    layout = STORY.canvas.resized(*SIZE, 16)
    info = AdapterInfo(
        base="tiny",
        family="flux",
        rank=2,
        alpha=2,
        targets="attention",
        steps=1,
        recipe=STORY,
        layout=layout.to_json(),
    )
    Adapter({k: v + 0.1 for k, v in parameters.items()}, info).save(tmp_path / "a.safetensors")
    adapter = Adapter.load(tmp_path / "a.safetensors")
    made = generate(clean, CAPTION, adapter=adapter, steps=2)
    assert made.composite.size == SIZE
    plain = generate(clean, CAPTION, recipe=STORY, size=SIZE, steps=2)
    assert made.composite.tobytes() != plain.composite.tobytes()
    none = generate(clean, CAPTION, adapter=adapter, strength=0.0, steps=2)
    assert none.composite.tobytes() == plain.composite.tobytes()
    # What was made in Python knows its adapter as well, and repeats with it or not at all.
    request, _ = Request.load(made.save(tmp_path / "0001") / "request.json")
    assert request.adapter == str(tmp_path / "a.safetensors")
    assert load_adapter_of(request).sha256 == adapter.sha256
    with pytest.raises(AdapterError, match="does not say where"):
        load_adapter_of(request.model_copy(update={"adapter": None}))


def test_completing_with_nothing_known_is_refused(tiny):
    with pytest.raises(SettingsError, match="no panel is known"):
        complete(tiny, CAPTION, {}, **wish())


def test_a_preview_shows_the_base_beside_the_adapter(clean, tmp_path):
    draw = make_preview(clean, STORY, [CAPTION], resolution=96, seed=0, folder=tmp_path)
    parameters = attach(clean, rank=2, alpha=2, targets="attention", seed=0)
    draw(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.2)
    draw(2)
    one, two = (Image.open(tmp_path / f"step-00000{i}.png").convert("RGB") for i in (1, 2))
    box = STORY.canvas.fit(STORY.canvas.sizes, 96**2, 16)
    base, adapted = (16, 40), (16 + box.width + 16, 40)

    def cut(sheet, at):
        return sheet.crop((*at, at[0] + box.width, at[1] + box.height)).tobytes()

    assert cut(one, base) == cut(two, base)
    assert cut(one, adapted) == cut(one, base)  # B is still zero
    assert cut(two, adapted) != cut(two, base)


# -- modes of completing ------------------------------------------------------------------------


def carry_noise(model, seed=0):
    """A LoRA that changes what the base does, so that nothing is zero."""
    parameters = attach(model, rank=2, alpha=2, targets="all", seed=0)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.1)


@pytest.mark.parametrize("mode", ["sdedit", "resample", "boost", "clean"])
def test_known_panels_come_back_byte_for_byte_in_every_mode(clean, mode):
    panels = {1: picture(96, 64, 1), 3: picture(96, 64, 3)}
    made = complete(clean, CAPTION, panels, mode=mode, **wish())
    assert made.request.mode == mode
    for number, image in panels.items():
        assert made.panels[number - 1].tobytes() == image.tobytes()
        box = made.request.canvas.boxes[number - 1].corners
        assert made.composite.crop(box).tobytes() == image.tobytes()


def test_every_mode_paints_something_else(clean):
    known = {2: picture(96, 64, 1)}
    made = {
        mode: complete(clean, CAPTION, known, mode=mode, **wish()).panels[0].tobytes()
        for mode in ("sdedit", "resample", "boost", "clean")
    }
    assert len(set(made.values())) == 4


def test_repeated_steps_paint_something_else_without_any_known_panel(clean):
    plain, repeated = (
        generate(clean, CAPTION, **wish(resample=times)).composite.tobytes() for times in (0, 1)
    )
    assert plain != repeated


def test_with_no_known_panel_clean_mode_is_generating(clean):
    request, _ = prepare(clean, CAPTION, seed=4, **wish())
    plain = run(clean, request)
    other = run(clean, request.model_copy(update={"mode": "clean", "isolate_given": True}))
    assert other.composite.tobytes() == plain.composite.tobytes()


def test_a_boost_of_one_is_sdedit(clean):
    known = {1: picture(96, 64, 1)}
    plain, boosted = (
        complete(clean, CAPTION, known, **wish(mode=mode, **more))
        for mode, more in (("sdedit", {}), ("boost", {"boost": 1.0 + 1e-9}))
    )
    for one, other in zip(plain.latents, boosted.latents, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("known", [(1,), (3,), (1, 2)])
def test_kept_keys_and_values_give_what_computing_them_each_time_gives(clean, known):
    carry_noise(clean)
    layout = STORY.canvas.resized(*SIZE, clean.grid)
    mask = torch.from_numpy(token_mask(layout, [n - 1 for n in known], clean.grid)).flatten()
    text = [clean.encode_text(CAPTION)]
    noise = torch.randn(1, len(mask), clean.channels, generator=flow.generator(0))
    x0 = torch.randn(1, len(mask), clean.channels, generator=flow.generator(1))
    made = []
    for kept in (None, []):
        given = Given(mask, clean=True, isolated=True, cache=kept)
        with torch.no_grad():
            made.append(
                flow.denoise(
                    lambda z, s, given=given: clean.velocity(
                        z, torch.tensor([s]), text, SIZE, 3.5, given
                    ),
                    noise,
                    clean.sigmas(6, len(mask)),
                    given=mask,
                    x0=x0,
                    clean=True,
                )
            )
    assert len(kept) == clean.blocks
    torch.testing.assert_close(made[0], made[1], atol=1e-5, rtol=1e-5)


def test_isolated_panels_do_not_see_what_the_others_show(clean):
    carry_noise(clean)
    layout = STORY.canvas.resized(*SIZE, clean.grid)
    mask = torch.from_numpy(token_mask(layout, [0], clean.grid)).flatten()
    kept = []
    for seed in (0, 1):
        z = torch.randn(1, len(mask), clean.channels, generator=flow.generator(seed))
        z[:, mask] = 1.0
        kept.append([])
        with torch.no_grad():
            clean.velocity(
                z,
                torch.tensor([0.7 - 0.5 * seed]),
                [clean.encode_text(CAPTION)],
                SIZE,
                3.5,
                Given(mask, clean=True, isolated=True, cache=kept[seed]),
            )
    for one, other in zip(*kept, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
