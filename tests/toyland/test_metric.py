"""Toyland's judge as a metric: the same figures as the evaluation it comes from."""

import random

import numpy as np
import pytest
from PIL import Image

from iclora.errors import SettingsError
from iclora.evaluate.metrics.base import Made
from iclora.sets.recipe import load_recipe
from iclora.toyland.judge import agreement, diversity, stated_right
from iclora.toyland.metric import Toyland
from iclora.toyland.tasks import TASKS, draw_set
from iclora.toyland.wording import traits_said
from iclora.toyland.world import IDENTITY


def made_of(task, canvas, caption, given=()):
    recipe = task.small_recipe
    panels = tuple(panel.render() for panel in canvas.panels)
    return Made(
        recipe,
        recipe.canvas,
        canvas.render(),
        panels,
        recipe.parse(caption.text).words,
        {n: panels[n - 1] for n in given},
    )


def drawn(task, count):
    return [draw_set(task, random.Random(f"truth {n}"), unseen=True) for n in range(count)]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_a_panel_is_told_is_read_back_from_its_words(task):
    for canvas, caption in drawn(task, 30):
        words = task.small_recipe.parse(caption.text).words
        told = {*task.stated, *task.says_fixed}
        for own, text, panel in zip(caption.said, words, canvas.panels, strict=True):
            said = traits_said(text, task.topic)
            assert {t: v for t, v in said.items() if t in told} == dict(own)
            assert all(panel.traits[t] == v for t, v in said.items() if t in told)


@pytest.mark.parametrize("name", ["film-storyboard", "visual-identity"])
def test_figures_equal_the_judges_own(name):
    task = TASKS[name]
    sets = drawn(task, 3)
    # One with two panels exchanged between sets: not everything may be right.
    (one, caption), (other, _) = sets[0], sets[1]
    mixed = type(one)(one.arrangement, (*one.panels[:-1], other.panels[-1]))
    sets.append((mixed, caption))
    found = list(Toyland().of_sets([made_of(task, *each) for each in sets]))
    for figures, (canvas, caption) in zip(found, sets, strict=True):
        truth = [panel.traits for panel in canvas.panels]
        same = agreement(truth, task.relation)
        assert {k: v for k, v in figures.items() if k.startswith("same")} == {
            f"same {t}": float(v) for t, v in same.items()
        }
        right = stated_right(caption.said, truth)
        assert {k: v for k, v in figures.items() if k.startswith("stated")} == {
            f"stated {t}": float(np.mean(v)) for t, v in right.items()
        }
    assert found[0]["same all"] == 1
    assert found[3]["same all"] == 0
    truths = [[canvas.panels[0].traits for canvas, _ in sets][n] for n in range(3)]
    spread = Toyland().across_seeds([made_of(task, *each) for each in sets[:3]])
    assert spread == {"diversity": diversity(truths, IDENTITY[task.topic])}


def test_what_is_carried_over_counts_made_panels_alone():
    task = TASKS["film-storyboard"]
    (one, caption), (other, _) = drawn(task, 2)
    mixed = type(one)(one.arrangement, (one.panels[0], one.panels[1], other.panels[2]))
    (figures,) = Toyland().of_sets([made_of(task, mixed, caption, given=(1,))])
    assert figures["carried all"] == 0.5
    (figures,) = Toyland().of_sets([made_of(task, mixed, caption, given=(1, 3))])
    assert figures["carried all"] == 1
    assert "carried all" not in next(iter(Toyland().of_sets([made_of(task, one, caption)])))


def test_a_pose_that_is_not_carried_does_not_hide_the_rest():
    task = TASKS["sandstorm-effect"]
    canvas, caption = drawn(task, 1)[0]
    before, storm = canvas.panels
    pose = next(p for p in ("still", "waving") if p != before.traits["pose"])
    moved = type(storm)(storm.topic, {**storm.traits, "pose": pose}, storm.seed)
    changed = type(canvas)(canvas.arrangement, (before, moved))
    (figures,) = Toyland().of_sets([made_of(task, changed, caption, given=(1,))])
    assert (figures["carried pose"], figures["carried all"]) == (0, 0)
    assert figures["carried all but pose"] == 1


def test_recipes_toyland_does_not_have_are_refused():
    Toyland().check(TASKS["font-design"].small_recipe)
    with pytest.raises(SettingsError, match="couple-profile"):
        Toyland().check(load_recipe("couple-profile"))


def test_every_figure_says_what_it_means():
    task = TASKS["film-storyboard"]
    canvas, caption = drawn(task, 1)[0]
    made = made_of(task, canvas, caption, given=(2,))
    blank = Made(
        made.recipe,
        made.layout,
        made.composite,
        (Image.new("RGB", (64, 64)),) * 3,
        made.words,
        made.given,
    )
    (figures,) = Toyland().of_sets([blank])
    assert set(figures) <= set(Toyland.figures)
