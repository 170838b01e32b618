"""Image sets on disk: both shapes, zips with clutter, everything that is wrong by name."""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress

import pytest

from iclora.errors import DatasetError, ImageError, RecipeError
from iclora.sets.dataset import (
    caption_path,
    check_dataset,
    open_dataset,
    training_layouts,
    typical_layout,
)
from iclora.sets.layout import Layout
from tests.conftest import CAPTION, picture


def problems(dataset, **options):
    return [
        *dataset.problems,
        *(p for report in check_dataset(dataset, **options) for p in report.problems),
    ]


def errors(dataset, **options):
    return [p for p in problems(dataset, **options) if p.severity == "error"]


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
    path = make_zip(tmp_path / "a.zip", {**entries_of(tmp_path / "d", "data/shots/"), **clutter})
    dataset = open_dataset(path, "film-storyboard")
    assert [s.name for s in dataset.sets] == ["0001"]
    assert errors(dataset) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "d"]


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "a\\evil.png"]
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
    with pytest.raises(DatasetError, match=r"b\.zip is not a zip"):
        open_dataset(tmp_path / "b.zip", "film-storyboard")


def test_a_zip_member_of_absurd_size_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("iclora.sets.dataset._LARGEST_FILE", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0001.png", b"\0" * 100_000)
    with pytest.raises(DatasetError, match="unpacks to"):
        open_dataset(path, "film-storyboard")


def test_a_missing_panel_is_named_with_its_set(make_dataset):
    root = make_dataset()
    (root / "0002" / "2.png").unlink()
    (problem,) = errors(open_dataset(root))
    assert problem.subject == "0002"
    assert "has 2 images" in problem.text
    assert "1.png, 3.png" in problem.advice


@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("recipe", ["film-storyboard", "home-decoration"])
def test_a_folder_of_too_few_panels_is_never_taken_for_a_composite(make_dataset, left, recipe):
    root = make_dataset(sets=1)
    for i in range(left + 1, 4):
        (root / "0001" / f"{i}.png").unlink()
    found = errors(open_dataset(root, recipe))
    assert any(f"has {left} images" in p.text for p in found)


def test_a_composite_without_visible_borders_is_warned_about(tmp_path):
    picture(96, 144).save(tmp_path / "0001.png")
    found = problems(open_dataset(tmp_path, "film-storyboard"))
    assert any("2 of the borders" in p.text for p in found)


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


def test_the_canvas_to_generate_on_has_the_shapes_that_were_trained():
    stack = Layout.rows(3, 1024, 1536)
    layout = typical_layout(stack, [[(1080, 480)] * 3, [(900, 400)] * 3, [(100, 400)] * 3], 16)
    assert max(layout.stretch([(1080, 480)] * 3)) < 1.02
    assert 0.9 < layout.width * layout.height / (1024 * 1536) <= 1


def test_a_broken_picture_is_named_and_the_other_sets_still_checked(make_dataset):
    root = make_dataset()
    path = root / "0002" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    (root / "0003" / "caption.txt").write_text("[MOVIE-SHOTS] [SCENE-1] a [SCENE-2] b")
    found = errors(open_dataset(root))
    assert [p.subject for p in found] == ["0002", "0003"]
    assert "0002/2.png" in found[0].text
    assert "SCENE-3" in found[1].text


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        (None, "has no caption"),
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (CAPTION[14:].encode(), "MOVIE-SHOTS"),
        ((CAPTION + " word" * 600).encode(), "tokens long"),
    ],
)
def test_a_caption_that_cannot_be_trained_on_is_an_error(make_dataset, caption, says):
    root = make_dataset(sets=1)
    if caption is None:
        (root / "0001" / "caption.txt").unlink()
    else:
        (root / "0001" / "caption.txt").write_bytes(caption)
    (problem,) = errors(open_dataset(root))
    assert says in problem.text


def test_tokens_are_counted_by_the_bases_own_tokenizer(make_dataset, tiny):
    dataset = open_dataset(make_dataset(sets=1))
    (report,) = check_dataset(dataset, count_tokens=tiny.count_tokens, limit=512)
    assert report.tokens == tiny.count_tokens(dataset.sets[0].caption())
    (report,) = check_dataset(dataset, count_tokens=tiny.count_tokens, limit=20)
    assert "the base reads 20" in next(p for p in report.problems if p.severity == "error").text


def test_a_byte_order_mark_and_a_last_line_end_are_no_part_of_a_caption(make_dataset):
    root = make_dataset(sets=1)
    (root / "0001" / "caption.txt").write_bytes(b"\xef\xbb\xbf" + CAPTION.encode() + b"\r\n")
    assert open_dataset(root).sets[0].caption() == CAPTION


def test_small_twin_and_orphan_files_are_warned_about(make_dataset):
    root = make_dataset(sets=2)
    for i in (1, 2, 3):
        (root / "0002" / f"{i}.png").write_bytes((root / "0001" / f"{i}.png").read_bytes())
    (root / "stray.txt").write_text("words")
    found = problems(open_dataset(root))
    assert all(p.severity == "warning" for p in found)
    (root / "0003.txt").write_text(CAPTION)
    assert "0003.txt" in [p.subject for p in errors(open_dataset(root))]
    texts = " ".join(str(p) for p in found)
    assert "the same images as set" in texts
    assert "caption without an image" in texts
    assert "megapixels" in texts


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


@pytest.mark.parametrize("content", ["", "recipe = 3 4", 'rezept = "x"'])
def test_a_manifest_without_a_recipe_is_named(make_dataset, content):
    root = make_dataset(sets=1)
    (root / "iclora.toml").write_text(content)
    with pytest.raises(DatasetError, match="names no recipe"):
        open_dataset(root)


def test_a_manifest_cannot_make_its_reader_open_files_elsewhere(make_dataset, tmp_path):
    from tests.sets.test_recipe import OWN

    (tmp_path / "own.toml").write_text(OWN)
    root = make_dataset(sets=1)
    for name in ("../own.toml", str(tmp_path / "own.toml")):
        (root / "iclora.toml").write_text(f'recipe = "{name}"')
        with pytest.raises(RecipeError, match="neither one of iclora's nor a file beside it"):
            open_dataset(root)


def test_a_set_trains_at_each_size_once_and_never_above_its_own_pixels():
    stack = Layout.rows(3, 1024, 1536)
    sizes = [(400, 178)] * 3  # 462 x 462 in all
    layouts = training_layouts(stack, sizes, (256, 512, 768, 1024), 16)
    assert len(layouts) == 2
    assert all(a.width * a.height <= 462**2 for a in layouts)
    larger = training_layouts(stack, sizes, (256, 512, 768, 1024), 16, upscale=True)
    assert len(larger) == 4


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


def test_a_file_name_that_is_no_text_is_refused(tmp_path):
    pair(tmp_path, "one")
    try:
        (tmp_path / "t\udcff.png").write_bytes(b"")
    except OSError:
        pytest.skip("this disk has no such names")
    with pytest.raises(DatasetError, match="unreadable name"):
        open_dataset(tmp_path, "film-storyboard")
