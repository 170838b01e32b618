"""Published data sets: parquet tables, webdataset's tars, ai-toolkit's and kohya's folders."""

import gzip
import importlib
import io
import tarfile

import pytest
from PIL import Image

from iclora.sets.collect.sources import read_source
from tests.conftest import CAPTION, picture
from workshop.collecting.decks import png

PICTURES = [png(picture(64, 48, seed=seed)) for seed in range(6)]


def bytes_of(found):
    return [[each.read() for each in one.pictures] for one in found]


@pytest.fixture
def parquet(tmp_path):
    """Write a table as the Hub has them."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def write(**columns):
        rows = {
            name: [{"bytes": v, "path": None} if isinstance(v, bytes) else v for v in values]
            for name, values in columns.items()
        }
        path = tmp_path / "train-00000-of-00001.parquet"
        pyarrow.parquet.write_table(arrow.table(rows), path, row_group_size=2)
        return path

    return write


def test_columns_of_pictures_are_the_panels_of_a_row_source_first(parquet, want):
    path = parquet(target=PICTURES[:3], prompt=["a", "b", ""], source=PICTURES[3:])
    found = read_source(str(path), want("sandstorm-effect"))
    assert bytes_of(found) == [[PICTURES[3 + i], PICTURES[i]] for i in range(3)]
    assert [one.pictures[1].words for one in found] == ["a", "b", ""]
    assert found[2].pictures[0].origin.to_json()["row"] == 2


def test_a_list_of_pictures_and_a_joined_picture_with_a_joint_caption_are_sets(parquet, want):
    lists = [[{"bytes": b, "path": None} for b in PICTURES[i : i + 3]] for i in (0, 3)]
    found = read_source(str(parquet(images=lists, text=[CAPTION, ""])), want("film-storyboard"))
    assert bytes_of(found) == [PICTURES[:3], PICTURES[3:]]
    assert [one.caption for one in found] == [CAPTION, ""]
    found = read_source(
        str(parquet(image=PICTURES[:2], text=[CAPTION] * 2)), want("film-storyboard")
    )
    assert [(one.composite, one.caption) for one in found] == [(True, CAPTION)] * 2


def test_tables_without_pictures_and_damaged_ones_are_named(parquet, want, tmp_path):
    parquet(text=["a"])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    wanted = want("film-storyboard")
    read_source(str(tmp_path), wanted)
    assert len([p for p in wanted.problems if "parquet" in p.subject]) == 2


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
def test_a_tar_is_read_and_names_that_lead_out_are_refused(ending, want, tmp_path):
    path = tmp_path / f"shard-000.{ending}"
    with tarfile.open(path, f"w:{ending[4:]}") as archive:
        members = {
            f"{i:03d}.{role}.png": PICTURES[2 * i + j]
            for i in range(3)
            for j, role in enumerate(("input", "target"))
        }
        members |= {"../escape.png": PICTURES[0], "/root.png": PICTURES[0], "000.txt": b"in snow"}
        for name, data in (*members.items(), ("000.input.png", PICTURES[5])):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    wanted = want("sandstorm-effect")
    found = read_source(str(path), wanted)
    assert bytes_of(found) == [PICTURES[2 * i : 2 * i + 2] for i in range(3)]
    assert found[0].pictures[1].words == "in snow"
    assert sorted(p.subject.split(f".{ending}/")[1] for p in wanted.problems) == [
        "../escape.png",
        "/root.png",
        "000.input.png",
        "link.png",
    ]
    assert not (tmp_path.parent / "escape.png").exists()


@pytest.mark.parametrize("kind", ["a header of 2 MB", "less than no bytes"])
def test_a_tar_with_hostile_headers_is_named(want, tmp_path, kind):
    about = tarfile.TarInfo("a.png")
    if kind == "a header of 2 MB":
        about.pax_headers = {"comment": "x" * 2**21}
    data = about.tobuf(tarfile.PAX_FORMAT)
    if kind != "a header of 2 MB":
        head = bytearray(data[:124] + b"\xff" * 12 + data[136:148] + b" " * 8 + data[156:])
        head[148:156] = b"%06o\0 " % sum(head)
        data = bytes(head)
    (tmp_path / "x.tar").write_bytes(data + b"\0" * 1024)
    wanted = want("sandstorm-effect")
    assert read_source(str(tmp_path / "x.tar"), wanted) == []
    (problem,) = wanted.problems
    assert "damaged" in problem.text


def test_tables_that_unpack_to_far_more_are_refused(parquet, want, tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    module = importlib.import_module("iclora.sets.collect.sources.tables")
    monkeypatch.setattr(module, "_LARGEST_GROUP", 2**21)
    monkeypatch.setattr(module, "_MOST_TEXT", 2**21)
    one = arrow.array(["x" * 2**16] * 50)
    tables = {
        "pictures": {"image": one.cast(arrow.binary()), "target": one.cast(arrow.binary())},
        "text": {"image": arrow.array([PICTURES[0]] * 50), "text": one},
    }
    for name, columns in tables.items():
        arrow.parquet.write_table(arrow.table(columns), tmp_path / f"{name}.parquet")
        assert (tmp_path / f"{name}.parquet").stat().st_size < 2**17
    wanted = want("sandstorm-effect")
    assert read_source(str(tmp_path), wanted) == []
    assert sum("MiB" in p.text for p in wanted.problems) == 2


def test_what_a_source_holds_and_nobody_reads_is_named(want, tmp_path):
    for name in ("1_before.png", "1_after.png"):
        (tmp_path / name).write_bytes(PICTURES[0])
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    (tmp_path / "1_after.txt").write_bytes(b"\xff\xff")
    (tmp_path / "metadata.csv").write_bytes(b"\xff")
    wanted = want("sandstorm-effect")
    assert len(read_source(str(tmp_path), wanted)) == 1
    assert {p.subject.rsplit("/", 1)[-1] for p in wanted.problems} == {
        "x.gif",
        "1_after.txt",
        "metadata.csv",
    }


def test_a_compressed_archive_that_grows_as_a_bomb_does_or_is_damaged_is_refused(want, tmp_path):
    bomb, cut, none = (tmp_path / f"{name}.tar.gz" for name in ("bomb", "cut", "none"))
    piece = gzip.compress(bytes(2**24))
    bomb.write_bytes(piece * 5)  # A thousandth of what it becomes, 80 MB.
    cut.write_bytes(piece[:-100])
    none.write_bytes(b"no archive")
    wanted = want("sandstorm-effect")
    assert read_source(str(tmp_path), wanted) == []
    told = {p.subject.rsplit("/", 1)[-1]: p.text for p in wanted.problems}
    assert "100 times its size" in told["bomb.tar.gz"]
    assert "cannot be unpacked" in told["cut.tar.gz"]
    assert "cannot be unpacked" in told["none.tar.gz"]


def test_control_folders_are_the_first_panel_and_their_captions_go_along(want, tmp_path):
    for i in range(2):
        for folder, data in (("images", PICTURES[i]), ("control", PICTURES[2 + i])):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / folder / f"{i}.png").write_bytes(data)
        (tmp_path / "set" / "images" / f"{i}.txt").write_text(f"make it {i}")
    found = read_source(str(tmp_path / "set"), want("sandstorm-effect"))
    assert bytes_of(found) == [[PICTURES[2 + i], PICTURES[i]] for i in range(2)]
    assert [one.pictures[1].words for one in found] == ["make it 0", "make it 1"]


def test_repeats_of_kohya_are_noted_and_its_joint_captions_make_whole_sets(want, tmp_path):
    folder = tmp_path / "data" / "10_movie"
    folder.mkdir(parents=True)
    for i in range(2):
        (folder / f"{i}.png").write_bytes(PICTURES[i])
        (folder / f"{i}.txt").write_text(CAPTION)
    found = read_source(str(tmp_path / "data"), want("film-storyboard"))
    assert [(one.composite, one.caption) for one in found] == [(True, CAPTION)] * 2
    assert found[0].pictures[0].origin.to_json()["repeats"] == 10


def test_a_table_of_a_folder_names_the_panels_of_its_sets(want, tmp_path):
    for i, data in enumerate(PICTURES[:4]):
        (tmp_path / f"p{i * 37 % 11}x.png").write_bytes(data)
    names = [f"p{i * 37 % 11}x.png" for i in range(4)]
    lines = [
        f'{{"edited_file_name": "{b}", "original_file_name": "{a}", "text": "in rain"}}'
        for a, b in (names[:2], names[2:])
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = read_source(str(tmp_path), want("sandstorm-effect"))
    assert bytes_of(found) == [PICTURES[:2], PICTURES[2:4]]
    assert found[0].pictures[1].words == "in rain"
    assert Image.open(io.BytesIO(found[0].pictures[0].read())).size == (64, 48)
