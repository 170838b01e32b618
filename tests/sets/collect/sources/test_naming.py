"""Pictures that belong together by their names."""

import pytest

from iclora.sets.collect.sources.naming import sets_by_name

HABITS = {
    "suffix": "x{0:03d}_before.png x{0:03d}_after.png",
    "words before": "Before {0}.jpg|After {0}.jpg",
    "two folders": "a/{0}.jpg b/{0}.jpg",
    "folders with known names": "target/{0:04d}.png input/{0:04d}.png",
    "numbered": "house{0}-1.png house{0}-2.png",
    "letters": "IMG_{0:04d}A.jpg IMG_{0:04d}B.jpg",
    "one has a word more": "IMG_{0}7.jpg IMG_{0}7_edited.jpg",
    "in brackets": "room {0} (day).png|room {0} (night).png",
    "a folder each": "s{0}/1.png s{0}/2.png",
    "written together": "houseBefore{0}.png houseAfter{0}.png",
    "words nobody knows": "{0:02d}_rgb.png {0:02d}_thermal.png",
}
SWAPPED = ("folders with known names",)


@pytest.mark.parametrize("habit", HABITS)
def test_every_pair_is_found_in_its_order_under_eleven_naming_habits(habit):
    form = HABITS[habit]
    pairs = [tuple(form.format(i).split("|" if "|" in form else " ")) for i in range(1, 21)]
    expected = {pair[::-1] if habit in SWAPPED else pair for pair in pairs}
    found, left = sets_by_name([name for pair in pairs for name in pair], 2)
    assert {each.names for each in found} == expected
    assert left == []
    assert any(each.guessed for each in found) == (habit == "words nobody knows")


@pytest.mark.parametrize(
    "names",
    [
        [f"IMG_{i:04d}.jpg" for i in range(60)],
        ["cat.png", "dog.png"],
        [f"holiday/{i}.jpg" for i in range(9)],
    ],
)
def test_names_that_say_nothing_make_no_set(names):
    assert sets_by_name(names, 2) == ([], sorted(names, key=names.index))


def test_masks_beside_pairs_are_left_over():
    names = [f"{i}_{role}.png" for i in range(5) for role in ("mask", "after", "before")]
    found, left = sets_by_name(names, 2)
    assert [each.names for each in found] == [
        (f"{i}_before.png", f"{i}_after.png") for i in range(5)
    ]
    assert left == [f"{i}_mask.png" for i in range(5)]


def test_a_longer_numbered_row_is_cut_into_sets():
    names = [f"{scene}_{i}.png" for scene in ("sea", "wood", "town", "hill") for i in range(1, 8)]
    found, left = sets_by_name(names, 3)
    assert ("sea_4.png", "sea_5.png", "sea_6.png") in {each.names for each in found}
    assert len(found) == 8
    assert left == ["hill_7.png", "sea_7.png", "town_7.png", "wood_7.png"]
