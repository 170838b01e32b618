"""Image sets on disk: both shapes, zips with clutter, everything that is wrong by name."""

from __future__ import annotations

import json
import os
import zipfile
from contextlib import suppress
from os import scandir

import pytest

from iclora.errors import DatasetError, ImageError, RecipeError
from iclora.sets.check import check_dataset
from iclora.sets.dataset import caption_path, open_dataset
from iclora.sets.layout import Layout
from tests.conftest import CAPTION, picture
from tests.sets.test_check import errors


def pair(folder, name, caption=CAPTION, heights=(200, 190, 210)):
    """A composite somebody else joined, and its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    from PIL import Image

    composite = Image.new("RGB", (400, sum(heights)))
    top = 0
    for i, height in enumerate(heights):
        composite.paste(picture(400, height, seed=i + 3), (0, top))
        top += height
    composite.save(folder / f"{name}.png")
    if caption is not None:
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")


def test_a_folder_per_set_is_read_in_natural_order(make_dataset, tmp_path):
    root = make_dataset(sets=11, name="many")
    (root / "0001" / "3.png").rename(root / "0001" / "10.png")
    dataset = open_dataset(root)
    assert [s.name for s in dataset.sets] == [f"{i:04d}" for i in range(1, 12)]
    assert dataset.sets[0].images == ("0001/1.png", "0001/2.png", "0001/10.png")
    panels = dataset.sets[0].load(dataset.recipe)
    assert panels.panels[2].tobytes() == picture(64, 32, seed=2).tobytes()
    assert errors(dataset) == []


def test_pairs_of_other_trainers_are_split_along_their_own_seams(tmp_path):
    pair(tmp_path / "d", "0001")
    dataset = open_dataset(tmp_path / "d", "film-storyboard")
    panels = dataset.sets[0].load(dataset.recipe)
    assert panels.sizes == [(400, 200), (400, 190), (400, 210)]
    assert panels.panels[1].tobytes() == picture(400, 190, seed=4).tobytes()


def test_a_recorded_layout_that_does_not_fit_its_picture_is_not_believed(tmp_path):
    from iclora.sets.images import write_png

    lying = Layout.rows(3, 64, 96).to_json()
    for text in (json.dumps(lying), "nonsense", "[1]"):
        write_png(tmp_path / "d" / "a.png", picture(120, 180), {"iclora:layout": text})
        dataset = open_dataset(tmp_path / "d", "film-storyboard")
        panels = dataset.sets[0].load(dataset.recipe)
        assert sum(h for _, h in panels.sizes) == 180


def make_zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def entries_of(folder, prefix):
    return {prefix + p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_zip_with_macos_clutter_is_read_in_place(tmp_path):
    pair(tmp_path / "d", "0001")
    clutter = {
        "__MACOSX/data/._0001.png": b"junk",
        "data/.DS_Store": b"junk",
        "data/shots/._0001.txt": b"\xff\xfe",
        "data/shots/Thumbs.db": b"junk",
    }
    inside = entries_of(tmp_path / "d", "gone/../data/shots/")
    path = make_zip(tmp_path / "a.zip", {**inside, **clutter})
    dataset = open_dataset(path, "film-storyboard")
    assert [s.name for s in dataset.sets] == ["0001"]
    assert errors(dataset) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "d"]


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "..\\evil.png", "C:\\..\\evil.png", "/../evil.png"]
)
def test_a_zip_whose_names_lead_out_of_it_is_refused(tmp_path, name):
    path = make_zip(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(DatasetError, match="unsafe name"):
        open_dataset(path, "film-storyboard")


def test_a_damaged_zip_and_a_zip_that_is_none_are_named(tmp_path):
    pair(tmp_path / "d", "0001")
    path = make_zip(tmp_path / "a.zip", entries_of(tmp_path / "d", ""))
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF  # inside the picture's bytes: its checksum is wrong now
    path.write_bytes(bytes(data))
    assert "cannot be read" in errors(open_dataset(path, "film-storyboard"))[0].text
    (tmp_path / "b.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DatasetError, match=r"b\.zip is a damaged zip"):
        open_dataset(tmp_path / "b.zip", "film-storyboard")


def test_a_zip_member_of_absurd_size_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("iclora.sets.listing._LARGEST_FILE", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0001.png", b"\0" * 100_000)
    with pytest.raises(DatasetError, match="unpacks to"):
        open_dataset(path, "film-storyboard")


def test_a_zip_damaged_anywhere_is_refused_by_an_error_of_ours(tmp_path):
    pair(tmp_path / "d", "0001", heights=(40, 40, 40))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries_of(tmp_path / "d", "").items():
            archive.writestr(name, data)
    whole = path.read_bytes()
    for at in range(0, len(whole), 31):
        broken = bytearray(whole)
        broken[at] ^= 0x5A
        path.write_bytes(bytes(broken))
        with suppress(DatasetError):
            list(check_dataset(open_dataset(path, "film-storyboard")))


def test_a_link_to_nowhere_is_named(make_dataset):
    root = make_dataset(sets=1)
    (root / "0001" / "1.png").unlink()
    (root / "0001" / "1.png").symlink_to(root / "gone.png")
    assert "cannot be read" in errors(open_dataset(root))[0].text


def test_a_byte_order_mark_and_a_last_line_end_are_no_part_of_a_caption(make_dataset):
    root = make_dataset(sets=1)
    (root / "0001" / "caption.txt").write_bytes(b"\xef\xbb\xbf" + CAPTION.encode() + b"\r\n")
    assert open_dataset(root).sets[0].caption() == CAPTION


def test_two_sets_of_one_name_are_an_error(tmp_path):
    pair(tmp_path / "d", "0001")
    (tmp_path / "d" / "0001.webp").write_bytes((tmp_path / "d" / "0001.png").read_bytes())
    assert any(
        "more than one" in p.text for p in errors(open_dataset(tmp_path / "d", "film-storyboard"))
    )


def test_uncaptioned_pairs_and_uncaptioned_set_folders_are_told_apart(tmp_path):
    pair(tmp_path / "pairs", "0001", caption=None)
    pair(tmp_path / "pairs", "0002")
    assert len(open_dataset(tmp_path / "pairs", "film-storyboard").sets) == 2
    for i in range(3):
        (tmp_path / "sets" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sets" / "b").mkdir(parents=True, exist_ok=True)
        picture(64, 32, i).save(tmp_path / "sets" / "a" / f"{i}.png")
        picture(64, 32, i + 9).save(tmp_path / "sets" / "b" / f"{i}.png")
    dataset = open_dataset(tmp_path / "sets", "film-storyboard")
    assert [(s.name, len(s.images)) for s in dataset.sets] == [("a", 3), ("b", 3)]


def test_a_dataset_without_a_recipe_or_without_sets_says_so(tmp_path):
    pair(tmp_path / "d", "0001")
    with pytest.raises(DatasetError, match=r"no iclora\.toml"):
        open_dataset(tmp_path / "d")
    (tmp_path / "e").mkdir()
    with pytest.raises(DatasetError, match="no image sets"):
        open_dataset(tmp_path / "e", "film-storyboard")
    with pytest.raises(DatasetError, match="no folder"):
        open_dataset(tmp_path / "f", "film-storyboard")


@pytest.mark.parametrize(
    "content",
    ["", "recipe = 3 4", 'rezept = "x"', "recipe = 2026-01-01", 'recipe = ["film-storyboard"]'],
)
def test_a_manifest_without_a_recipe_is_named(make_dataset, content):
    root = make_dataset(sets=1)
    (root / "iclora.toml").write_text(content)
    with pytest.raises(DatasetError, match=r"names no recipe|is not valid TOML"):
        open_dataset(root)


def test_a_manifest_in_capitals_is_one_and_what_nothing_reads_in_it_is_named(make_dataset):
    root = make_dataset(sets=1)
    (root / "iclora.toml").unlink()
    (root / "ICLORA.TOML").write_text('recipe = "film-storyboard"\nrecipes = "x"')
    (problem,) = open_dataset(root).problems
    assert 'nothing reads "recipes"' in problem.text
    (root / "ICLORA.TOML").unlink()
    os.mkfifo(root / "iclora.toml")
    with pytest.raises(DatasetError, match="pipe"):
        open_dataset(root)


def test_a_manifest_cannot_make_its_reader_open_files_elsewhere(make_dataset, tmp_path):
    from tests.sets.test_recipe import OWN

    (tmp_path / "own.toml").write_text(OWN)
    root = make_dataset(sets=1)
    for name in ("../own.toml", str(tmp_path / "own.toml")):
        (root / "iclora.toml").write_text(f'recipe = "{name}"')
        with pytest.raises(RecipeError, match="neither one of iclora's nor a file beside it"):
            open_dataset(root)


def test_the_digest_changes_with_an_image_or_a_caption(make_dataset):
    root = make_dataset()
    before = open_dataset(root).digest
    assert open_dataset(root).digest == before
    (root / "0001" / "caption.txt").write_text(CAPTION.replace("Ana", "Eva"))
    edited = open_dataset(root).digest
    assert edited != before
    picture(64, 32, seed=99).save(root / "0001" / "1.png")
    assert open_dataset(root).digest != edited


def test_an_unreadable_picture_raises_its_own_error(make_dataset):
    root = make_dataset(sets=1)
    (root / "0001" / "1.png").write_bytes(b"x")
    dataset = open_dataset(root)
    with pytest.raises(ImageError, match=r"0001/1\.png"):
        dataset.sets[0].load(dataset.recipe)


def test_a_caption_in_capitals_belongs_to_its_image(tmp_path):
    pair(tmp_path, "one")
    (tmp_path / "one.txt").rename(tmp_path / "ONE.tmp")
    (tmp_path / "ONE.tmp").rename(tmp_path / "one.TXT")
    (found,) = open_dataset(tmp_path, "film-storyboard").sets
    assert found.caption_file == "one.TXT"
    assert caption_path(open_dataset(tmp_path, "film-storyboard"), found).name == "one.TXT"


def test_as_many_lone_images_as_a_set_has_panels_are_doubted(tmp_path):
    for name in "abc":
        pair(tmp_path, name, caption=None)
    (doubt,) = open_dataset(tmp_path, "film-storyboard").problems
    assert "as many as a set has panels" in doubt.text
    pair(tmp_path, "d", caption=None)
    assert not open_dataset(tmp_path, "film-storyboard").problems


def test_a_file_whose_name_is_no_text_is_named_and_the_others_are_read(tmp_path):
    pair(tmp_path, "one")
    try:
        (tmp_path / "t\udcff.png").write_bytes(b"")
    except OSError:
        pytest.skip("this disk has no such names")
    dataset = open_dataset(tmp_path, "film-storyboard")
    assert [s.name for s in dataset.sets] == ["one"]
    (problem,) = errors(dataset)
    assert problem.subject == "t\\udcff.png"
    assert "unreadable name" in problem.text


def test_linked_folders_are_followed_and_those_that_lead_back_are_named(make_dataset, tmp_path):
    root = make_dataset(2)
    (root / "0002").rename(tmp_path / "elsewhere")
    (root / "0002").symlink_to(tmp_path / "elsewhere")
    (root / "0001" / "back").symlink_to(root)
    dataset = open_dataset(root)
    assert [(s.name, len(s.images)) for s in dataset.sets] == [("0001", 3), ("0002", 3)]
    assert dataset.sets[1].load(dataset.recipe).panels[0].size == (64, 32)
    (problem,) = dataset.problems
    assert (problem.subject, problem.severity) == ("0001/back", "warning")
    assert "leads back" in problem.text


def test_a_folder_that_cannot_be_read_is_named(make_dataset, monkeypatch):
    root = make_dataset(2)

    def denied(folder):
        if folder.name == "0002":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("iclora.sets.listing.scandir", denied)
    dataset = open_dataset(root)
    assert [s.name for s in dataset.sets] == ["0001"]
    (problem,) = dataset.problems
    assert (problem.subject, problem.severity) == ("0002", "error")
    assert "Permission denied" in problem.text
    monkeypatch.setattr("iclora.sets.listing.scandir", lambda folder: denied(root / "0002"))
    with pytest.raises(DatasetError, match=r"no image sets.*Permission denied"):
        open_dataset(root, "film-storyboard")
