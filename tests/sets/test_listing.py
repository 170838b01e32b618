"""Hostile folders and archives: nothing outside is read, nothing hangs, nothing is unsaid."""

from __future__ import annotations

import os
import socket
import time
import zipfile

import pytest

from iclora.errors import DatasetError
from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.listing import list_files
from tests.conftest import CAPTION
from tests.sets.test_check import errors
from tests.sets.test_dataset import entries_of, make_zip, pair
from tests.sets.test_finding import STORY, panels


@pytest.mark.parametrize("name", ["caption.txt", "2.png"])
def test_a_link_to_a_file_elsewhere_is_not_read(make_dataset, tmp_path, name):
    root = make_dataset(sets=2)
    (tmp_path / "secret").write_text(CAPTION)
    (root / "0001" / name).unlink()
    (root / "0001" / name).symlink_to(tmp_path / "secret")
    dataset = open_dataset(root)
    found = errors(dataset)
    assert found[0].subject == f"0001/{name}"
    assert "leads to a file outside the dataset" in found[0].text
    assert "cp -rL" in found[0].advice
    if name == "caption.txt":
        with pytest.raises(DatasetError, match="no caption"):
            dataset.sets[0].caption()


def test_links_inside_the_dataset_and_inside_a_linked_folder_are_read(make_dataset, tmp_path):
    root = make_dataset(sets=2)
    (root / "0001" / "3.png").unlink()
    (root / "0001" / "3.png").symlink_to(root / "0002" / "1.png")
    panels(tmp_path / "far", caption=CAPTION, seed=7)
    (tmp_path / "far" / "2.png").unlink()
    (tmp_path / "far" / "2.png").symlink_to("1.png")
    (root / "0003").symlink_to(tmp_path / "far")
    dataset = open_dataset(root)
    assert errors(dataset) == []
    assert [len(s.images) for s in dataset.sets] == [3, 3, 3]


@pytest.mark.parametrize("target", ["..", "../..", "/", "../../."])
def test_a_link_to_what_holds_the_dataset_is_not_followed(make_dataset, tmp_path, target):
    root = make_dataset(sets=1, name="a/b")
    (tmp_path / "a" / "elsewhere.png").write_bytes(b"x")
    (root / "0001" / "up").symlink_to(target if target == "/" else f"../{target}")
    files, problems = list_files(root)
    assert not [name for name in files if name.startswith("0001/up")]
    assert ["leads back" in p.text for p in problems] == [True]


def test_folders_in_each_other_without_end_are_named(make_dataset):
    root = make_dataset(sets=2)
    (root / "/".join("n" * 70)).mkdir(parents=True)
    (problem,) = errors(open_dataset(root))
    assert "more than 64 deep" in problem.text


def test_a_folder_of_more_files_than_any_dataset_has_is_refused(make_dataset, monkeypatch):
    root = make_dataset(sets=2)
    assert len(list_files(root)[0]) == 9
    monkeypatch.setattr("iclora.sets.listing._MOST_FILES", 8)
    with pytest.raises(DatasetError, match="more than 8 files"):
        list_files(root)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "loop"])
@pytest.mark.parametrize("name", ["2.png", "caption.txt", "metadata.jsonl"])
def test_only_regular_files_are_read(make_dataset, tmp_path, monkeypatch, kind, name):
    root = make_dataset(sets=2)
    place = root / "0001" / name
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        monkeypatch.chdir(place.parent)  # its name has to be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    else:
        place.symlink_to("/dev/zero" if kind == "device" else name)
    start = time.process_time()
    assert f"0001/{name}" in [p.subject for p in errors(open_dataset(root))]
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", ["2.png", "caption.txt"])
def test_a_file_of_absurd_size_is_named_and_the_others_are_read(make_dataset, name):
    root = make_dataset(sets=2)
    with (root / "0001" / name).open("wb") as file:
        file.truncate(60 * 2**30)
    (problem, *_) = errors(open_dataset(root))
    assert f"0001/{name}" in problem.text
    assert "61,440 MiB" in problem.text


def test_names_in_a_zip_from_windows_or_from_a_root_are_read_as_folders(tmp_path):
    panels(tmp_path / "d", caption=CAPTION)
    for prefix in ("boards\\0001\\", "/home/me/0001/", "C:\\boards\\0001\\", ".\\0001/"):
        path = make_zip(tmp_path / "a.zip", {})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(prefix), b"")
            for name, data in entries_of(tmp_path / "d", "").items():
                archive.writestr(zipfile.ZipInfo(prefix + name), data)
        dataset = open_dataset(path, STORY)
        assert [(s.name, len(s.images)) for s in dataset.sets] == [("0001", 3)]
        assert errors(dataset) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("twin", ["0001.png", ".\\0001.png", "/0001.png"])
def test_two_files_of_one_name_in_a_zip_are_named(tmp_path, twin):
    pair(tmp_path / "d", "0001")
    path = make_zip(tmp_path / "a.zip", entries_of(tmp_path / "d", ""))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(twin), b"other")
    assert "2 files of this name" in errors(open_dataset(path, STORY))[0].text


def test_a_link_in_a_zip_and_an_encrypted_member_are_not_read(tmp_path):
    pair(tmp_path / "d", "0001")
    path = make_zip(tmp_path / "a.zip", entries_of(tmp_path / "d", ""))
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("0002.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    dataset = open_dataset(path, STORY)
    assert [s.name for s in dataset.sets] == ["0001"]
    assert errors(dataset)[0].subject == "0002.png"
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, in the directory
    path.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="is encrypted"):
        open_dataset(path, STORY)


def test_an_archive_is_opened_once_for_all_of_its_members(tmp_path, monkeypatch):
    panels(tmp_path / "d", caption=CAPTION)
    entries = entries_of(tmp_path / "d", "")
    many = {f"{k:04d}/{name}": data for k in range(20) for name, data in entries.items()}
    path = make_zip(tmp_path / "a.zip", many)
    opened = []
    real = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda *a, **k: opened.append(1) or real(*a, **k))
    assert len(list(check_dataset(open_dataset(path, STORY)))) == 20
    assert len(opened) == 1


def test_a_path_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "none", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DatasetError):
            list_files(path)


def test_pictures_that_a_dot_hides_are_errors_and_those_of_systems_are_left_out(make_dataset):
    root = make_dataset(sets=2)
    names = (".0003/1.png", ".0004.png", ".old/0005/1.png")
    systems = (
        ".git/x.png",
        "0001/._1.png",
        ".Trash-1000/files/1.png",
        ".3.png-0123456789ab.tmp/1.png",
    )
    for name in (*names, *systems):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    archive = root.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as packed:
        for path in root.rglob("*"):
            packed.write(path, path.relative_to(root))
    for place in (root, archive):
        problems = errors(open_dataset(place))
        assert {p.subject for p in problems} == {".0003", ".0004.png", ".old"}
        assert all("a leading dot hides" in p.text for p in problems)
