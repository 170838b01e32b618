"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from iclora.errors import IcloraError, SettingsError, StorageError
from iclora.files import (
    append_line,
    cache_home,
    check_file,
    check_folder,
    clear_leftovers,
    damaged_name,
    inside,
    natural_key,
    replacing,
    set_aside,
    work_folder,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def killed():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        killed()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot write")]
)
def test_a_full_disk_is_named_and_harms_nothing(tmp_path, monkeypatch, code, says):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=says):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path):
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with pytest.raises(StorageError):
        append_line(tmp_path, "one")


def test_a_line_after_one_that_a_kill_cut_short_stands_alone(tmp_path):
    (tmp_path / "log").write_text('{"a": 1}\n{"b')
    append_line(tmp_path / "log", "two")
    append_line(tmp_path / "log", "three")
    assert (tmp_path / "log").read_text() == '{"a": 1}\n{"b\ntwo\nthree\n'


def test_what_is_damaged_is_set_aside_and_nothing_is_replaced(tmp_path):
    for number, make in enumerate((Path.mkdir, Path.touch, Path.mkdir), 1):
        make(tmp_path / "a")
        place = set_aside(tmp_path / "a")
        assert place.name == ("damaged-a" if number == 1 else f"damaged-a-{number}")
        assert place.exists()
    (tmp_path / "damaged-b").symlink_to(tmp_path / "nowhere")
    assert damaged_name(tmp_path / "b").name == "damaged-b-2"
    with pytest.raises(StorageError):
        set_aside(tmp_path / "gone")


def test_names_sort_as_people_count():
    names = ["panel-10", "panel-2", "Panel-1", "a"]
    assert sorted(names, key=natural_key) == ["a", "Panel-1", "panel-2", "panel-10"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "link/x"])
def test_a_name_from_a_file_never_leads_out_of_its_folder(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="leads out"):
        inside(folder, name, SettingsError)
    assert inside(folder, "a/b.png", SettingsError) == folder / "a" / "b.png"


def test_the_cache_follows_its_variables(monkeypatch):
    monkeypatch.setenv("ICLORA_CACHE", "/a")
    assert cache_home() == Path("/a")
    monkeypatch.delenv("ICLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_home() == Path("/b/iclora")


def test_every_error_says_what_is_wrong_and_what_to_do():
    error = IcloraError("the door is shut", "Open it.")
    assert str(error) == "the door is shut\nOpen it."
    assert (error.problem, error.advice) == ("the door is shut", "Open it.")


def test_numbers_in_names_may_have_any_length_and_any_script():
    names = ["a²", "1²", "9" * 5000, "\u0663", "08", "8", "007"]
    assert sorted(names, key=natural_key)[:3] == ["1²", "007", "08"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there are no devices")
def test_a_device_is_never_replaced_by_a_file(tmp_path):
    with pytest.raises(StorageError, match="not a regular file"):
        write_text(Path("/dev/full"), "x")
    (tmp_path / "link").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="not a regular file"):
        check_file(tmp_path / "link")


def test_a_name_of_255_bytes_is_written(tmp_path):
    path = tmp_path / ("é" * 127 + "x")
    write_text(path, "x")
    assert path.read_text() == "x"
    with pytest.raises(StorageError):
        write_text(tmp_path / ("x" * 256), "x")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_tried_before_anything_is_computed_and_stays_as_it_was(tmp_path):
    check_folder(tmp_path / "new" / "deep")
    (tmp_path / "file").write_text("x")
    for wrong in (
        tmp_path / "file",
        tmp_path / "file/x",
        "/dev/null",
        "/proc/x",
        "a\0b",
        "s3://b/x",
    ):
        with pytest.raises(StorageError) as refused:
            check_folder(wrong, "out")
    assert refused.value.setting == "out"
    with pytest.raises(StorageError, match="is a folder"):
        check_file(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_missing_home_is_an_error_of_ours(monkeypatch):
    for name in ("ICLORA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(StorageError, match="no home"):
        cache_home()


def aged(path: Path) -> Path:
    os.utime(path, (1, 1))
    return path


@pytest.mark.skipif(os.name == "nt", reason="there are no such locks")
def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    dead = [tmp_path / ".a.txt.0123456789ab.tmp", tmp_path / ".0001-0123456789ab.tmp"]
    dead[0].write_text("half")
    dead[1].mkdir()
    (dead[1] / "x").write_text("half")
    others = [tmp_path / ".mine.tmp", tmp_path / "a.0123456789ab.tmp"]
    for path in (*dead, *others):
        if not path.exists():
            path.write_text("")
        aged(path)
    with replacing(tmp_path / "new.txt") as writing, work_folder(tmp_path / "0002") as work:
        (work / "x").write_text("whole")
        writing.write_text("whole")
        aged(work)
        aged(writing)
        clear_leftovers(tmp_path)
    found = {p.name for p in tmp_path.iterdir()}
    assert found == {"new.txt", "0002", *(p.name for p in others)}


@pytest.mark.skipif(os.name == "nt", reason="there are no such locks")
def test_who_is_alone_removes_young_leftovers_too_and_those_of_one_name(tmp_path):
    left = [".a.txt.0123456789ab.tmp", ".a-0123456789ab.tmp", ".ab-0123456789ab.tmp"]
    now = time.time() + 60  # They stay young where a machine stands still for a second.
    for name in left:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now, now))
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(left)
    clear_leftovers(tmp_path, "a", alone=True)
    assert {p.name for p in tmp_path.iterdir()} == {left[0], left[2]}
    clear_leftovers(tmp_path, alone=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_whole_or_absent(tmp_path):
    def killed():
        with work_folder(tmp_path / "a") as work:
            (work / "x").write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        killed()
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="exists"), work_folder(tmp_path / "a"):
        pass


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_is_not_replaced_by_a_file(path):
    with pytest.raises(StorageError, match="is a folder"), replacing(Path(path)):
        pass
