"""workshop.toyland.claims: words that tell, words from outside, and the command on few sets."""

import json

import pytest

from iclora.evaluate.figures import Table
from iclora.toyland.measuring import prompt_cases
from iclora.toyland.metric import topic_of
from iclora.toyland.tasks import TASKS
from iclora.toyland.wording import phrases, traits_said
from workshop.toyland import claims


def test_the_base_is_told_in_words_it_knows_and_nothing_else_is_changed():
    for task in TASKS.values():
        cue = claims.CUES[task.topic]
        assert cue in phrases()
        plain = prompt_cases(task, 4, 2)
        for before, after in zip(plain, claims.told_cases(task, plain), strict=True):
            assert (before.key, before.given) == (after.key, after.given)
            assert after.prompt.replace(f", {cue}", "", 1) == before.prompt
            one, other = (task.small_recipe.parse(case.prompt) for case in (before, after))
            assert one.panels == other.panels


def test_prompts_from_outside_are_of_every_other_recipe_and_of_pictures_that_state_something():
    task = TASKS["film-storyboard"]
    cases = claims.outside_cases(task, 5, 2, 3)
    assert len({case.key for case in cases}) == len(cases) == 3 * (5 + 2 * 7)
    assert {case.recipe.name for case in cases} == {"single-picture", *TASKS} - {task.recipe}
    pictures = {case.prompt for case in cases if case.recipe.canvas.single}
    assert len(pictures) == 5
    assert all(traits_said(text, topic_of(text)) for text in pictures)


def test_arms_are_compared_with_the_first_prompt_by_prompt():
    found = Table()
    for arm, shares in {"base": (0, 0, 1, 0), "told": (1, 1, 1, 0)}.items():
        for number, value in enumerate(shares):
            key = f"set {number}"
            found.add("toyland same all", "", arm, key, key, float(value))
    lines = claims.table(found, ("same all",)).splitlines()
    assert lines[2].startswith("| base | 25.0% (0.0% to 75.0%) |  |")
    assert lines[3].split("|")[3].strip().startswith("50.0% (")
    assert lines[-1] == "4 sets an arm from 4 prompts."


def test_runs_are_pooled_set_by_set_and_one_run_is_not():
    found = Table()
    arms = {"base": (0, 1), "a, run 0": (1, 1), "a, run 1": (0, 1), "b, run 0": (1, 0)}
    for arm, values in arms.items():
        for number, value in enumerate(values):
            found.add("toyland same all", "", arm, f"{number}", f"{number}", float(value))
    assert claims.pool(found) == {"a": ["a, run 0", "a, run 1"]}
    assert found.rows["toyland same all"].values["a"] == {"0": 0.5, "1": 1.0}
    less = found.rows["toyland same all"].difference("a", "base")
    assert less.mean == 0.25


@pytest.mark.machine
def test_the_command_tunes_once_and_measures_every_claim(tmp_path, capsys):
    words = "--task visual-identity --prompts 1 --pictures 2 --each 0 --seeds 1 --sets 2 --runs 0"
    words += " --steps 1 --sampling-steps 1 --threads 1 --full 2"
    claims.main(["--out", str(tmp_path), *words.split()])
    said = capsys.readouterr().out
    assert said.count(" tuned on ") == 2
    home = tmp_path / "visual-identity"
    known = json.loads((home / "knowledge.json").read_text())["pixels distance"]["arms"]
    assert known["2 sets, run 0 at 0"]["mean"] == 0
    assert known["2 sets, run 0 at 1"]["count"] == 2
    told = json.loads((home / "told.json").read_text())["toyland same all"]["arms"]
    assert set(told) == {"base", "base, told", "2 sets, run 0"}
    assert known["full, 2 sets, run 0"]["mean"] > 0
    sets = json.loads((home / "sets.json").read_text())["toyland same all"]["arms"]
    assert set(sets) == {"base", "2 sets, run 0", "full, 2 sets, run 0"}
    assert "2 sets an arm from 2 prompts." in (home / "knowledge.md").read_text()
    assert (home / "outside" / "report.html").is_file()
