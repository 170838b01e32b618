"""Composites: every panel whole, all sets or none, readable by any trainer."""

from __future__ import annotations

import os

import pytest

from iclora.errors import DatasetError, StorageError
from iclora.progress import Cancelled, Progress
from iclora.sets.canvas import compose, split
from iclora.sets.check import check_dataset
from iclora.sets.compose import compose_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import load_recipe
from tests.conftest import CAPTION, picture
from tests.sets.test_check import errors
from tests.sets.test_dataset import pair


def test_composing_keeps_every_panel_whole_and_found_again_exactly(tmp_path):
    pair(tmp_path / "d", "0001")
    source = open_dataset(tmp_path / "d", "film-storyboard")
    compose_dataset(source, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"0001.png", "0001.txt", "iclora.toml"}
    assert (tmp_path / "out" / "0001.txt").read_text() == CAPTION
    composed = open_dataset(tmp_path / "out")
    panels = composed.sets[0].load(composed.recipe)
    layout = source.recipe.canvas.fit([(400, 200), (400, 190), (400, 210)], 400 * 600, 16)
    assert panels.sizes == list(layout.sizes)
    layout.check_grid(16)
    expected = compose(layout, source.sets[0].load(source.recipe).panels)
    assert [p.tobytes() for p in panels.panels] == [p.tobytes() for p in split(layout, expected)]


def test_composites_of_flat_colours_keep_their_panels_where_no_seam_could_be_seen(tmp_path):
    from PIL import Image

    folder = tmp_path / "d" / "0001"
    folder.mkdir(parents=True)
    for i, height in enumerate((64, 96, 128)):
        Image.new("RGB", (160, height), "gray").save(folder / f"{i}.png")
    (folder / "caption.txt").write_text(CAPTION)
    compose_dataset(open_dataset(tmp_path / "d", "film-storyboard"), tmp_path / "out")
    composed = open_dataset(tmp_path / "out")
    assert composed.sets[0].load(composed.recipe).sizes == [(160, 64), (160, 96), (160, 128)]


def test_a_recipe_of_the_users_own_travels_with_its_composites(tmp_path):
    from tests.sets.test_recipe import OWN

    (tmp_path / "own.toml").write_text(OWN)
    folder = tmp_path / "d" / "a"
    folder.mkdir(parents=True)
    for i in range(2):
        picture(64, 64, i).save(folder / f"{i}.png")
    (folder / "caption.txt").write_text("A room [BEFORE] empty, [AFTER] furnished.")
    compose_dataset(open_dataset(tmp_path / "d", tmp_path / "own.toml"), tmp_path / "out")
    assert open_dataset(tmp_path / "out").recipe == load_recipe(tmp_path / "own.toml")


def test_panels_that_fit_no_box_are_an_error_in_check_and_stop_composing(make_dataset, tmp_path):
    root = make_dataset(sets=2)
    for i in range(3):
        picture(1200, 4, i).save(root / "0002" / f"{i + 1}.png")
    (problem,) = errors(open_dataset(root))
    assert problem.subject == "0002"
    assert "off the shape of its box" in problem.text
    with pytest.raises(DatasetError, match="Nothing was done"):
        compose_dataset(open_dataset(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_composing_reports_each_set_with_its_canvas(make_dataset, tmp_path):
    events = []
    compose_dataset(
        open_dataset(make_dataset(2)), tmp_path / "out", progress=Progress(events.append)
    )
    assert [(e.done, e.total, e.note) for e in events] == [(1, 2, "0001"), (2, 2, "0002")]
    composed = open_dataset(tmp_path / "out")
    sizes = [s.load(composed.recipe).sizes for s in composed.sets]
    assert sizes == [list(e.values["layout"].sizes) for e in events]


def test_composing_leaves_nothing_behind_when_it_is_stopped(make_dataset, tmp_path):
    stopped = Progress()
    stopped.cancel()
    with pytest.raises(Cancelled):
        compose_dataset(open_dataset(make_dataset()), tmp_path / "out", progress=stopped)
    assert not [p for p in tmp_path.iterdir() if p.name != "data"]


def test_composing_passes_over_captions_it_cannot_read_and_names_them(make_dataset, tmp_path):
    root = make_dataset(sets=2)
    (root / "0001" / "caption.txt").write_bytes(b"\xff\xfa")
    found = compose_dataset(open_dataset(root), tmp_path / "out")
    assert any("not UTF-8" in p.text for p in found)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"0001.png", "0002.png", "0002.txt", "iclora.toml"}


def test_composing_writes_nothing_when_a_picture_is_broken(make_dataset, tmp_path):
    root = make_dataset()
    (root / "0003" / "1.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"1 problem in.*\n.*0003/1\.png"):
        compose_dataset(open_dataset(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_composing_never_writes_into_a_folder_with_files(make_dataset, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(DatasetError, match="not an empty folder"):
        compose_dataset(open_dataset(make_dataset()), tmp_path / "out")


def test_composing_goes_on_without_captions_and_says_so(make_dataset, tmp_path):
    root = make_dataset(sets=1)
    (root / "0001" / "caption.txt").unlink()
    found = compose_dataset(open_dataset(root), tmp_path / "out")
    assert any("no caption" in p.text for p in found)
    assert (tmp_path / "out" / "0001.png").exists()


def test_large_originals_are_composed_at_most_at_the_asked_resolution(make_dataset, tmp_path):
    root = make_dataset(sets=1, size=(640, 320))
    compose_dataset(open_dataset(root), tmp_path / "out", resolution=256)
    (report,) = check_dataset(open_dataset(tmp_path / "out"))
    assert 0.8 * 256**2 < sum(w * h for w, h in report.sizes) <= 256**2


@pytest.mark.parametrize("grid", [32, 64])
def test_composites_for_other_trainers_lie_on_their_grid(make_dataset, tmp_path, grid):
    root = make_dataset(sets=2, size=(640, 300))
    compose_dataset(open_dataset(root), tmp_path / "out", resolution=768, grid=grid)
    for report in check_dataset(open_dataset(tmp_path / "out")):
        assert all(side % grid == 0 for size in report.sizes for side in size)


def test_a_second_process_that_composes_into_the_same_folder_is_refused(make_dataset, tmp_path):
    dataset, again = open_dataset(make_dataset(2)), []

    def meanwhile(event):
        with pytest.raises(DatasetError, match="another process is writing"):
            compose_dataset(dataset, tmp_path / "out")
        again.append(event.note)

    compose_dataset(dataset, tmp_path / "out", progress=Progress(meanwhile))
    assert again == ["0001", "0002"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out"]
    with pytest.raises(DatasetError, match="not an empty folder"):
        compose_dataset(dataset, tmp_path / "out")


def test_what_a_killed_process_finished_is_taken_and_nothing_else_is(make_dataset, tmp_path):
    """It may be killed after its last rename, while it still holds its lock."""
    from iclora.files import digest

    dataset, lock = open_dataset(make_dataset(1)), tmp_path / f".{digest('out')[:12]}.lock"
    compose_dataset(dataset, tmp_path / "out")
    lock.touch()
    compose_dataset(dataset, tmp_path / "out")
    (tmp_path / "out" / "0001.txt").write_text("by hand")
    lock.touch()
    with pytest.raises(DatasetError, match="not an empty folder"):
        compose_dataset(dataset, tmp_path / "out")
    assert (tmp_path / "out" / "0001.txt").read_text() == "by hand"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out"]


def test_a_lock_that_a_killed_process_left_behind_locks_nothing(make_dataset, tmp_path):
    from iclora.files import digest

    (tmp_path / f".{digest('out')[:12]}.lock").touch()
    compose_dataset(open_dataset(make_dataset(1)), tmp_path / "out")
    assert (tmp_path / "out" / "0001.png").exists()


def test_a_place_that_cannot_be_written_is_refused_before_any_picture_is_read(
    make_dataset, tmp_path, monkeypatch
):
    dataset = open_dataset(make_dataset(1))
    monkeypatch.setattr("iclora.sets.dataset.read_image", None)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (
        tmp_path / "file",
        tmp_path / "file" / "x",
        tmp_path / "loop",
        ".",
        "/",
        "/dev/full",
    ):
        with pytest.raises((DatasetError, StorageError)):
            compose_dataset(dataset, out)
    with pytest.raises(DatasetError, match="is a mount point"):
        compose_dataset(dataset, "/proc")


def test_a_link_to_an_empty_folder_is_written_through(make_dataset, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    compose_dataset(open_dataset(make_dataset(1)), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "0001.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="there are no such locks")
def test_what_a_killed_compose_left_is_gone_after_the_next_one_and_nothing_of_others(
    make_dataset, tmp_path
):
    left, other = tmp_path / ".out-0123456789ab.tmp", tmp_path / ".in-0123456789ab.tmp"
    for folder in (left, other):
        folder.mkdir()
        (folder / "0001.png").write_bytes(b"half")
        os.utime(folder, (0, 0))
    compose_dataset(open_dataset(make_dataset(sets=1)), tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"data", "out", other.name}
