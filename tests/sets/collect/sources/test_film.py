"""A reading of a video that was stopped goes on, and ends as one that was not."""

import json

import pytest

from iclora.progress import Cancelled, Progress
from iclora.sets.collect.sources import film as reader


@pytest.fixture(scope="module")
def whole(film, tmp_path_factory):
    """What an undisturbed reading of a film leaves."""
    folder = tmp_path_factory.mktemp("whole")
    reader.extract(film[0], Progress(), folder)
    return content(folder)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(path, folder, until=None):
    """Read a film, stopped at a second of it. Returns: the seconds that were read."""
    folder.mkdir(exist_ok=True)
    seconds = []
    progress = Progress(lambda event: seconds.append(event.done) or stop(event))

    def stop(event):
        if event.done == until:
            progress.cancel()

    if until is None:
        reader.extract(path, progress, folder)
    else:
        with pytest.raises(Cancelled):
            reader.extract(path, progress, folder)
    return seconds


def test_a_stopped_reading_goes_on_and_ends_as_one_that_was_not(film, whole, tmp_path, monkeypatch):
    path, _ = film
    assert len(json.loads(whole["shots.json"])["shots"]) >= 6
    monkeypatch.setattr(reader, "_EVERY_S", 0)
    stops = [3, 9, 14]
    begun = [read(path, tmp_path / "x", until)[0] for until in stops] + [
        read(path, tmp_path / "x")[0]
    ]
    assert begun[:2] == [0, 0], "48 frames must be known behind what is settled"
    assert 0 < begun[2] < begun[3] <= 14
    assert content(tmp_path / "x") == whole


def test_a_state_that_does_not_fit_the_film_is_not_gone_on_from(film, whole, tmp_path, monkeypatch):
    path, _ = film
    monkeypatch.setattr(reader, "_EVERY_S", 0)
    read(path, tmp_path / "x", 12)
    noted = json.loads((tmp_path / "x/stopped.json").read_text())
    noted["finder"]["base"] += 1
    (tmp_path / "x/stopped.json").write_text(json.dumps(noted))
    assert read(path, tmp_path / "x")[0] == 0
    assert content(tmp_path / "x") == whole
