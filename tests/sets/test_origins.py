"""sets.jsonl: the scenes of collected sets, and what is said of lines that cannot be read."""

from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset


def test_sets_know_their_scenes_and_a_broken_line_is_named(make_dataset):
    root = make_dataset(3)
    (root / "sets.jsonl").write_text(
        '{"set": "0001", "scene": "film.mp4, scene 1", "panels": [{"file": "film.mp4"}]}\n'
        '{"set": "0002", "sce\n[1]\n{"set": "0003", "score": "high"}\n'
    )
    dataset = open_dataset(root)
    assert dataset.origins["0001"].sources == ("film.mp4",)
    assert set(dataset.origins) == {"0001"}
    (problem,) = dataset.problems
    assert (problem.subject, problem.severity) == ("sets.jsonl", "warning")
    assert "line 2 cannot be read, nor 2 others" in problem.text
    reports = check_dataset(dataset, resolutions=(64,))
    assert [report.set.scene for report in reports] == ["film.mp4, scene 1", "", ""]


def test_the_file_changes_no_digest(make_dataset):
    root = make_dataset(1)
    before = open_dataset(root).digest
    (root / "sets.jsonl").write_text('{"set": "0001", "scene": "a"}')
    assert open_dataset(root).digest == before
