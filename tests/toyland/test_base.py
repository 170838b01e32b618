"""The base that ships: small enough, of FLUX.1's parts, and evaluated by what users run."""

import random
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from iclora.evaluate.setup import Arm
from iclora.making.made import GeneratedSet
from iclora.making.session import complete, generate
from iclora.models import load_model
from iclora.settings import SampleSettings
from iclora.toyland.judge import read
from iclora.toyland.measuring import given_cases, measure_arms, prompt_cases
from iclora.toyland.shipped import klein_folder
from iclora.toyland.tasks import TASKS, draw_set
from workshop.toyland.figures import full_cases, unrelated

WANTED = ("kind", "colour", "scene")


def test_base_and_captioner_together_weigh_at_most_40_mb_and_hold_no_pickle():
    home = Path(str(files("iclora") / "toyland" / "weights"))
    folders = (home / "toyland-base", home / "toyland-captioner")
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in found) <= 40 * 2**20
    assert {path.suffix for path in found} <= {".json", ".safetensors", ".txt", ".model", ".jinja"}


def test_the_base_in_kleins_layout_weighs_at_most_15_mb_and_holds_no_pickle():
    found = [path for path in klein_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in found) <= 15e6
    assert {path.suffix for path in found} <= {".json", ".safetensors", ".jinja"}


def test_the_base_in_kleins_layout_paints_a_storyboard_as_it_is_told():
    """Of panels that have nothing to do with each other, so that words alone decide."""
    task = TASKS["film-storyboard"]
    model, case = load_model(str(klein_folder()), device="cpu"), full_cases(task, 1)[0]
    assert (model.family, model.grid, model.channels) == ("flux2", 8, 32)
    canvas, _ = unrelated(task, random.Random(f"full {task.recipe} 0"))
    made = generate(model, case.prompt, recipe=task.small_recipe, seed=case.seed, steps=10)
    for panel, told in zip(made.panels, canvas.panels, strict=True):
        seen = read(panel, task.topic)
        assert {t: seen[t] for t in WANTED} == {t: told.traits[t] for t in WANTED}


def test_toyland_is_a_flux_of_8_px_tokens_with_a_guidance_embedding(toyland):
    assert (toyland.family, toyland.grid, toyland.channels) == ("flux", 8, 32)
    assert toyland.denoiser.config.guidance_embeds


def test_a_drawn_storyboard_survives_the_autoencoder(toyland):
    canvas, _ = draw_set(TASKS["film-storyboard"], random.Random(0))
    pixels = np.asarray(canvas.render())
    height, width, _ = pixels.shape
    decoded = toyland.decode(toyland.encode_image(pixels), width, height).astype(float)
    error = np.square(decoded - pixels).mean()
    assert 10 * np.log10(255**2 / error) > 30


@pytest.mark.parametrize("given", [False, True])
def test_sets_measured_together_are_those_that_generate_and_complete_make(toyland, given, tmp_path):
    task = TASKS["film-storyboard"]
    cases = given_cases(task, 2) if given else prompt_cases(task, 1, 2)
    arm, sampling = Arm("base"), SampleSettings(steps=3)
    setup, _ = measure_arms(toyland, task, [arm], cases, tmp_path, sampling)
    for number, case in enumerate(cases):
        ours = GeneratedSet.load(setup.folder(arm, number))
        options = {"recipe": task.small_recipe, "seed": case.seed, "steps": 3}
        theirs = (
            complete(toyland, case.prompt, case.given, **options)
            if given
            else generate(toyland, case.prompt, **options)
        )
        assert ours.request.same_pixels(theirs.request)
        difference = np.asarray(ours.composite, int) - np.asarray(theirs.composite, int)
        assert np.abs(difference).max() <= 2
