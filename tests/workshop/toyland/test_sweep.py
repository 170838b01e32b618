"""The sweep over sets, rank and steps: what it has is not made again, and its plot shows it all."""

import json

import pytest
from PIL import Image

from iclora.toyland.tasks import TASKS
from workshop.toyland import sweep

TASK = TASKS["film-storyboard"]


@pytest.fixture
def figures():
    wanted = [{**sweep.DEFAULT, a: v} for a, values in sweep.AXES.items() for v in values]
    names = [*(f"same {t}" for t in (*TASK.relation, "all")), "carried all", "diversity"]
    return {sweep.key(settings): dict.fromkeys(names, 0.5) for settings in wanted}


def test_every_axis_holds_the_default_so_that_the_plots_meet():
    assert all(sweep.DEFAULT[axis] in values for axis, values in sweep.AXES.items())


def test_figures_that_are_there_are_not_made_again(figures, tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(figures))
    assert sweep.run(TASK, tmp_path, 8, 3) == figures
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.machine
def test_a_point_that_is_missing_is_tuned_and_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "DEFAULT", {"sets": 3, "rank": 2, "steps": 1})
    monkeypatch.setattr(sweep, "AXES", {"rank": (2,)})
    found = sweep.run(TASKS["visual-identity"], tmp_path, 1, 2, batch=1, micro_batch=1)
    assert list(found) == ["sets=3 rank=2 steps=1"]
    assert {"same all", "diversity", "carried all", "seconds"} <= set(*found.values())
    assert json.loads((tmp_path / "sweep.json").read_text()) == found


def test_a_tuning_folder_of_a_killed_sweep_is_left_alone(tmp_path):
    first = sweep.fresh(tmp_path / "sets")
    first.mkdir()
    assert sweep.fresh(tmp_path / "sets") != first


def test_the_plot_is_a_picture_of_all_axes(figures, tmp_path):
    sweep.plot(TASK, figures, tmp_path / "sweep.png")
    picture = Image.open(tmp_path / "sweep.png")
    assert picture.width > 2 * picture.height
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
