"""The best of several sets, by whatever figure says so."""

import dataclasses

import pytest

from iclora.errors import SettingsError
from iclora.evaluate.making import scorer
from iclora.evaluate.metrics.base import Metric
from iclora.making.best import best_of
from iclora.making.generate import complete
from iclora.sets.recipe import load_recipe
from tests.conftest import CAPTION, picture

STORY = load_recipe("film-storyboard")


class Listed(Metric):
    """Gives the scores of a list, one after another."""

    name, main, figures = "listed", "score", {}

    def __init__(self, scores):
        super().__init__("a list")
        self.scores, self.seen = list(scores), []

    def of_sets(self, sets):
        for made in sets:
            self.seen.append(made)
            score = self.scores.pop(0)
            yield {} if score is None else {"score": score}


@pytest.fixture
def sets(clean):
    made = complete(clean, CAPTION, {2: picture(96, 64)}, recipe=STORY, size=(96, 192), steps=1)
    return [dataclasses.replace(made, vae=name) for name in "abcd"]


def test_the_highest_score_wins_and_the_first_of_equals(sets):
    metric = Listed([0.2, 0.9, None, 0.9])
    best, scores = best_of(iter(sets), scorer(metric, STORY), "a list")
    assert best.vae == "b"
    assert scores == [0.2, 0.9, None, 0.9]
    assert list(metric.seen[0].given) == [2]
    assert metric.seen[0].words[1].startswith("then <Ana> fishes")


def test_no_score_at_all_is_said(sets):
    with pytest.raises(SettingsError, match="a list scored none of 2 sets"):
        best_of(sets[:2], scorer(Listed([None, None]), STORY), "a list")


def test_candidates_are_made_one_after_another(sets):
    metric, made = Listed([1, 2, 3, 4]), []

    def making():
        for each in sets:
            assert len(metric.seen) == len(made), "scored before the next is made"
            made.append(each)
            yield each

    assert best_of(making(), scorer(metric, STORY), "a list")[0].vae == "d"
