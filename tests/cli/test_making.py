"""Verbs that make sets."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest

from iclora.sets.images import open_image
from tests.conftest import CAPTION, picture

SMALL = ["--size", "96x192", "--steps", "2"]


@pytest.mark.parametrize("verb", ["generate", "complete"])
def test_a_request_repeated_gives_the_same_bytes(lora, tmp_path, run, verb):
    picture(96, 64).save(tmp_path / "shot.png")
    known = ["--known", f"1={tmp_path / 'shot.png'}"] if verb == "complete" else []
    words = [verb, "--adapter", lora, "--prompt", CAPTION, "--seed", 3, *SMALL, *known]
    assert run(*words, "--out", tmp_path / "a")[0] == 0
    one, two = tmp_path / "a" / "0001", tmp_path / "b" / "0001"
    assert run(verb, one / "request.json", "--out", tmp_path / "b")[0] == 0
    assert all((two / p.name).read_bytes() == p.read_bytes() for p in one.iterdir())


def test_a_request_with_another_adapter_in_its_place_is_refused(lora, tmp_path, run):
    words = ["generate", "--adapter", lora, "--prompt", CAPTION, *SMALL]
    assert run(*words, "--out", tmp_path / "a")[0] == 0
    lora.write_bytes(lora.read_bytes()[:-1] + b"\x01")
    status, _, err = run("generate", tmp_path / "a" / "0001" / "request.json")
    assert status == 2
    assert "not the adapter this request was made with" in err


def test_adapters_at_strengths_of_their_own_are_added_up_and_shown(lora, tmp_path, run):
    other = tmp_path / "other.safetensors"
    shutil.copy(lora, other)
    words = ["generate", "--prompt", CAPTION, *SMALL, "--out"]
    added = ["--adapter", f"{lora}=0.7", "--adapter", other]
    assert run(*words, tmp_path / "sum", *added)[0] == 0
    # The same weights twice, so their sum is one of them at the sum of their strengths.
    assert run(*words, tmp_path / "one", "--adapter", lora, "--strength", 1.7)[0] == 0
    assert run(*words, tmp_path / "less", "--adapter", lora)[0] == 0
    summed, one, less = (
        np.asarray(open_image(tmp_path / name / "0001" / "composite.png")).astype(int)
        for name in ("sum", "one", "less")
    )
    assert np.abs(summed - one).max() <= 1
    assert np.abs(summed - less).max() > 1
    status, shown, _ = run("info", tmp_path / "sum" / "0001")
    assert shown == run("info", tmp_path / "sum" / "0001" / "request.json")[1]
    assert status == 0
    assert "0.7" in shown
    assert str(other) in shown


def test_count_and_prompt_files_make_several_sets_with_different_noise(clean, tmp_path, run):
    (tmp_path / "p.txt").write_text(f"{CAPTION}\n\n{CAPTION.replace('Ana', 'Eva')}\n")
    words = ["generate", "--base", "tiny", "--recipe", "film-storyboard", *SMALL]
    status, _, _ = run(
        *words, "--prompts", tmp_path / "p.txt", "--count", 2, "--out", tmp_path / "o"
    )
    assert status == 0
    requests = [
        json.loads((tmp_path / "o" / f"000{i}" / "request.json").read_text()) for i in (1, 2, 3, 4)
    ]
    assert len({tuple(r["seeds"]) for r in requests}) == 2
    assert ["Eva" in r["prompt"] for r in requests] == [False, False, True, True]


def test_one_panel_is_re_rolled_by_its_own_seed(clean, tmp_path, run):
    words = [
        "generate",
        "--base",
        "tiny",
        "--recipe",
        "film-storyboard",
        *SMALL,
        "--prompt",
        CAPTION,
    ]
    run(*words, "--out", tmp_path)
    run(*words, "--panel-seed", "2=5", "--out", tmp_path)
    one, two = (
        json.loads((tmp_path / f"000{i}" / "request.json").read_text())["seeds"] for i in (1, 2)
    )
    assert (one[0], one[2], two[1]) == (two[0], two[2], 5)


def test_out_that_is_a_file_is_refused_before_anything_is_loaded(tmp_path, run):
    (tmp_path / "out").write_text("x")
    words = ["generate", "--base", "nowhere", "--prompt", "x", "--out", tmp_path / "out"]
    status, _, err = run(*words)
    assert status == 2
    assert "is a file" in err


def test_an_idea_is_turned_into_a_prompt_and_into_a_set(writer, tmp_path, run):
    how = ["--captioner", "openai:m", "--api", writer.url]
    status, out, _ = run("prompt", "a day at sea", "--recipe", "film-storyboard", *how)
    assert status == 0
    prompt = out.strip()
    assert prompt.startswith("[MOVIE-SHOTS] A day by the sea. [SCENE-1] <Ana> rows out.")
    words = ["generate", "--base", "tiny", "--recipe", "film-storyboard", "--size", "32x96"]
    words += ["--idea", "a day at sea", "--steps", "1", "--out", tmp_path, *how]
    assert run(*words)[0] == 0
    request = json.loads((tmp_path / "0001" / "request.json").read_text())
    assert request["prompt"] == prompt


def test_an_idea_without_a_captioner_or_recipe_is_an_error_before_anything_is_asked(writer, run):
    words = ["generate", "--base", "tiny", "--idea", "a day at sea"]
    status, _, err = run(*words)
    assert status == 2
    assert "--captioner" in err
    status, _, err = run(*words, "--captioner", "openai:m", "--api", writer.url)
    assert status == 2
    assert "--recipe" in err
    told = ["--captioner", "openai:m", "--api", writer.url, "--recipe", "film-storyboard"]
    status, _, err = run(*words, *told, "--size", "50x90")
    assert status == 2
    assert "off the 16 px token grid" in err
    assert not writer.bodies


def test_the_best_of_several_sets_is_kept_and_its_request_makes_it_again(clean, tmp_path, run):
    out = tmp_path / "out"
    words = [
        "generate",
        "--base",
        "tiny",
        "--recipe",
        "film-storyboard",
        "--prompt",
        CAPTION,
        "--count",
        2,
        *SMALL,
        "--out",
        out,
    ]
    status, said, _ = run(*words, "--best-of", 3, "--score", "toyland")
    assert status == 0
    assert said.count("toyland same all of 3 sets: ") == 2
    assert sorted(path.name for path in out.iterdir()) == ["0001", "0002"]
    seeds = [json.loads((out / n / "request.json").read_text())["seeds"] for n in ("0001", "0002")]
    assert seeds[0] != seeds[1]
    assert run("generate", out / "0001" / "request.json", "--out", out)[0] == 0
    assert (out / "0003" / "composite.png").read_bytes() == (
        out / "0001" / "composite.png"
    ).read_bytes()
    status, _, err = run(*words, "--best-of", 3)
    assert status == 2
    assert "give it together with --score" in err


def test_a_stopped_command_goes_on_with_what_is_missing(clean, tmp_path, run):
    out = tmp_path / "o"
    words = ["generate", "--base", "tiny", "--recipe", "film-storyboard", "--prompt", CAPTION]
    words += ["--size", "48x96", "--steps", "1", "--count", 3, "--out", out]
    assert run(*words)[0] == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    shutil.rmtree(out / "0003")
    leftover = out / ".0003-0123456789ab.tmp"
    leftover.mkdir()
    (leftover / "composite.png").write_bytes(b"half")
    os.utime(leftover, (1, 1))
    status, said, _ = run(*words)
    assert status == 0
    assert said.count("kept") == 2
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert len(list(out.iterdir())) == 3


def test_the_best_that_was_chosen_is_kept(clean, tmp_path, run):
    words = ["generate", "--base", "tiny", "--recipe", "film-storyboard", "--prompt", CAPTION]
    words += ["--size", "48x96", "--steps", "1", "--out", tmp_path / "o"]
    words += ["--best-of", 2, "--score", "toyland"]
    assert run(*words)[0] == 0
    status, said, _ = run(*words)
    assert (status, "kept" in said, "wrote" in said) == (0, True, False)
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["0001"]


def test_a_prompt_that_the_base_cannot_read_is_said_with_its_share(clean, tmp_path, run):
    prompt = "[MOVIE-SHOTS] 港の朝 [SCENE-1] 米拉在码头 [SCENE-2] 米拉 waves [SCENE-3] 米拉"
    words = ["generate", "--base", "tiny", "--recipe", "film-storyboard", "--out", tmp_path / "o"]
    _, _, err = run(*words, *SMALL, "--prompt", prompt)
    assert re.search(r"cannot read \d\d% of its letters", err)
