"""What tests of several sources collect with."""

import pytest

from iclora.progress import Progress
from iclora.sets.collect.looks import Looks
from iclora.sets.collect.provenance import Pool
from iclora.sets.collect.sources import Wanted
from iclora.sets.recipe import load_recipe
from workshop.collecting.films import write_film


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """A letterboxed film of three scenes, and its truth."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return path, write_film(path, 5, (192, 108), scenes=3, letterbox=0.12)


@pytest.fixture
def want(tmp_path):
    """Make what a source has to know; `problems` and `notes` fill up."""

    def make(recipe, by="auto", pages="drawn"):
        problems, notes = [], []
        out = tmp_path / "pool"
        out.mkdir(exist_ok=True)
        pool = Pool(out, {})
        looks = Looks(problems.append, Progress())
        how = (load_recipe(recipe), by, pages)
        made = Wanted(*how, looks, problems.append, notes.append, pool, Progress())
        object.__setattr__(made, "problems", problems)
        object.__setattr__(made, "notes", notes)
        return made

    return make
