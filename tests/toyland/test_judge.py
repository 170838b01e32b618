"""The judge reads true renderings right; its scores say what they promise."""

import random

import numpy as np
from PIL import Image

from iclora.toyland.judge import agreement, diversity, read, stated_right
from iclora.toyland.world import Panel, draw_traits


def test_a_noisy_panel_is_still_read_right():
    rng = random.Random(2)
    noise = np.random.default_rng(0)
    for _ in range(10):
        traits = {**draw_traits(rng, "character"), "style": "flat", "weather": "clear"}
        pixels = np.asarray(Panel("character", traits, 1).render()).astype(float)
        noisy = np.clip(pixels + noise.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)
        assert read(Image.fromarray(noisy), "character") == traits


def test_panels_agree_only_where_all_of_them_are_equal():
    found = [
        {"kind": "cat", "colour": "red"},
        {"kind": "cat", "colour": "red"},
        {"kind": "cat", "colour": "blue"},
    ]
    expected = {"kind": True, "colour": False, "all": False}
    assert agreement(found, ("kind", "colour")) == expected


def test_diversity_is_nought_for_copies_and_one_where_everything_differs():
    cat, dog = {"kind": "cat", "colour": "red"}, {"kind": "frog", "colour": "blue"}
    assert diversity([cat, cat], ("kind", "colour")) == 0
    assert diversity([cat, dog], ("kind", "colour")) == 1


def test_only_stated_traits_count_as_adherence():
    right = stated_right([{"kind": "cat"}, {}], [{"kind": "frog"}, {"kind": "cat"}])
    assert right == {"kind": [False]}
