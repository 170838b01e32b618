"""The best of several sets, by whatever figure says so."""

import gc
import weakref

import pytest

from iclora.errors import SettingsError
from iclora.evaluate.making import scorer
from iclora.evaluate.metrics.base import Metric
from iclora.making.best import best_of
from iclora.making.session import Ask, Session
from tests.conftest import CAPTION, picture
from tests.making.helpers import STORY, prepared, told


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
def asks(clean):
    given = {2: picture(96, 64)}
    return [
        Ask(prepared(clean, CAPTION, given=given, seed=n, **told(steps=1))[0], given)
        for n in range(4)
    ]


def test_the_highest_score_wins_and_the_first_of_equals(clean, asks):
    metric = Listed([0.2, 0.9, None, 0.9])
    ((number, best),) = best_of(Session(clean), asks, 4, scorer(metric, STORY), "a list")
    assert number == 0
    assert best.made.request == asks[1].request
    assert best.scores == (0.2, 0.9, None, 0.9)
    assert list(metric.seen[0].given) == [2]
    assert metric.seen[0].words[1].startswith("then <Ana> fishes")


def test_each_wish_has_a_best_of_its_own(clean, asks):
    metric = Listed([0.2, 0.1, 0.3, 0.9])
    found = list(best_of(Session(clean), asks, 2, scorer(metric, STORY), "a list"))
    assert [(n, b.scores) for n, b in found] == [(0, (0.2, 0.1)), (1, (0.3, 0.9))]
    assert [b.made.request for _, b in found] == [asks[0].request, asks[3].request]


def test_no_score_at_all_is_said(clean, asks):
    with pytest.raises(SettingsError, match="a list scored none of 2 sets"):
        list(best_of(Session(clean), asks[:2], 2, scorer(Listed([None, None]), STORY), "a list"))


def test_at_most_the_best_and_the_next_are_in_memory(clean, asks):
    seen = []

    def score(made):
        seen.append(weakref.ref(made))
        gc.collect()
        assert sum(ref() is not None for ref in seen) <= 2
        return -float(len(seen) % 3)

    assert list(best_of(Session(clean), asks, 4, score, "a test"))
