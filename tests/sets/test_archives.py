"""Archives and other containers are named, with the command that unpacks them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile

import pytest

from iclora.errors import DatasetError
from iclora.sets.dataset import open_dataset
from tests.conftest import CAPTION, picture
from tests.sets.test_images import saved


def packed(mode: str) -> bytes:
    """A tar archive of one set."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{mode}") as archive:
        for name, data in (("0001.png", saved(picture(96, 144))), ("0001.txt", CAPTION.encode())):
            member = tarfile.TarInfo(f"sets/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


FILES = [
    ("sets.rar", b"Rar!\x1a\x07\x01\0" + bytes(80), "RAR archive", "unrar x sets.rar"),
    ("sets.zip", b"Rar!\x1a\x07\0" + bytes(80), "RAR archive", "unrar x sets.zip"),
    ("my sets.7z", b"7z\xbc\xaf\x27\x1c" + bytes(80), "7z archive", "7z x 'my sets.7z'"),
    ("sets.tar", packed(""), "tar archive", "tar -xf sets.tar"),
    ("sets.tar.gz", packed("gz"), "tar archive", "tar -xf sets.tar.gz"),
    ("SETS.TGZ", packed("gz"), "tar archive", "tar -xf SETS.TGZ"),
    ("sets.tbz2", packed("bz2"), "tar archive", "tar -xf sets.tbz2"),
    ("sets.tar.xz", packed("xz"), "tar archive", "tar -xf sets.tar.xz"),
    ("packed", packed("gz"), "gzip archive", "tar -xzf packed"),
    ("sets.bin", packed("xz"), "xz archive", "tar -xJf sets.bin"),
    ("sets.download", packed(""), "tar archive", "tar -xf sets.download"),
    ("a.txt.bz2", bz2.compress(b"x" * 99), "bzip2 archive", "tar -xjf a.txt.bz2"),
    ("sets.zst", b"\x28\xb5\x2f\xfd" + bytes(30), "Zstandard archive", "zstd -dc sets.zst"),
    ("sets.7z.001", b"?" * 80, "7z archive", "7z x sets.7z.001"),
    ("shots.pptx", b"PK\x03\x04" + bytes(50), "deck", "`iclora collect shots.pptx`"),
    ("shots.pdf", b"%PDF-1.7", "PDF", "`iclora collect shots.pdf`"),
    ("0003.lnk", b"L\0\0\0\x01\x14\x02\0" + bytes(60), "shortcut", "Put the folder"),
    ("0003", b"book\0\0\0\0mark" + bytes(60), "shortcut", "Put the folder"),
    ("0003.webloc", b"<plist/>", "shortcut", "Put the folder"),
    ("t.parquet", b"PAR1" + bytes(30), "Parquet file", "metadata.jsonl"),
    ("sets.zip", b"<!DOCTYPE html><html>", "web page", "Download it again"),
    ("sets.zip", b"version https://git-lfs.github.com/spec/v1", "LFS pointer", "git lfs pull"),
]


@pytest.mark.parametrize(("name", "data", "kind", "way"), FILES)
def test_what_is_given_in_place_of_a_zip_is_named_with_the_way_out(tmp_path, name, data, kind, way):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError) as found:
        open_dataset(tmp_path / name, "film-storyboard")
    assert kind in found.value.problem
    assert way in found.value.advice


@pytest.mark.parametrize(("name", "data", "kind", "way"), [f for f in FILES if f[0][0] != "t"])
def test_what_lies_in_a_dataset_is_named_with_the_way_out(tmp_path, name, data, kind, way):
    (tmp_path / "0001.png").write_bytes(saved(picture(96, 144)))
    (tmp_path / "0001.txt").write_text(CAPTION)
    (tmp_path / name).write_bytes(data)
    (problem,) = open_dataset(tmp_path, "film-storyboard").problems
    assert problem.severity == "error"
    assert kind in problem.text
    assert name in problem.text
    command = way.split()[0]
    assert command in problem.advice


def test_the_command_that_is_told_unpacks_a_set(tmp_path):
    for name, data in ((f[0], f[1]) for f in FILES if "tar -x" in f[3] and f[1][:1] != b"B"):
        if name == "sets.zst" or not shutil.which("tar"):
            continue
        place = tmp_path / f"in-{name}"
        place.mkdir()
        (place / name).write_bytes(data)
        with pytest.raises(DatasetError) as found:
            open_dataset(place / name, "film-storyboard")
        command = found.value.advice.split("`")[1].split()
        subprocess.run(command, cwd=place, check=True)
        assert len(open_dataset(place / "sets", "film-storyboard").sets) == 1


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.zip", b"", "is empty"),
        ("a.zip", b"hello " * 20, "is not a zip archive"),
        ("a.zip", b"PK\x03\x04" + bytes(50), "a damaged zip archive"),
        ("a.png", saved(picture(20, 20)), r"one picture \(PNG\)"),
        ("a.txt", b"words", "is not a zip archive"),
        ("a.gz", gzip.compress(b"x")[:6], "gzip archive"),
        ("a.xz", lzma.compress(b"x"), "xz archive"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=says):
        open_dataset(tmp_path / name, "film-storyboard")
