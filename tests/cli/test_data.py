"""Verbs over image sets and their words."""

from __future__ import annotations

import json
import random
import re

import pytest

from iclora.sets.images import open_image
from iclora.toyland.tasks import TASKS, draw_set
from tests.conftest import CAPTION
from tests.vlm.test_openai import completion


def test_check_estimates_tokens_and_keeps_brackets_in_names(make_dataset, run):
    root = make_dataset(sets=1)
    (root / "0001").rename(root / "0001[v2]")
    status, out, _ = run("check", root)
    assert status == 0
    assert "0001[v2]" in out
    estimate = int(re.search(r"~(\d+)", out)[1])
    assert 20 < estimate < 60
    (root / "0001[v2]" / "caption.txt").write_text(CAPTION + " extraordinarily" * 200)
    status, _, err = run("check", root)
    assert status == 0
    assert "may be too long" in err


def test_check_fails_on_errors_and_names_them(make_dataset, run):
    root = make_dataset()
    (root / "0002" / "2.png").unlink()
    status, out, err = run("check", root)
    assert status == 2
    assert "1 errors" in out
    assert re.search(r"error: 0002: .*has 2 images", err)


def test_caption_says_what_is_sent_where_and_never_the_key(make_dataset, writer, monkeypatch, run):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    root = make_dataset(2)
    (root / "0002" / "caption.txt").unlink()
    words = ["caption", str(root), "--captioner", "openai:m", "--api", writer.url]
    status, out, err = run(*words)
    told = out + err
    assert status == 0
    assert f"sent to {writer.url} (model m)" in told
    assert "no side above 768 px" in told
    assert "1 captions written, 1 sets had one already, 0 failed" in told
    assert "sk-secret" not in told
    assert not [f for f in root.rglob("*") if f.is_file() and b"sk-secret" in f.read_bytes()]


def test_caption_ends_with_a_status_and_a_list_where_sets_failed(make_dataset, writer, run):

    writer.behave = lambda body: (200, completion("nonsense"))
    root = make_dataset(1)
    (root / "0001" / "caption.txt").unlink()
    words = ["caption", str(root), "--captioner", "openai:m", "--api", writer.url]
    status, out, _ = run(*words)
    assert status == 1
    assert "caption-failures.json" in out


def test_review_writes_a_page_beside_the_dataset(make_dataset, run):
    root = make_dataset(2)
    status, out, _ = run("review", root)
    assert status == 0
    page = root.with_name(f"{root.name}-review.html")
    assert str(page) in out
    assert page.read_text().count("<section") == 2


def test_collect_writes_the_best_sets_and_a_page_to_look_through_them(tmp_path, run):
    for number in range(3):
        drawn = draw_set(TASKS["sandstorm-effect"], random.Random(number))[0]
        for panel, role in zip(drawn.panels, ("before", "after"), strict=True):
            (tmp_path / "in").mkdir(exist_ok=True)
            panel.render().save(tmp_path / "in" / f"{number}_{role}.png")
    words = ["collect", tmp_path / "in", "--recipe", "sandstorm-effect", "--out", tmp_path / "sets"]
    status, out, _ = run(*words, "--keep", "2")
    page = tmp_path / "sets-review.html"
    assert status == 0
    assert f"2 sets in {tmp_path / 'sets'}, of 3 found" in out
    assert f"look through them: {page}" in out
    assert page.read_text().count("<section") == 2
    checked = run("check", tmp_path / "sets")[1]
    assert "from 2 scenes; sets of one scene are held out together" in checked
    assert "holds this collection already" in run(*words, "--keep", "2")[1]


FOREIGN = {
    "overview": "港の朝 at the pier",
    "panels": ["米拉在码头 waves", "Мира ведёт", "ミラ sleeps"],
}


@pytest.mark.parametrize("base", [["--base", "tiny"], []])
@pytest.mark.parametrize("verb", ["check", "caption", "prompt"])
def test_words_that_a_base_cannot_read_are_warned_of_by_every_verb(
    make_dataset, writer, run, verb, base
):
    writer.behave = lambda body: (200, completion(json.dumps(FOREIGN, ensure_ascii=False)))
    data = make_dataset(sets=1)
    server = ["--captioner", "openai:m", "--api", writer.url]
    words = {
        "check": ["check", data],
        "caption": ["caption", data, *server, "--overwrite"],
        "prompt": ["prompt", "a harbour", "--recipe", "film-storyboard", *server],
    }[verb]
    if verb == "check":
        run("caption", data, *server, "--overwrite")
    _, _, err = run(*words, *base)
    (line,) = [line for line in err.splitlines() if "of its letters" in line]
    share = int(re.search(r"(\d+)% of its letters", line)[1])
    assert 20 < share < 80
    assert ("--base" in line) == (not base)


def test_latin_letters_with_accents_are_no_strangers(make_dataset, run):
    data = make_dataset(sets=1)
    told = CAPTION.replace("<Ana> fishes", "<Łucja> fishes à côté de l'île, größer, naïve")
    (data / "0001" / "caption.txt").write_text(told, encoding="utf-8")
    assert "of its letters" not in run("check", data)[2]
    told = CAPTION.replace("<Ana> fishes", "\U0001f600\U0001f431\U0001f30a\u2600\U0001f3d4\u2764")
    (data / "0001" / "caption.txt").write_text(told, encoding="utf-8")
    assert "of its letters and pictographs are not of English" in run("check", data)[2]


def test_compose_says_what_it_cuts_off_and_how_to_keep_it(tmp_path, run):
    from tests.sets.test_letterbox import boxed, stills, write_sets

    write_sets(tmp_path / "in", [boxed(p) for p in stills(1)])
    words = ["compose", tmp_path / "in", "--recipe", "film-storyboard"]
    status, out, err = run(*words, "--out", tmp_path / "a")
    assert status == 0
    assert "bars of one colour are cut off 3 panels (24 px top, 24 px bottom)" in err
    (option,) = re.findall(r"pass (--\S+) to keep them", err)
    kept = run(*words, "--out", tmp_path / "b", option)
    assert "cut off 3 panels" not in kept[2]
    assert "400x224" in kept[1]
    assert "400x176" in out


def test_a_grid_is_chosen_as_it_is_typed_and_another_is_refused(make_dataset, run, tmp_path):
    words = ["compose", make_dataset(sets=1, size=(640, 300)), "--out", tmp_path / "a", "--grid"]
    status, _, err = run(*words, "48")
    assert (status, "16, 32 or 64" in err) == (2, True)
    assert run(*words, "64")[0] == 0
    assert all(side % 64 == 0 for side in open_image(tmp_path / "a" / "0001.png").size)


def test_a_background_is_any_colour_and_others_are_refused_by_name(make_dataset, run, tmp_path):
    data = make_dataset(sets=1)
    words = ["compose", data, "--background"]
    assert run(*words, "papayawhip", "--out", tmp_path / "a")[0] == 0
    for wrong in ("blau", "#12345", "#ff000080", "rgb(1,2)"):
        status, _, err = run(*words, wrong, "--out", tmp_path / "b")
        assert status == 2
        assert "--background" in err
