"""Stories of toyland, image by image: told without looks, judged against the first."""

import json

import pytest

from iclora.sets.images import open_image
from iclora.toyland.tasks import held_out
from iclora.toyland.wording import traits_said
from workshop.toyland import drift


def test_a_story_leaves_the_looks_out_and_names_one_character_throughout():
    for number in range(10):
        story, first = drift.draw_story(number, 12)
        assert len(story.images) == 12
        assert held_out(first.traits, drift.TASK.relation)
        assert not set(traits_said(" ".join(story.images), "character")) & set(drift.TASK.relation)
        names = {
            word.strip(".,;:") for text in story.images for word in text.split() if "<" in word
        }
        assert len(names) == 1
        assert drift.draw_story(number, 12) == (story, first)


def test_the_truth_keeps_its_identity_and_another_does_not():
    (_, first), (_, other) = drift.draw_story(0, 3), drift.draw_story(1, 3)
    assert drift.kept([first.render(), other.render()], first) == [True, False]


def test_later_canvases_are_compared_with_the_first_story_by_story():
    rows = [[True] * 3 + [True, False, False], [True, True, False, True, False, False]]
    found = drift.summary(rows)
    assert [e["mean"] for e in found["images"]] == [1, 1, 0.5, 1, 0, 0]
    assert found["first canvas"]["mean"] == 0.75
    assert found["later canvases"]["mean"] == pytest.approx(1 / 3)
    assert found["later less first"]["mean"] == pytest.approx(1 / 3 - 0.75)


@pytest.mark.machine
def test_one_short_story_ends_in_a_plot_and_figures(tmp_path, capsys):
    drift.main(
        [
            "--out",
            str(tmp_path),
            "--stories",
            "1",
            "--images",
            "4",
            "--sampling-steps",
            "1",
            "--threads",
            "1",
        ]
    )
    data = json.loads((tmp_path / "drift.json").read_text())
    assert len(data["images"]) == 4
    assert data["rows"][0][0] is True, "the given image is the true one"
    assert len(list((tmp_path / "stories" / "0001").glob("*.png"))) == 4
    assert open_image(tmp_path / "drift.png").width > 500
    assert "later canvases less the first" in capsys.readouterr().out
