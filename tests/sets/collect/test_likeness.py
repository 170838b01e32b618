"""Pictures that look alike, on pictures of known subjects with copies."""

import numpy as np
import pytest
from PIL import Image

from iclora.sets.collect.choosing import spread_out, without_twins
from iclora.sets.collect.likeness import families, near_duplicates, same_picture, unlike
from iclora.sets.collect.picture import Origin, Picture, glance, look_at
from iclora.toyland.drawing import draw
from iclora.toyland.world import TOPICS, TRAITS
from workshop.collecting.pictures import write_pictures

A_LETTER = {name: TRAITS[name][1] for name in TOPICS["letter"]}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Six subjects with four pictures and two copies each: (names, truth, looks)."""
    folder = tmp_path_factory.mktemp("pictures")
    truth = write_pictures(folder, subjects=6, each=4, copies=2)
    names = sorted(truth)
    return names, truth, [look_at(Picture(Origin(n), (folder / n).read_bytes)) for n in names]


def test_copies_that_are_scaled_and_compressed_are_found_and_nothing_else(known):
    names, truth, looks = known
    first = [truth[name].get("original", name) for name in names]
    expected = {
        (a, b) for a in range(len(names)) for b in range(a + 1, len(names)) if first[a] == first[b]
    }
    assert set(near_duplicates(looks)) == expected
    assert len(expected) >= 12


def test_families_are_of_one_subject(known):
    names, truth, looks = known
    groups = families(looks)
    assert sorted(i for group in groups for i in group) == list(range(len(names)))
    assert max(map(len, groups)) >= 3
    for group in groups:
        assert len({truth[names[i]]["subject"] for i in group}) == 1


def test_a_picture_of_another_shape_is_no_copy():
    picture = draw("letter", A_LETTER, 1)
    assert same_picture(glance(picture), glance(picture.resize((160, 160))))
    assert not same_picture(glance(picture), glance(picture.resize((64, 40))))


def test_unlikeness_runs_from_equal_colours_to_none_in_common():
    red, blue = (glance(Image.new("RGB", (32, 32), c)) for c in ("red", "blue"))
    assert unlike(red, red) == pytest.approx(0, abs=1e-3)
    assert unlike(red, blue) == pytest.approx(1)


def test_of_twins_the_better_stays_and_sets_that_share_a_picture_are_none(known):
    names, truth, looks = known
    number = next(i for i, name in enumerate(names) if "original" in truth[name])
    copy, original = looks[number], looks[names.index(truth[names[number]]["original"])]
    strangers = [look for look in looks if not same_picture(look, copy)][:3]
    sets = [[copy, strangers[0]], [original, strangers[0]], [original, strangers[1]]]
    assert without_twins(sets, [0.5, 0.9, 1.0]) == {0: 1}
    assert without_twins(sets, [0.9, 0.5, 1.0]) == {1: 0}


def test_the_kept_sets_are_the_best_and_the_furthest():
    colours = ["#ff0000", "#fe0000", "#0000ff", "#0000fe", "#00ff00"]
    sets = [[glance(Image.new("RGB", (32, 32), colour))] for colour in colours]
    assert set(spread_out(sets, [1.0, 0.9, 0.9, 1.0, 0.9], 3)) == {0, 3, 4}
    assert len(spread_out(sets, np.ones(5), 9)) == 5
    # A poor set is not taken for being odd.
    assert 4 not in spread_out(sets, [1.0, 0.9, 0.9, 1.0, 0.0], 4)
