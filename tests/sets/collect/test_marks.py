"""Marks that the pictures of a source share: found with their place, and nothing else taken."""

import io

import numpy as np
import pytest
from PIL import Image

from iclora.progress import Progress
from iclora.sets.collect.marks import find_mark, has_mark, marked_sets
from iclora.sets.collect.picture import Found, Origin, Picture, glance
from workshop.collecting.flaws import marked


@pytest.fixture(scope="module")
def scenes():
    """Twelve pictures of soft shapes, 480x270 px, with bars above and below."""
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(40, 256, (9, 16, 3), dtype=np.uint8))
        picture = coarse.resize((480, 270), Image.Resampling.BICUBIC)
        picture.paste("black", (0, 0, 480, 30))
        picture.paste("black", (0, 240, 480, 270))
        found.append(picture)
    return found


def test_a_mark_is_found_at_its_place_in_the_pictures_that_have_it(scenes):
    assert find_mark(scenes) is None, "bars are no mark"
    some = [marked(scene, 0.5, (0.3, 0.4)) for scene in scenes]
    mark = find_mark(some)
    left, top, width, height = mark.box
    assert (abs(left - 144), abs(top - 112)) < (16, 16)
    assert (150 < width < 200, 16 <= height < 48) == (True, True)
    assert all(has_mark(mark, scene) for scene in some)
    assert not any(has_mark(mark, scene) for scene in scenes)


def test_too_few_pictures_and_pictures_of_one_view_tell_no_mark(scenes):
    assert find_mark(marked(scene, 1, (0.3, 0.4)) for scene in scenes[:9]) is None
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 256, (270, 480, 3), dtype=np.uint8)
    assert find_mark(Image.fromarray(grain) for _ in range(12)) is None


def test_sets_are_told_by_the_panel_that_bears_the_mark_and_pages_of_decks_are_not(scenes):
    def found(number, at):
        after = marked(scenes[number], 1, (0.3, 0.4)) if number else scenes[number]
        pictures = []
        for name, picture in (("before", scenes[number]), ("after", after)):
            out = io.BytesIO()
            picture.save(out, "BMP")
            pictures.append(Picture(Origin(f"x/{number}_{name}.bmp", at), out.getvalue))
        return Found(tuple(pictures), f"scene {number}", "by name"), [
            glance(p) for p in (after,) * 2
        ]

    told = marked_sets([found(number, {}) for number in range(12)], Progress())
    assert sorted(told) == list(range(1, 12))
    assert {text.split(" with ")[0] for texts in told.values() for text in texts} == {"panel 2"}
    assert marked_sets([found(n, {"page": n}) for n in range(12)], Progress()) == {}
