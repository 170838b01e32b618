"""Requests: refused early where they cannot be met, repeated exactly or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iclora.errors import CaptionError, LayoutError, SettingsError, StorageError
from iclora.making.made import (
    Choice,
    GeneratedSet,
    find_kept,
    given_latents,
    next_folder,
    read_kept,
    read_latents,
)
from iclora.making.preparing import check_base
from iclora.making.request import Request
from iclora.making.session import complete, generate
from iclora.sets.images import open_image
from iclora.sets.layout import Layout
from tests.conftest import CAPTION, picture
from tests.making.helpers import prepared, run, told

OLD = Path(__file__).parents[1] / "data" / "v0.2"


def test_a_given_panel_of_the_wrong_shape_is_refused_before_any_computing(clean):
    with pytest.raises(LayoutError, match="panel 1 is 64x96 px"):
        prepared(clean, CAPTION, given={1: picture(64, 96)}, **told())


def test_a_saved_request_run_again_gives_the_same_bytes(clean, tmp_path):
    made = complete(clean, CAPTION, {1: picture(96, 64, 1)}, **told())
    one = made.save(tmp_path / "0001")
    request, known = Request.load(one / "request.json")
    two = run(clean, request, known).save(tmp_path / "0002")
    names = sorted(p.name for p in one.iterdir())
    assert names == [
        "composite.png",
        "latents.safetensors",
        "panel-1.png",
        "panel-2.png",
        "panel-3.png",
        "request.json",
    ]
    assert all((one / n).read_bytes() == (two / n).read_bytes() for n in names)


def test_a_panel_that_was_made_is_given_by_its_latents_not_by_its_pixels(clean, tmp_path):
    first = generate(clean, CAPTION, **told())
    folder = first.save(tmp_path / "0001")
    assert GeneratedSet.load(folder).latents[1].equal(first.latents[1])
    panel = folder / "panel-2.png"
    latents, vae = read_latents(panel, first.panels[1])
    assert vae == clean.fingerprint("vae")
    again = clean.encode_image(np.asarray(first.panels[1])).view(latents.shape)
    assert (latents - again).abs().max() > 1e-3
    made = complete(clean, CAPTION, {2: first.panels[1]}, latents={2: latents}, **told())
    assert made.latents[1].equal(latents)
    # The request says so, and finds them beside the panel when it is repeated.
    place = made.save(tmp_path / "0002")
    request, known = Request.load(place / "request.json")
    kept = given_latents(request, place, known)
    assert kept[2].equal(latents)
    repeated = run(clean, request, known, latents=kept)
    assert repeated.composite.tobytes() == made.composite.tobytes()
    (place / "latents.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"latents of given panel 2"):
        given_latents(request, place, known)


def test_latents_of_another_picture_or_another_size_are_not_taken(clean, tmp_path):
    folder = generate(clean, CAPTION, **told(steps=1)).save(tmp_path / "0001")
    assert read_latents(folder / "panel-1.png", picture(96, 64, 3)) is None
    latents = {1: torch.zeros(3, 6, clean.channels)}
    request, _ = prepared(
        clean, CAPTION, given={1: picture(96, 64, 3)}, latents=latents, **told(steps=1)
    )
    assert request.given[1].latents == ""
    (folder / "latents.safetensors").write_bytes(b"damaged")
    with pytest.raises(SettingsError, match="Remove it"):
        read_latents(folder / "panel-1.png", picture(96, 64, 3))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 8
    path.write_bytes(data)


def repaint(path):
    picture(*open_image(path).size, seed=9).save(path)


def exchange(one, two):
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


DAMAGE = {
    "a bit of the latents": lambda f: flip(f / "latents.safetensors", -40),
    "a bit of their header": lambda f: flip(f / "latents.safetensors", 90),
    "zeros in the latents": lambda f: (f / "latents.safetensors").write_bytes(
        (f / "latents.safetensors").read_bytes()[:-400] + bytes(400)
    ),
    "a composite cut short": lambda f: (f / "composite.png").write_bytes(
        (f / "composite.png").read_bytes()[:300]
    ),
    "a composite of another set": lambda f: repaint(f / "composite.png"),
    "another panel": lambda f: repaint(f / "panel-2.png"),
    "panels exchanged": lambda f: exchange(f / "panel-1.png", f / "panel-3.png"),
    "no panel": lambda f: (f / "panel-3.png").unlink(),
    "a request cut short": lambda f: (f / "request.json").write_bytes(
        (f / "request.json").read_bytes()[:100]
    ),
    "an empty request": lambda f: (f / "request.json").write_bytes(b""),
}


def test_a_damaged_set_of_a_stopped_command_is_set_aside_and_said(clean, tmp_path):
    made = generate(clean, CAPTION, **told(steps=1))
    for number, (kind, damage) in enumerate(DAMAGE.items()):
        said, out = [], tmp_path / f"{number}"
        folder = made.save(out / "0001")
        there = read_kept(folder, made.request, "another", pytest.fail, latents=True)
        assert there.composite.tobytes() == made.composite.tobytes()
        assert find_kept(out, [[made.request]]) == {0: folder}
        damage(folder)
        assert find_kept(out, [[made.request]], warn=said.append) == {}, kind
        assert read_kept(folder, made.request, "another", said.append, latents=True) is None, kind
        assert [p.name for p in out.iterdir()] == ["damaged-0001"]
        assert all("0001 is damaged" in text for text in said)
        assert len(said) == 2
        assert read_kept(folder, made.request, "another", pytest.fail, latents=True) is None


def test_a_set_of_another_request_is_refused_even_if_its_pictures_are_damaged(clean, tmp_path):
    made = generate(clean, CAPTION, **told(steps=1))
    folder = made.save(tmp_path / "0001")
    (folder / "panel-1.png").write_bytes(b"")
    other = made.request.model_copy(update={"steps": 2})
    with pytest.raises(SettingsError, match="0001 holds another set"):
        read_kept(folder, other, "another set", pytest.fail, latents=True)
    assert folder.exists()


def test_a_panel_that_was_retouched_may_go_on_without_latents(clean, tmp_path):
    folder = generate(clean, CAPTION, **told(steps=1)).save(tmp_path / "0001")
    repaint(folder / "panel-2.png")
    made = GeneratedSet.load(folder)
    assert made.latents == ()
    with pytest.raises(SettingsError, match="not the picture that was saved"):
        GeneratedSet.load(folder, unchanged=True)


@pytest.mark.parametrize("name", ["0001", "0002"])
def test_a_set_of_version_0_2_opens_with_its_latents(name):
    made = GeneratedSet.load(OLD / "made" / name, unchanged=True)
    assert len(made.latents) == len(made.panels)


def test_settings_without_effect_are_said_to_have_none(clean):
    known = {1: picture(96, 64)}
    _, notes = prepared(clean, CAPTION, given=known, boost=3, mode="sdedit", **told())
    assert [n for n in notes if "no effect" in n] == ["`boost` has no effect in mode sdedit"]
    _, notes = prepared(clean, CAPTION, resample_from=0.5, **told())
    assert notes == ["`resample_from` has no effect without `resample`"]
    _, notes = prepared(clean, CAPTION, mode="resample", **told())
    assert "no panel is given: mode resample has no effect" in notes
    _, notes = prepared(clean, CAPTION, given=known, mode="clean", **told())
    assert any("not trained with clean panels" in n for n in notes)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"steps": 0}, SettingsError, "steps"),
        ({"steps": -3}, SettingsError, "steps"),
        ({"guidance": float("nan")}, SettingsError, "guidance"),
        ({"prompt": "  "}, SettingsError, "blank"),
        ({"prompt": "[MOVIE-SHOTS] [SCENE-1] one [SCENE-2] two"}, CaptionError, "SCENE-3"),
        ({"prompt": "[MOVIE-SHOTS] [SCENE-1] one [LEFT] two"}, CaptionError, "LEFT"),
        ({"prompt": CAPTION + " word" * 600}, CaptionError, "reads 128"),
        ({"size": (100, 192)}, LayoutError, "token grid"),
        ({"panel_seeds": {4: 1}}, LayoutError, "no panel 4"),
        ({"given": {0: picture(96, 64)}}, LayoutError, "no panel 0"),
        ({"given": {n: picture(96, 64) for n in (1, 2, 3)}}, SettingsError, "all panels"),
        ({"recipe": None}, SettingsError, "`recipe`"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_before_any_computing(tiny, change, error, says):
    asked = {"prompt": CAPTION, **told(), **change}
    with pytest.raises(error, match=says):
        prepared(tiny, asked.pop("prompt"), **asked)


def test_a_request_cannot_name_files_outside_its_folder(clean, tmp_path):
    made = complete(clean, CAPTION, {1: picture(96, 64, 1)}, **told(steps=1))
    path = made.save(tmp_path / "in" / "0001") / "request.json"
    picture(96, 64, 1).save(tmp_path / "secret.png")
    data = json.loads(path.read_text())
    for name in ("../../secret.png", str(tmp_path / "secret.png")):
        data["given"]["1"]["file"] = name
        path.write_text(json.dumps(data))
        with pytest.raises(SettingsError, match="leads out of"):
            Request.load(path)


def test_a_request_whose_given_panel_was_edited_is_refused(clean, tmp_path):
    made = complete(clean, CAPTION, {1: picture(96, 64, 1)}, **told(steps=1))
    folder = made.save(tmp_path / "0001")
    picture(96, 64, 2).save(folder / "panel-1.png")
    with pytest.raises(SettingsError, match="given panel 1"):
        Request.load(folder / "request.json")


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1, 2]},
        {"given": {"7": {"file": "a.png", "sha256": ""}}},
        {"steps": 0},
        {"layout": {}},
        {"dtype": "float16"},
        {"surprise": 1},
    ],
)
def test_an_edited_request_that_does_not_fit_together_is_refused(clean, tmp_path, change):
    path = generate(clean, CAPTION, **told(steps=1)).save(tmp_path / "0001") / "request.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SettingsError, match="is not a request"):
        Request.load(path)


def test_a_request_is_not_repeated_on_other_weights(clean, tmp_path):
    from iclora.models.flux.model import FluxModel
    from iclora.models.tiny import write_tiny

    request, _ = prepared(clean, CAPTION, **told())
    check_base(request, clean)
    write_tiny(tmp_path / "other", seed=1)
    other = FluxModel(tmp_path / "other", "tiny", clean.device, clean.dtype)
    with pytest.raises(SettingsError, match="not those this request was made with"):
        check_base(request, other)


def test_sets_saved_at_the_same_time_take_different_numbers(clean, tmp_path):
    import threading

    made = generate(clean, CAPTION, **told(steps=1))
    workers = [threading.Thread(target=made.save_next, args=(tmp_path,)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"000{i}" for i in range(1, 7)]
    assert all((tmp_path / n / "request.json").exists() for n in names)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense", '{"base": 1}'])
def test_a_file_that_is_no_request_is_named(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(SettingsError, match=r"r\.json") as refused:
        Request.load(tmp_path / "r.json")
    assert "Input should" not in str(refused.value)


def test_a_set_is_never_written_over_another_one(clean, tmp_path):
    made = generate(clean, CAPTION, **told(steps=1))
    made.save(tmp_path / "0001")
    with pytest.raises(StorageError, match="exists already"):
        made.save(tmp_path / "0001")
    (tmp_path / "0007").mkdir()
    assert next_folder(tmp_path).name == "0008"
    assert next_folder(tmp_path / "none").name == "0001"


def test_a_set_that_cannot_be_written_leaves_nothing_behind(clean, tmp_path, monkeypatch):
    made = generate(clean, CAPTION, **told(steps=1))
    import errno

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="disk is full"):
        made.save(tmp_path / "0001")
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_without_prefix_or_markers_is_used_and_said_so(tiny):
    request, notes = prepared(tiny, "a shy boy at a carnival", **told())
    assert request.prompt == "[MOVIE-SHOTS] a shy boy at a carnival"
    assert any("MOVIE-SHOTS" in note for note in notes)
    assert any("no panel markers" in note for note in notes)


def test_steps_are_repeated_in_any_mode_and_by_themselves_in_mode_resample(clean):
    known = {1: picture(96, 64)}
    repeated = {
        mode: prepared(clean, CAPTION, given=known, mode=mode, **told())[0].resample
        for mode in ("sdedit", "resample", "boost", "clean")
    }
    assert repeated == {"sdedit": 0, "resample": 3, "boost": 0, "clean": 0}
    request, notes = prepared(clean, CAPTION, given=known, mode="boost", resample=2, **told())
    assert (request.resample, notes) == (2, [])
    assert prepared(clean, CAPTION, resample=1, **told())[0].resample == 1


def test_every_picture_of_a_set_is_read_once(clean, tmp_path, monkeypatch):
    """What was hashed is what is used, whoever writes to the folder meanwhile."""
    first = generate(clean, CAPTION, **told(steps=1))
    latents = {1: first.latents[0]}
    made = complete(clean, CAPTION, {1: first.panels[0]}, latents=latents, **told(steps=1))
    folder = made.save(tmp_path / "0001")
    opened = []

    def counted(path):
        opened.append(Path(path).name)
        return open_image(path)

    monkeypatch.setattr("iclora.making.request.open_image", counted)
    monkeypatch.setattr("iclora.making.made.open_image", counted)
    assert GeneratedSet.load(folder).latents[0].equal(latents[1])
    assert sorted(opened) == ["composite.png", *(f"panel-{n}.png" for n in (1, 2, 3))]
    opened.clear()
    request, given = Request.load(folder / "request.json")
    assert given_latents(request, folder, given)[1].equal(latents[1])
    assert opened == ["panel-1.png"]


def test_a_composite_says_to_other_tools_how_it_was_made(clean, tmp_path):
    made = generate(clean, CAPTION, **told(steps=1, seed=3))
    secret = made.request.model_copy(update={"adapter": "/home/me/my.safetensors"})
    secret = secret.model_copy(update={"adapter_sha256": "0123456789abcdef", "negative": "mud"})
    replace(made, request=secret).save(tmp_path / "0001")
    text = Image.open(tmp_path / "0001" / "composite.png").text
    lines = text["parameters"].split("\n")
    assert lines[:2] == [CAPTION, "Negative prompt: mud"]
    size = "{}x{}".format(*made.composite.size)
    assert lines[2] == (
        f"Steps: 1, Sampler: Euler, CFG scale: {secret.guidance:g}, Seed: {secret.seeds[0]}, "
        f'Size: {size}, Model: tiny, Lora hashes: "my: 0123456789ab"'
    )
    again = Request.model_validate_json(text["iclora:request"])
    assert again.same_pixels(secret)
    assert not any("/home/me" in value for value in text.values())
    layout = Layout.from_json(json.loads(text["iclora:layout"]))
    assert layout == secret.layout


def test_whole_sets_of_the_same_request_are_kept_and_no_others(clean, tmp_path):
    made = generate(clean, CAPTION, **told(steps=1))
    other = generate(clean, CAPTION, **told(steps=1, seed=5))
    made.save(tmp_path / "0001")
    made.save(tmp_path / "0002")
    wishes = [[other.request], [made.request], [made.request]]
    assert find_kept(tmp_path, wishes) == {1: tmp_path / "0001", 2: tmp_path / "0002"}
    file = tmp_path / "0001" / "panel-2.png"
    file.write_bytes(file.read_bytes()[:-30])
    assert find_kept(tmp_path, wishes) == {1: tmp_path / "0002"}
    newer = made.request.model_copy(update={"versions": {"torch": "9"}})
    assert find_kept(tmp_path, [[newer]]) == {}
    assert find_kept(tmp_path / "none", wishes) == {}


def test_the_best_of_several_is_kept_only_for_the_same_choice(clean, tmp_path):
    made = generate(clean, CAPTION, **told(steps=1))
    made.save(tmp_path / "0001", Choice("toyland", 2))
    made.save(tmp_path / "0002")
    pair = [made.request, made.request]
    assert find_kept(tmp_path, [pair], "toyland") == {0: tmp_path / "0001"}
    assert find_kept(tmp_path, [pair], "dino:x") == {}
    assert find_kept(tmp_path, [[*pair, made.request]], "toyland") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"steps": True},
        {"strength": 1e300},
        {"seeds": [10**30, 1, 2]},
        {"prompt": " "},
        {"device": "meta"},
        {"base": "x" * 5000},
        {"adapter": "a\0b"},
        {"layout": {"width": 16000, "height": 48000}},
    ],
)
def test_a_request_has_the_bounds_of_settings(clean, tmp_path, change):
    request, _ = prepared(clean, CAPTION, **told())
    data = json.loads(request.model_dump_json())
    for name, value in change.items():
        if name == "layout":
            boxes = [[0, 16000 * n, 16000, 16000] for n in range(3)]
            value |= {"per_row": [1, 1, 1], "boxes": boxes}
        data[name] = value
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(SettingsError, match=r"r\.json"):
        Request.load(tmp_path / "r.json")
