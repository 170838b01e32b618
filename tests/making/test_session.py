"""Sampling against diffusers' own pipelines, given panels, requests that repeat themselves."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from iclora.adapter import Adapter, attach
from iclora.errors import AdapterError, CaptionError, ModelError, SettingsError
from iclora.making.asks import load_adapter_of
from iclora.making.request import Request
from iclora.making.sampling import panel_noise
from iclora.making.session import Ask, Session, complete, generate
from iclora.models import flow, load_model
from iclora.models.base import DiffusionModel, Given, Sampling
from iclora.progress import Cancelled, Progress
from iclora.sets.caption import JointCaption
from iclora.sets.layout import Layout, token_mask
from tests.conftest import CAPTION, picture
from tests.making.helpers import SIZE, STORY, carry_noise, prepared, run, told


@pytest.fixture(scope="module")
def pipeline(tiny):
    return diffusers.FluxPipeline.from_pretrained(tiny.folder, dtype=torch.float32)


def test_generate_equals_diffusers_fluxpipeline(clean, pipeline, monkeypatch):
    """With texts as long as both read by default."""
    monkeypatch.setattr(clean, "max_text_tokens", 512)
    made = generate(clean, CAPTION, seed=7, **told())
    noise = panel_noise(made.request.layout, made.request.seeds, clean.grid, clean.channels)
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
    request, _ = prepared(clean, CAPTION, seed=3, **told(steps=20))
    noise = panel_noise(request.layout, request.seeds, clean.grid, clean.channels)
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
        max_sequence_length=clean.max_text_tokens,
    ).images
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("given", [(1,), (2,), (1, 3)])
def test_complete_equals_fluxinpaintpipeline_at_strength_1(clean, pipeline, given, monkeypatch):
    panels = {n: picture(96, 64, seed=n) for n in given}
    request, _ = prepared(clean, CAPTION, seed=5, given=panels, **told())
    layout = request.layout
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
        max_sequence_length=clean.max_text_tokens,
    ).images[0]
    # Panels one below the other: their tokens are the canvas's, row by row.
    ours = torch.cat(run(clean, request, panels).latents).flatten(0, 1)
    assert (ours - theirs).abs().max() < 1e-4


def test_given_panels_come_back_unchanged_after_denoising(clean):
    panels = {1: picture(96, 64, 1), 3: picture(96, 64, 3)}
    made = complete(clean, CAPTION, panels, **told())
    for n, image in panels.items():
        box = made.request.layout.boxes[n - 1]
        assert made.panels[n - 1].tobytes() == image.tobytes()
        assert made.composite.crop(box.corners).tobytes() == image.tobytes()
    assert made.panels[1].tobytes() == made.composite.crop((0, 64, 96, 128)).tobytes()


@pytest.mark.parametrize("given", [{1}, {2}, {3}, {1, 2}, {1, 3}, {2, 3}])
def test_every_subset_of_given_panels_completes_to_a_different_missing_panel(clean, given):
    panels = {n: picture(96, 64, n) for n in given}
    one = complete(clean, CAPTION, panels, **told(steps=2))
    two = complete(clean, CAPTION, {n: picture(96, 64, n + 50) for n in given}, **told(steps=2))
    for n in {1, 2, 3} - given:
        assert one.panels[n - 1].tobytes() != two.panels[n - 1].tobytes()


def test_a_given_panel_keeps_its_own_size_where_the_grid_allows(clean):
    made = complete(clean, CAPTION, {2: picture(544, 240, 1)}, recipe=STORY, steps=1)
    assert made.request.layout.sizes == ((544, 272), (544, 240), (544, 272))


def test_a_given_panel_off_the_grid_comes_back_as_given_and_fitted_in_the_composite(clean):
    image = picture(541, 243, 1)
    request, notes = prepared(clean, CAPTION, recipe=STORY, given={2: image}, steps=1)
    assert request.layout.boxes[1].width % 16 == 0
    assert request.layout.stretch([(2, 1), image.size, (2, 1)])[1] < 1.03
    assert "541x243" in notes[0]
    request, _ = prepared(clean, CAPTION, given={2: image}, **told(size=(96, 128)))
    # 96x128 in three rows is 48, 48, 32 px high: near enough to 2.2:1
    made = run(clean, request, {2: image})
    assert made.panels[1].tobytes() == image.tobytes()
    assert made.composite.crop(request.layout.boxes[1].corners).size == (96, 48)


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


def test_completing_with_nothing_given_is_refused(tiny):
    with pytest.raises(SettingsError, match="no panel is given"):
        complete(tiny, CAPTION, {}, **told())


# -- modes of completing ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sdedit", "resample", "boost", "clean"])
def test_given_panels_come_back_byte_for_byte_in_every_mode(clean, mode):
    panels = {1: picture(96, 64, 1), 3: picture(96, 64, 3)}
    made = complete(clean, CAPTION, panels, mode=mode, **told())
    assert made.request.mode == mode
    for number, image in panels.items():
        assert made.panels[number - 1].tobytes() == image.tobytes()
        box = made.request.layout.boxes[number - 1].corners
        assert made.composite.crop(box).tobytes() == image.tobytes()


def test_every_mode_paints_something_else(clean):
    given = {2: picture(96, 64, 1)}
    made = {
        mode: complete(clean, CAPTION, given, mode=mode, **told()).panels[0].tobytes()
        for mode in ("sdedit", "resample", "boost", "clean")
    }
    assert len(set(made.values())) == 4


def test_repeated_steps_paint_something_else_without_any_given_panel(clean):
    plain, repeated = (
        generate(clean, CAPTION, **told(resample=times)).composite.tobytes() for times in (0, 1)
    )
    assert plain != repeated


def test_with_no_given_panel_clean_mode_is_generating(clean):
    request, _ = prepared(clean, CAPTION, seed=4, **told())
    plain = run(clean, request)
    other = run(clean, request.model_copy(update={"mode": "clean", "isolate_given": True}))
    assert other.composite.tobytes() == plain.composite.tobytes()


def test_a_boost_of_one_is_sdedit(clean):
    given = {1: picture(96, 64, 1)}
    plain, boosted = (
        complete(clean, CAPTION, given, **told(mode=mode, **more))
        for mode, more in (("sdedit", {}), ("boost", {"boost": 1.0 + 1e-9}))
    )
    for one, other in zip(plain.latents, boosted.latents, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("given", [(1,), (3,), (1, 2)])
def test_cached_keys_and_values_give_what_computing_them_each_time_gives(clean, given):
    carry_noise(clean)
    layout = STORY.canvas.resized(*SIZE, clean.grid)
    mask = torch.from_numpy(token_mask(layout, [n - 1 for n in given], clean.grid)).flatten()
    text = [clean.encode_text(CAPTION)]
    noise = torch.randn(1, len(mask), clean.channels, generator=flow.generator(0))
    x0 = torch.randn(1, len(mask), clean.channels, generator=flow.generator(1))
    made = []
    for cache in (None, []):
        how = Given(mask, clean=True, isolated=True, cache=cache)
        with torch.no_grad():
            made.append(
                flow.denoise(
                    lambda z, s, how=how: clean.velocity(
                        z, torch.tensor([s]), text, SIZE, 3.5, how
                    ),
                    noise,
                    clean.sigmas(6, len(mask)),
                    given=mask,
                    x0=x0,
                    clean=True,
                )
            )
    assert len(cache) == clean.blocks
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


# -- the session --------------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch):
    """The names of parts in the order of their loading; fails if two are loaded together."""
    names, alive = [], {}
    kinds = {"text": transformers.T5EncoderModel, "denoiser": diffusers.FluxTransformer2DModel}

    def watch(name, kind):
        load = kind.from_pretrained

        def watched(*args, **settings):
            names.append(name)
            others = [other for other, ref in alive.items() if other != name and ref() is not None]
            assert not others, f"{name} is loaded beside {others}"
            part, info = load(*args, **settings)
            alive[name] = weakref.ref(part)
            return part, info

        monkeypatch.setattr(kind, "from_pretrained", watched)

    for name, kind in kinds.items():
        watch(name, kind)
    return names


def test_text_encoders_and_denoiser_are_never_loaded_together(loads):
    model = load_model("tiny", device="cpu")
    asks = [Ask(prepared(model, CAPTION, seed=n, **told(steps=1))[0]) for n in (0, 1)]
    session = Session(model, free=True)
    assert [number for number, _ in session.make(asks)] == [0, 1]
    assert loads == ["text", "denoiser"]
    list(session.make(asks))
    assert loads == ["text", "denoiser"], "texts are encoded once in a session's life"
    other = Ask(prepared(model, CAPTION.replace("Ana", "Bo"), **told(steps=1))[0])
    list(session.make([other]))
    assert loads == ["text", "denoiser"] * 2


def test_parts_that_rest_come_back_with_the_same_weights_and_without_an_adapter(
    clean, lora, monkeypatch
):
    adapter, loads = Adapter.load(lora), []
    for kind in (transformers.T5EncoderModel, diffusers.FluxTransformer2DModel):

        def counted(*args, load=kind.from_pretrained, name=kind.__name__, **settings):
            loads.append(name)
            return load(*args, **settings)

        monkeypatch.setattr(kind, "from_pretrained", counted)

    def made(session, prompt, **more):
        request, _ = prepared(session.model, prompt, **more, **told(steps=1))
        ask = Ask(request, adapter=more.get("adapter"))
        (found,) = (each for _, each in session.make([ask]))
        return found.composite.tobytes()

    other = CAPTION.replace("Ana", "Bo")
    plain = made(Session(clean), other)
    loads.clear()
    resting = load_model("tiny", device="cpu")
    resting.rests, resting.max_text_tokens = True, clean.max_text_tokens
    session = Session(resting, free=True)
    assert made(session, CAPTION, adapter=adapter) != plain
    assert made(session, other) == plain
    assert sorted(loads) == ["FluxTransformer2DModel", "T5EncoderModel"]
    # Whoever wants the room gets it.
    resting.rests = False
    resting.release("text", "denoiser")
    made(session, CAPTION.replace("Ana", "Cy"))
    assert len(loads) == 4


def test_parts_that_others_loaded_are_freed_as_well(loads):
    model = load_model("tiny", device="cpu")
    ask = Ask(prepared(model, CAPTION, **told(steps=1))[0])
    session = Session(model, free=True)
    assert model.denoiser is not None
    session.encode([ask.request])
    model.encode_text("read by somebody else")
    list(session.make([ask]))
    assert loads == ["denoiser", "text", "text", "denoiser"]


def test_on_a_cpu_nothing_is_freed_unless_asked(loads):
    model = load_model("tiny", device="cpu")
    assert not Session(model).free
    assert Session(model, free=True).free


def test_asks_alike_share_batches_and_an_adapter_is_loaded_once(clean, lora, monkeypatch):
    adapter = Adapter.load(lora)
    mine = {"adapter": adapter, **told(steps=1)}
    asks = [
        Ask(prepared(clean, CAPTION, **told(steps=1))[0]),
        Ask(prepared(clean, CAPTION, **mine)[0], adapter=adapter),
        Ask(prepared(clean, CAPTION, seed=1, **told(steps=2))[0]),
        Ask(prepared(clean, CAPTION, seed=2, **told(steps=1))[0]),
        Ask(prepared(clean, CAPTION, seed=3, **mine)[0], adapter=adapter),
    ]
    batches, carried = [], []
    velocity = clean.velocity

    def watched(z, *args):
        batches.append(len(z))
        carried.append(clean.applied is not None)
        return velocity(z, *args)

    monkeypatch.setattr(clean, "velocity", watched)
    made = list(Session(clean).make(asks, together=4))
    assert [number for number, _ in made] == [0, 3, 2, 1, 4]
    assert batches == [2, 1, 1, 2]
    assert carried == [False] * 3 + [True]
    assert all(each.request.same_pixels(asks[number].request) for number, each in made)
    assert [each.request.together for _, each in made] == [2, 2, 1, 2, 2]


def test_every_step_is_told_and_cancelling_stops_between_two(clean):
    asks = [Ask(prepared(clean, CAPTION, seed=n, **told(steps=3))[0]) for n in (0, 1)]
    seen = []
    progress = Progress(seen.append)
    list(Session(clean, progress).make(asks))
    assert [(e.what, e.done, e.total) for e in seen] == [("encoding texts", 1, 1)] + [
        ("painting", n, 6) for n in range(1, 7)
    ]
    assert [e.note for e in seen[1:]] == ["set 1 of 2"] * 3 + ["set 2 of 2"] * 3

    def stop(event):
        seen.append(event)
        if event.done == 4:
            progress.cancel()

    seen.clear()
    progress, made = Progress(stop), []
    with pytest.raises(Cancelled):
        made.extend(number for number, _ in Session(clean, progress).make(asks))
    assert made == [0]
    assert seen[-1].done == 4


def test_repeated_steps_are_counted(clean):
    seen = []
    ask = Ask(prepared(clean, CAPTION, resample=2, **told(steps=4))[0])
    list(Session(clean, Progress(seen.append)).make([ask]))
    painting = [event for event in seen if event.what == "painting"]
    assert [e.done for e in painting] == list(range(1, painting[0].total + 1))


def test_one_batch_of_sets_is_in_memory(clean):
    asks = [Ask(prepared(clean, CAPTION, seed=n, **told(steps=1))[0]) for n in range(4)]
    seen = []
    for _, made in Session(clean).make(asks):
        seen.append(weakref.ref(made))
        del made
        gc.collect()
        assert sum(ref() is not None for ref in seen) == 0


def test_a_base_guided_by_two_passes_reads_the_negative_prompt(clean, monkeypatch):
    monkeypatch.setattr(clean, "sampling", Sampling(steps=3, guidance=4.0, guided="two-pass"))
    seen = []
    velocity = clean.velocity

    def two_passes(z, sigma, texts, size, guidance, given, unguided, *more):
        found = velocity(z, sigma, texts, size, guidance, given, None, *more)
        (_, step) = more
        seen.append((texts, unguided, step.schedule, step.schedule.nbytes))
        return found

    monkeypatch.setattr(clean, "velocity", two_passes)
    for negative in ("", "rain"):
        request, notes = prepared(clean, CAPTION, negative=negative, **told(steps=1))
        assert (request.negative, notes) == (negative, [])
        session = Session(clean)
        list(session.make([Ask(request)]))
        texts, unguided, schedule, kept = seen.pop()
        assert kept > schedule.nbytes == 0, "what a sampling keeps is let go"
        assert torch.equal(texts[0]["prompt"], clean.encode_text(CAPTION)["prompt"])
        assert torch.equal(unguided[0]["prompt"], clean.encode_text(negative)["prompt"])


def test_asks_that_cannot_be_met_are_refused_before_any_of_them_is_made(clean, lora):
    request, _ = prepared(clean, CAPTION, **told(steps=1))
    session = Session(clean)
    with pytest.raises(SettingsError, match=r"pictures of panels \[1\]"):
        session.make([Ask(request), Ask(request, {1: picture(96, 64)})])
    with pytest.raises(AdapterError, match="another adapter"):
        session.make([Ask(request), Ask(request, adapter=Adapter.load(lora))])
    other = request.model_copy(update={"base_fingerprint": "0" * 64})
    with pytest.raises(SettingsError, match="not those this request was made with"):
        session.make([Ask(request), Ask(other)])


def test_an_adapter_that_does_not_fit_is_refused_before_weights_load_or_a_text_is_encoded(
    lora, loads
):
    known, model = Adapter.load(lora), load_model("tiny", device="cpu")
    request, _ = prepared(model, CAPTION, adapter=known, **told())

    def refused(says, module, wide=64, family="flux"):
        halves = {"A": torch.ones(2, wide), "B": torch.ones(64, 2)}
        more = {f"{module}.lora_{half}.weight": value for half, value in halves.items()}
        info = known.info.model_copy(update={"family": family})
        bad = replace(known, weights={**known.weights, **more}, info=info)
        with pytest.raises(AdapterError, match=says) as caught:
            prepared(model, CAPTION, adapter=bad, **told())
        assert caught.value.setting == "adapter"
        # Of a request that was made before, as `reroll` has one.
        with pytest.raises(AdapterError, match=says):
            Session(model).make([Ask(request, adapter=known), Ask(request, adapter=bad)])
        return bad

    to_q = "transformer_blocks.{}.attn.to_q".format
    refused("of the family flux2, and", to_q(0), family="flux2")
    others = [refused("64 wide, not 3072", to_q(0), 3072), refused("does not exist", to_q(7))]
    assert loads == []
    for bad in others:
        with pytest.raises(AdapterError, match="does not fit"):
            bad.apply(model)


def test_a_family_whose_weights_alone_tell_its_modules_is_not_loaded_to_check_an_adapter(
    lora, loads
):
    model = load_model("tiny", device="cpu")
    model.__class__ = type("Late", (type(model),), {"names": DiffusionModel.names})
    Adapter.load(lora).check(model)
    assert loads == []


@pytest.mark.parametrize("part", ["adapter", "vae"])
def test_numbers_that_are_not_finite_are_an_error_and_no_black_picture(
    clean, lora, monkeypatch, part
):
    adapter = Adapter.load(lora)
    if part == "adapter":
        huge = {name: torch.full_like(value, 1e30) for name, value in adapter.weights.items()}
        adapter = Adapter(huge, adapter.info)
    else:
        # As FLUX.1's VAE does in fp16.
        broken = torch.full((1, 3, SIZE[1], SIZE[0]), torch.nan)
        monkeypatch.setattr(type(clean._vae), "decode", lambda *_, **__: (broken,))
    with pytest.raises((AdapterError, ModelError), match="not finite") as refused:
        generate(clean, CAPTION, adapter=adapter, **told(steps=1))
    assert refused.value.setting == ("adapter" if part == "adapter" else "dtype")


# -- texts that are read apart ------------------------------------------------------------------


def apart(path, lora, kind="isolated"):
    """An adapter that was trained with such texts."""
    adapter = Adapter.load(lora)
    file = path / f"{kind}.safetensors"
    Adapter(adapter.weights, adapter.info.model_copy(update={"text": kind})).save(file)
    return Adapter.load(file)


def test_an_adapter_trained_on_texts_apart_makes_sets_so_and_another_wish_is_said(
    clean, lora, tmp_path
):
    adapter = apart(tmp_path, lora)
    request, notes = prepared(clean, CAPTION, adapter=adapter, **told(steps=1))
    assert (request.text, notes) == ("isolated", [])
    assert request.panel_texts == JointCaption.parse(CAPTION, STORY.markers).texts("isolated")
    other, notes = prepared(clean, CAPTION, adapter=adapter, text="joint", **told(steps=1))
    assert (other.text, other.panel_texts) == ("joint", ())
    assert any("trained with `text` isolated" in note for note in notes)
    plain, notes = prepared(clean, CAPTION, adapter=Adapter.load(lora), **told(steps=1))
    assert (plain.text, notes) == ("joint", [])


@pytest.mark.parametrize("mode", ["sdedit", "boost", "clean"])
def test_panels_read_their_own_words_in_every_mode_and_a_request_repeats_it(clean, mode, tmp_path):
    given = {2: picture(96, 64, 1)}
    how = told(mode=mode, text="isolated")
    made = complete(clean, CAPTION, given, **how)
    joint = complete(clean, CAPTION, given, **told(mode=mode))
    assert made.panels[0].tobytes() != joint.panels[0].tobytes()
    assert made.panels[1].tobytes() == given[2].tobytes()
    where = made.save(tmp_path / "0001")
    request, pictures = Request.load(where / "request.json")
    assert request.panel_texts == made.request.panel_texts
    again = run(clean, request, pictures)
    assert again.composite.tobytes() == made.composite.tobytes()


def test_words_beyond_the_bases_budget_are_read_if_panels_read_their_own(clean, monkeypatch):
    monkeypatch.setattr(clean, "max_text_tokens", 512)
    long = CAPTION.replace("sails out", "sails out " + "and on " * 140)
    long = long.replace("sails home", "sails home " + "far and away " * 60)
    with pytest.raises(CaptionError, match=r"(?s)tokens long.*`text` to isolated"):
        prepared(clean, long, **told())
    request, _ = prepared(clean, long, text="isolated", **told(steps=1))
    made = run(clean, request)
    other, _ = prepared(clean, long[:-14] + " at night", text="isolated", **told(steps=1))
    assert run(clean, other).panels[2].tobytes() != made.panels[2].tobytes()
    with pytest.raises(CaptionError, match="panel 3"):
        prepared(clean, long + " far" * 900, text="isolated", **told())


def test_without_markers_every_panel_reads_the_prompt(clean):
    request, notes = prepared(clean, "a day at sea", text="isolated", **told(steps=1))
    assert request.panel_texts == ("[MOVIE-SHOTS] a day at sea",) * 3
    assert any("told the same" in note for note in notes)
