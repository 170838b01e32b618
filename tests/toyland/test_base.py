"""The base that ships: small enough, of FLUX.1's parts, and evaluated by what users run."""

import random
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from iclora.making.session import complete, generate
from iclora.models import load_model
from iclora.toyland.evaluate import _Wish, make
from iclora.toyland.tasks import TASKS, draw_set


@pytest.fixture(scope="module")
def base():
    return load_model("toyland", "cpu")


def test_base_and_captioner_together_weigh_at_most_40_mb_and_hold_no_pickle():
    home = Path(str(files("iclora") / "weights"))
    folders = (home / "toyland-base", home / "toyland-captioner")
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in found) <= 40 * 2**20
    assert {path.suffix for path in found} <= {".json", ".safetensors", ".txt", ".model", ".jinja"}


def test_toyland_is_a_flux_of_8_px_tokens_with_a_guidance_embedding(base):
    assert (base.family, base.grid, base.channels) == ("flux", 8, 32)
    assert base.denoiser.config.guidance_embeds


def test_a_drawn_storyboard_survives_the_autoencoder(base):
    canvas, _ = draw_set(TASKS["film-storyboard"], random.Random(0))
    pixels = np.asarray(canvas.render())
    height, width, _ = pixels.shape
    decoded = base.decode(base.encode_image(pixels), width, height).astype(float)
    error = np.square(decoded - pixels).mean()
    assert 10 * np.log10(255**2 / error) > 30


@pytest.mark.parametrize("given", [False, True])
def test_sets_made_together_are_those_that_generate_and_complete_make(base, given):
    task = TASKS["film-storyboard"]
    canvas, caption = draw_set(task, random.Random(1))
    known = {1: canvas.panels[0].render()} if given else {}
    wishes = [_Wish(caption.text, seed, known) for seed in (3, 4)]
    together = make(base, task, wishes, 3, None)
    for wish, ours in zip(wishes, together, strict=True):
        options = {"recipe": task.small_recipe, "seed": wish.seed, "steps": 3}
        theirs = (
            complete(base, wish.text, known, **options)
            if given
            else generate(base, wish.text, **options)
        )
        assert ours.request == theirs.request
        difference = np.asarray(ours.composite, int) - np.asarray(theirs.composite, int)
        assert np.abs(difference).max() <= 2
