"""Videos: frames of one shot alone, without bars, grouped by scene; hostile ones are named."""

import pytest

from iclora.sets.collect.picture import look_at
from iclora.sets.collect.sources import read_source
from workshop.collecting.films import write_film


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A letterboxed film of three scenes, and its truth."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return path, write_film(path, 5, (192, 108), scenes=3, letterbox=0.12)


def test_storyboards_are_of_one_scene_and_their_frames_of_one_shot(film, want):
    path, truth = film
    wanted = want("film-storyboard")
    found = read_source(str(path), wanted)
    assert wanted.problems == []
    assert len(found) >= 2
    for each in found:
        frames = [picture.origin.at["frame"] for picture in each.pictures]
        shots = [next(s for s in truth.shots if s.first <= f < s.end) for f in frames]
        assert len({shot.scene for shot in shots}) == 1
        assert len(set(shots)) == 3
        for shot, frame in zip(shots, frames, strict=True):
            assert shot.first + 3 < frame < shot.end - 4
        for picture in each.pictures:
            assert picture.origin.box == truth.box
            assert picture.open().size == truth.box[2:]
    scenes = [each.scene for each in found]
    assert scenes == sorted(scenes)


def test_a_frame_is_found_again_by_its_time_and_its_look_is_that_of_its_file(film, want):
    import av
    import numpy as np

    path, truth = film
    wanted = want("film-storyboard")
    picture = read_source(str(path), wanted)[0].pictures[1]
    known, seen = wanted.looks.of(picture), look_at(picture)
    assert (known.size, known.hash) == (seen.size, seen.hash)
    assert np.array_equal(known.tones, seen.tones)
    with av.open(str(path)) as container:
        frame = next(
            f for f in container.decode(video=0) if f.time >= picture.origin.at["time"] - 1e-3
        )
        left, top, width, height = truth.box
        whole = frame.to_image().crop((left, top, left + width, top + height))
    assert np.array_equal(np.asarray(whole), np.asarray(picture.open()))


def test_damaged_videos_are_named_and_a_missing_library_too(film, want, tmp_path, monkeypatch):
    path, _ = film
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:20000])
    (tmp_path / "text.mkv").write_text("no video")
    wanted = want("film-storyboard")
    assert read_source(str(tmp_path), wanted) == []
    named = {problem.subject.rsplit("/", 1)[-1] for problem in wanted.problems}
    assert named >= {"empty.mp4", "cut.mp4", "text.mkv"}
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    wanted = want("film-storyboard")
    read_source(str(tmp_path / "cut.mp4"), wanted)
    assert "iclora[collect]" in wanted.problems[0].advice
