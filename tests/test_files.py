"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from iclora.errors import IcloraError, SettingsError, StorageError
from iclora.files import append_line, cache_home, digest, inside, natural_key, replacing, write_text


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


def test_names_sort_as_people_count():
    names = ["panel-10", "panel-2", "Panel-1", "a"]
    assert sorted(names, key=natural_key) == ["a", "Panel-1", "panel-2", "panel-10"]


def test_a_digest_depends_on_where_its_parts_end():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(b"ab", "c") == digest("ab", b"c")


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
