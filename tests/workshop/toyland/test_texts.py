"""workshop.toyland.texts: what leaks, how far encodings lie apart, and the command's table."""

from __future__ import annotations

import json

import pytest

from iclora.settings import TrainSettings
from iclora.toyland.measuring import prompt_cases
from iclora.toyland.tasks import TASKS, draw_tuning_set
from iclora.toyland.wording import traits_said
from workshop.toyland import texts
from workshop.toyland.texts import KINDS, apart, leaked, long_cases, placed, write_long_sets


def test_a_trait_leaks_if_a_panel_shows_what_another_was_told():
    said = [{"scene": "beach", "pose": "waving"}, {"scene": "forest", "pose": "waving"}, {}]
    right = [{"scene": "beach", "pose": "waving"}, {"scene": "forest", "pose": "waving"}, {}]
    # The same pose is told to both, so it cannot be told apart.
    assert leaked(said, right) == [False, False]
    swapped = [{"scene": "forest", "pose": "x"}, {"scene": "city", "pose": "x"}, {}]
    assert leaked(said, swapped) == [True, False]


def test_every_kind_is_a_setting_of_training():
    for kind, settings in KINDS.items():
        TrainSettings(base="b", data="d", out="o", **settings)
        assert settings or kind == "joint"


def test_encodings_differ_most_at_borders(toyland):
    found = apart(toyland, TASKS["film-storyboard"], 2)
    assert 0 < found["elsewhere"] < found["at borders"] < 1


def test_long_captions_fit_panel_by_panel_alone(toyland):
    task = TASKS["film-storyboard"]
    for case in long_cases(task, 8, 1):
        joint = task.small_recipe.parse(case.prompt)
        assert toyland.count_tokens(case.prompt) > toyland.max_text_tokens
        assert all(toyland.count_tokens(t) < 128 for t in joint.texts("isolated"))
        assert len(traits_said(joint.words[0], task.topic)) >= 5


def test_long_captions_of_tuning_sets_say_what_their_pictures_show(toyland, tmp_path):
    task = TASKS["film-storyboard"]
    write_long_sets(task, tmp_path, 1, 0)
    text = (tmp_path / "0001" / "caption.txt").read_text().strip()
    assert toyland.count_tokens(text) > toyland.max_text_tokens
    canvas, _ = draw_tuning_set(task, 0, 0)
    for words, panel in zip(task.small_recipe.parse(text).words, canvas.panels, strict=True):
        said = traits_said(words, task.topic)
        assert set(said) >= set(task.stated)
        assert all(panel.traits[trait] == value for trait, value in said.items())


def test_placed_words_stand_as_far_behind_as_in_one_text_and_within_the_budget(toyland):
    task = TASKS["film-storyboard"]
    usual = prompt_cases(task, 1, 1)[0].prompt
    for prompt, most in ((usual, 60), (long_cases(task, 1, 1)[0].prompt, 128)):
        joint = task.small_recipe.parse(prompt)
        apart = joint.texts("isolated")
        with placed():
            found = joint.texts("isolated")
            assert joint.texts("joint") == (prompt,)
        assert found[0] == apart[0]
        for own, text, marker in zip(apart, found, joint.markers, strict=True):
            assert text.endswith(own.removeprefix(joint.overview))
            assert traits_said(text.split(marker)[1], task.topic) == traits_said(own, task.topic)
            assert toyland.count_tokens(text) <= most
    pairs = zip(found, joint.markers, strict=True)
    begins = [toyland.count_tokens(text.split(marker)[0]) for text, marker in pairs]
    assert begins[0] < begins[1] < begins[2]


@pytest.mark.machine
def test_the_command_compares_the_base_read_both_ways(tmp_path, capsys):
    words = "--task sandstorm-effect --base --runs 0 --prompts 1 --sampling-steps 1 --threads 1"
    words += " --long"
    texts.main(["--out", str(tmp_path), *words.split()])
    home = tmp_path / "sandstorm-effect"
    rows = (home / "table.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:4]] == ["base, joint", "base, isolated"]
    values = json.loads((home / "figures.json").read_text())["toyland same all"]["arms"]
    assert {len(arm["values"]) for arm in values.values()} == {3}
    long = json.loads((home / "long.json").read_text())["panel 2"]["arms"]
    assert list(long) == ["base, isolated"]
    assert "at borders" in capsys.readouterr().out
