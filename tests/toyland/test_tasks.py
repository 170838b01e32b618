"""Tuning sets are datasets like any other, and keep their secrets."""

import random

import pytest

from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import load_recipe
from iclora.toyland.tasks import TASKS, draw_set, held_out, task_of, write_sets


@pytest.mark.parametrize("name", list(TASKS))
def test_the_relation_holds_and_the_caption_keeps_it_to_itself(name):
    task = TASKS[name]
    for seed in range(30):
        canvas, caption = draw_set(task, random.Random(seed))
        for trait in task.relation:
            assert len({panel.traits[trait] for panel in canvas.panels}) == 1
            assert not any(trait in said for said in caption.said)


@pytest.mark.parametrize("name", list(TASKS))
def test_no_tuning_set_shows_a_held_out_combination(name):
    task = TASKS[name]
    for seed in range(60):
        for unseen in (False, True):
            canvas, _ = draw_set(task, random.Random(seed), unseen=unseen)
            assert held_out(canvas.panels[0].traits, task.relation) == unseen


@pytest.mark.parametrize("name", list(TASKS))
def test_a_written_task_passes_check_with_its_recipes_prefix_and_markers(name, tmp_path):
    task = TASKS[name]
    write_sets(task, tmp_path, 3)
    dataset = open_dataset(tmp_path)
    full = load_recipe(name)
    assert (dataset.recipe.prefix, dataset.recipe.markers) == (full.prefix, full.markers)
    reports = check_dataset(dataset, resolutions=(task.resolution,), grid=8)
    assert not [p for r in reports for p in r.problems if p.severity == "error"]


def test_the_same_seed_writes_the_same_sets(tmp_path):
    task = TASKS["film-storyboard"]
    for folder in ("a", "b"):
        write_sets(task, tmp_path / folder, 2, seed=4)
    digests = {open_dataset(tmp_path / folder).digest for folder in ("a", "b")}
    assert len(digests) == 1


@pytest.mark.parametrize("name", list(TASKS))
def test_a_recipes_copy_of_another_name_is_of_the_same_task(name):
    assert task_of(TASKS[name].small_recipe.model_copy(update={"name": "mine"})) == TASKS[name]
    assert task_of(load_recipe(name).model_copy(update={"name": "mine", "prefix": "[X]"})) is None
