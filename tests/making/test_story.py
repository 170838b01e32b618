"""Panels made again, and stories longer than a canvas."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from iclora.errors import CaptionError, SettingsError
from iclora.making.generate import complete, generate
from iclora.making.request import GeneratedSet, Request
from iclora.making.story import Story, extend, reroll, windows
from iclora.sets.recipe import load_recipe
from tests.conftest import CAPTION, picture
from tests.making.test_generate import SIZE, carry_noise, wish

STORY = load_recipe("film-storyboard")
TALE = Story("A day at sea.", tuple(f"<Ana> and wave number {n}." for n in range(1, 8)))


def test_a_panel_made_again_leaves_the_others_as_they_were(clean, tmp_path):
    made = generate(clean, CAPTION, **wish())
    folder = made.save(tmp_path / "0001")
    other = reroll(clean, GeneratedSet.load(folder), {2}, seed=9)
    for n in (1, 3):
        assert other.panels[n - 1].tobytes() == made.panels[n - 1].tobytes()
        assert other.latents[n - 1].equal(made.latents[n - 1])
    assert other.panels[1].tobytes() != made.panels[1].tobytes()
    assert reroll(clean, made, {2}, seed=8).panels[1].tobytes() != other.panels[1].tobytes()
    # What was given by a person stays theirs.
    known = picture(96, 64, 1)
    made = complete(clean, CAPTION, {1: known}, **wish())
    assert reroll(clean, made, [3], seed=9).panels[0].tobytes() == known.tobytes()


@pytest.mark.parametrize(
    ("panels", "says"), [((4,), "no panel 4"), ((), "no panel is named"), ((1, 2, 3), "stay")]
)
def test_panels_that_cannot_be_made_again_are_named(clean, panels, says):
    made = generate(clean, CAPTION, **wish(steps=1))
    with pytest.raises(SettingsError, match=says):
        reroll(clean, made, panels, seed=1)


def test_windows_show_the_anchors_and_the_latest_images_and_make_each_image_once():
    found = windows(8, 4, (1,), 1)
    assert [w.images for w in found] == [
        (1, 2, 3, 4),
        (1, 3, 4, 5),
        (1, 4, 5, 6),
        (1, 5, 6, 7),
        (1, 6, 7, 8),
    ]
    assert found[1].known == {1: 1, 2: 3, 3: 4}
    found = windows(7, 4, (2, 1), 2)
    assert [w.images for w in found] == [(1, 2, 3, 4), (1, 2, 5, 6), (1, 2, 6, 7)]
    assert [w.made for w in found] == [4, 2, 1]
    for count in range(3, 13):
        for fresh in (1, 2):
            found = windows(count, 3, (1,), fresh)
            new = [n for w in found for n in w.images[-w.made :]]
            assert new == list(range(1, count + 1))
            assert all(len(set(w.images)) == 3 and w.images[0] == 1 for w in found)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ((2, 3, (1,), 1), "2 images"),
        ((9, 3, (1,), 3), "3 new images"),
        ((9, 3, (1, 2), 2), "anchors"),
        ((9, 3, (4,), 1), "anchors"),
    ],
)
def test_windows_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(SettingsError, match=says):
        windows(*settings)


def test_a_story_grows_over_panels_that_keep_their_latents(clean, tmp_path):
    made = extend(clean, TALE, STORY, None, tmp_path / "out", size=SIZE, steps=2, seed=3)
    assert len(made) == 7
    names = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert names == [f"{n:02d}.png" for n in range(1, 8)]
    first = GeneratedSet.load(tmp_path / "out" / "windows" / "0001")
    last = GeneratedSet.load(tmp_path / "out" / "windows" / "0005")
    assert last.latents[0].equal(first.latents[0])
    assert last.panels[0].tobytes() == made[0].tobytes()
    assert "wave number 7" in last.request.prompt
    assert "wave number 2" not in last.request.prompt
    assert Image.open(tmp_path / "out" / "07.png").tobytes() == made[6].tobytes()


def test_a_story_that_was_stopped_goes_on_to_the_same_images(clean, tmp_path):
    settings = {"size": SIZE, "steps": 2, "seed": 3}
    whole = extend(clean, TALE, STORY, None, tmp_path / "whole", **settings)

    def stop(_window, number, _count):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(clean, TALE, STORY, None, tmp_path / "out", on_window=stop, **settings)
    at = (tmp_path / "out" / "windows" / "0002" / "request.json").stat().st_mtime_ns
    again = extend(clean, TALE, STORY, None, tmp_path / "out", **settings)
    assert [i.tobytes() for i in again] == [i.tobytes() for i in whole]
    assert (tmp_path / "out" / "windows" / "0002" / "request.json").stat().st_mtime_ns == at
    with pytest.raises(SettingsError, match="another story"):
        extend(clean, TALE, STORY, None, tmp_path / "out", **{**settings, "seed": 4})


def test_a_story_may_begin_with_a_picture_that_is_given(clean, tmp_path):
    carry_noise(clean)
    known = {1: picture(96, 64, 1)}
    made = extend(
        clean, TALE, STORY, None, tmp_path / "out", known=known, mode="clean", size=SIZE, steps=1
    )
    assert made[0].tobytes() == known[1].tobytes()
    request, _ = Request.load(tmp_path / "out" / "windows" / "0003" / "request.json")
    assert request.mode == "clean"
    assert sorted(request.known) == [1, 2]
    assert torch.is_tensor(GeneratedSet.load(tmp_path / "out" / "windows" / "0003").latents[0])


def test_a_story_is_read_from_lines_and_checked_before_anything_is_made(clean, tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("All of it.\n\none\ntwo\n three \n", encoding="utf-8")
    assert Story.read(path) == Story("All of it.", ("one", "two", "three"))
    path.write_text("All of it.\n")
    with pytest.raises(SettingsError, match="1 lines"):
        Story.read(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        Story.read(tmp_path / "none.txt")
    long = Story("A day.", ("one", "two", "three", "and" + " so on" * 600))
    with pytest.raises(CaptionError, match="512"):
        extend(clean, long, STORY, None, tmp_path / "out", size=SIZE, steps=1)
    assert not (tmp_path / "out").exists()
