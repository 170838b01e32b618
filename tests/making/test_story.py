"""Panels made again, and stories longer than a canvas."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image

from iclora.errors import CaptionError, SettingsError
from iclora.making.made import GeneratedSet
from iclora.making.request import Request
from iclora.making.session import complete, generate
from iclora.making.story import Story, extend, reroll, windows
from iclora.progress import Cancelled, Progress
from iclora.settings import MakeSettings
from tests.conftest import CAPTION, picture
from tests.making.helpers import SIZE, STORY, carry_noise, run, told

TALE = Story("A day at sea.", tuple(f"<Ana> and wave number {n}." for n in range(1, 8)))


def test_a_panel_made_again_leaves_the_others_as_they_were(clean, tmp_path):
    made = generate(clean, CAPTION, **told())
    folder = made.save(tmp_path / "0001")
    other = reroll(clean, GeneratedSet.load(folder), {2}, seed=9)
    for n in (1, 3):
        assert other.panels[n - 1].tobytes() == made.panels[n - 1].tobytes()
        assert other.latents[n - 1].equal(made.latents[n - 1])
    assert other.panels[1].tobytes() != made.panels[1].tobytes()
    assert reroll(clean, made, {2}, seed=8).panels[1].tobytes() != other.panels[1].tobytes()
    # What was given by a person stays theirs.
    known = picture(96, 64, 1)
    made = complete(clean, CAPTION, {1: known}, **told())
    assert reroll(clean, made, [3], seed=9).panels[0].tobytes() == known.tobytes()


def test_a_panel_made_again_on_another_machine_names_this_one(clean, tmp_path):
    made = generate(clean, CAPTION, **told(steps=1))
    old = made.request.model_copy(
        update={
            "device": "cuda",
            "dtype": "bf16",
            "precision": "int8",
            "versions": {"iclora": "0.1.9"},
            "base": "elsewhere/tiny",
        }
    )
    again = reroll(clean, dataclasses.replace(made, request=old), {2}, seed=9)
    for name in ("device", "dtype", "precision", "versions", "base"):
        assert getattr(again.request, name) == getattr(made.request, name)
    # Its own request makes it again.
    kept = {n: made.panels[n - 1] for n in (1, 3)}
    latents = {n: made.latents[n - 1] for n in (1, 3)}
    repeated = run(clean, again.request, kept, latents)
    assert repeated.composite.tobytes() == again.composite.tobytes()


def test_a_set_made_again_on_other_weights_is_refused(clean):
    made = generate(clean, CAPTION, **told(steps=1))
    other = made.request.model_copy(update={"base_fingerprint": "0" * 64})
    with pytest.raises(SettingsError, match="not those this request was made with"):
        reroll(clean, dataclasses.replace(made, request=other), {2}, seed=9)


def test_a_completed_set_is_made_again_as_it_was_completed_unless_told_otherwise(clean):
    given = {1: picture(96, 64, 1)}
    how = {"mode": "boost", "boost": 3.0, "resample": 1, "resample_from": 0.8}
    made = complete(clean, CAPTION, given, **told(steps=1, **how))
    again = reroll(clean, made, [3], seed=9).request
    assert {name: getattr(again, name) for name in how} == how
    other = reroll(clean, made, [3], seed=9, mode="resample", resample_from=0.5).request
    assert (other.mode, other.resample, other.resample_from) == ("resample", 1, 0.5)
    plain = complete(clean, CAPTION, given, **told(steps=1))
    assert reroll(clean, plain, [3], seed=9, mode="resample").request.resample == 3
    generated = generate(clean, CAPTION, **told(steps=1))
    assert reroll(clean, generated, [3], seed=9).request.mode == "sdedit"


@pytest.mark.parametrize(
    ("panels", "says"), [((4,), "no panel 4"), ((), "no panel is named"), ((1, 2, 3), "stay")]
)
def test_panels_that_cannot_be_made_again_are_named(clean, panels, says):
    made = generate(clean, CAPTION, **told(steps=1))
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
    assert found[1].given == {1: 1, 2: 3, 3: 4}
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


def tale(model, out, story=TALE, progress=None, given=None, recipe=STORY, warn=None, **settings):
    how = MakeSettings(**{"size": SIZE, "steps": 2, "seed": 3, **settings})
    return extend(
        model,
        story,
        out,
        settings=how,
        recipe=recipe,
        given=given,
        progress=progress,
        warn=warn or pytest.fail,
    )


def test_a_story_grows_over_panels_that_keep_their_latents(clean, tmp_path):
    made = tale(clean, tmp_path / "out")
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
    whole = tale(clean, tmp_path / "whole")
    progress = Progress(
        lambda event: event.what == "extending" and event.done == 2 and progress.cancel()
    )
    with pytest.raises(Cancelled):
        tale(clean, tmp_path / "out", progress=progress)
    window = tmp_path / "out" / "windows" / "0002"
    at = (window / "request.json").stat().st_mtime_ns
    assert not window.with_name("0003").exists()
    # Neither a newer version nor a folder that was moved makes it another story.
    edited = json.loads((window / "request.json").read_text())
    edited |= {"versions": {"iclora": "0.1.9"}, "base": "elsewhere/tiny"}
    (window / "request.json").write_text(json.dumps(edited))
    again = tale(clean, tmp_path / "out")
    assert [i.tobytes() for i in again] == [i.tobytes() for i in whole]
    assert json.loads((window / "request.json").read_text())["base"] == "elsewhere/tiny"
    assert at
    with pytest.raises(SettingsError, match="another story"):
        tale(clean, tmp_path / "out", seed=4)


def test_damaged_canvases_of_a_stopped_story_are_made_again_and_said(clean, tmp_path):
    short, out, said = Story(TALE.overview, TALE.images[:6]), tmp_path / "out", []
    whole = tale(clean, out, short, steps=1)
    windows = out / "windows"
    for number, name in enumerate(("composite.png", "latents.safetensors", "panel-3.png"), 1):
        path = windows / f"000{number}" / name
        path.write_bytes(path.read_bytes()[:200])
    (windows / "0004" / "latents.safetensors").unlink()
    (out / "03.png").write_bytes(b"")
    again = tale(clean, out, short, steps=1, warn=said.append)
    assert [i.tobytes() for i in again] == [i.tobytes() for i in whole]
    assert Image.open(out / "03.png").tobytes() == whole[2].tobytes()
    assert len(said) == 4
    assert all("is damaged" in text and "made again" in text for text in said)
    made = {p.name for p in windows.iterdir()}
    assert made == {f"{kind}000{n}" for n in (1, 2, 3, 4) for kind in ("", "damaged-")}
    tale(clean, out, short, steps=1)


def test_a_second_process_that_extends_into_the_same_folder_is_refused(clean, tmp_path):
    refused = []

    def meanwhile(event):
        if event.what == "extending":
            with pytest.raises(SettingsError, match="another process is writing"):
                tale(clean, tmp_path / "out", steps=1)
            refused.append(event.done)

    short = Story(TALE.overview, TALE.images[:4])
    tale(clean, tmp_path / "out", short, steps=1, progress=Progress(meanwhile))
    assert refused == [1, 2]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_story_may_begin_with_a_picture_that_is_given(clean, tmp_path):
    carry_noise(clean)
    given, said = {1: picture(96, 64, 1)}, []
    made = tale(clean, tmp_path / "out", given=given, mode="clean", steps=1, warn=said.append)
    # What is to be known of five canvases is said once.
    assert len(said) == 1
    assert "not trained with clean panels" in said[0]
    assert made[0].tobytes() == given[1].tobytes()
    request, _ = Request.load(tmp_path / "out" / "windows" / "0003" / "request.json")
    assert request.mode == "clean"
    assert sorted(request.given) == [1, 2]
    assert torch.is_tensor(GeneratedSet.load(tmp_path / "out" / "windows" / "0003").latents[0])


def test_a_canvas_that_is_given_whole_is_not_painted(clean, tmp_path):
    """The first one, and the one whose only new image is given."""
    given = {n: picture(96, 64, n) for n in (1, 2, 3, 5)}
    story = Story(TALE.overview, TALE.images[:5])
    made = tale(clean, tmp_path / "out", story, given=given, steps=1)
    assert all(made[n - 1].tobytes() == each.tobytes() for n, each in given.items())
    assert [p.name for p in (tmp_path / "out" / "windows").iterdir()] == ["0002"]
    assert len(made) == 5
    assert (tmp_path / "out" / "03.png").exists()


@pytest.mark.parametrize("number", [0, 8])
def test_an_image_given_beyond_the_story_is_refused_before_anything_is_made(
    clean, tmp_path, number
):
    with pytest.raises(SettingsError, match=f"image {number} is given"):
        tale(clean, tmp_path / "out", given={number: picture(96, 64)})
    assert not (tmp_path / "out").exists()


def test_a_storys_texts_are_encoded_once_and_before_it_is_painted(clean, tmp_path, monkeypatch):
    done = []
    encode, velocity = clean.encode_text, clean.velocity
    monkeypatch.setattr(clean, "encode_text", lambda t: done.append("text") or encode(t))
    monkeypatch.setattr(clean, "velocity", lambda *a: done.append("step") or velocity(*a))
    tale(clean, tmp_path / "out", steps=1)
    assert done == ["text"] * 5 + ["step"] * 5


def test_a_story_is_read_from_lines_and_checked_before_anything_is_made(clean, tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("All of it.\n\none\ntwo\n three \n", encoding="utf-8")
    assert Story.read(path) == Story("All of it.", ("one", "two", "three"))
    path.write_text("# mine\nAll of it.\none\n", encoding="utf-8")
    assert Story.read(path).notes == (f"{path}: 1 comment line left out",)
    path.write_text("All of it.\n")
    with pytest.raises(SettingsError, match="1 lines"):
        Story.read(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        Story.read(tmp_path / "none.txt")
    long = Story("A day.", ("one", "two", "three", "and" + " so on" * 600))
    with pytest.raises(CaptionError, match="128"):
        tale(clean, tmp_path / "out", long, steps=1)
    assert not (tmp_path / "out").exists()
