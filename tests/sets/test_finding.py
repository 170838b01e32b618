"""Datasets as people have them: nothing vanishes, and words are found wherever they lie."""

from __future__ import annotations

import io
import json
import re
import unicodedata
import weakref
from functools import partial
from types import SimpleNamespace

import pytest

from iclora.errors import DatasetError
from iclora.sets import finding, unread
from iclora.sets.compose import compose_dataset
from iclora.sets.dataset import caption_path, open_dataset
from iclora.sets.kinds import IMAGE_SUFFIXES
from tests.conftest import CAPTION, picture
from tests.sets.test_check import errors, problems
from tests.sets.test_dataset import pair

STORY = "film-storyboard"
nfc, nfd = partial(unicodedata.normalize, "NFC"), partial(unicodedata.normalize, "NFD")


def panels(folder, names=("1", "2", "3"), caption=None, size=(64, 32), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        picture(*size, seed=10 * seed + i).save(folder / f"{name}.png")
    if caption is not None:
        (folder / "caption.txt").write_text(caption, encoding="utf-8")


def encoded(form):
    buffer = io.BytesIO()
    picture(64, 32).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def no_heic(monkeypatch):
    """As it is without the extra that reads HEIC."""
    plain = tuple(ending for ending in IMAGE_SUFFIXES if ending not in (".heic", ".heif", ".hif"))
    monkeypatch.setattr(unread, "IMAGE_SUFFIXES", plain)


def test_a_heic_picture_is_refused_with_the_extra_that_reads_it(tmp_path, no_heic):
    panels(tmp_path / "0001", caption=CAPTION)
    (tmp_path / "0001" / "4.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (problem,) = errors(open_dataset(tmp_path, STORY))
    assert "iclora[heic]" in problem.advice


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("IMG_1.HEIC", b"\0\0\0\x18ftypheic", "one HEIC picture is not read (IMG_1.HEIC)"),
        ("IMG_2.HEIC", encoded("JPEG"), "one JPEG picture with the ending .HEIC"),
        ("shot.cr2", encoded("TIFF"), "one CR2 picture"),
        ("2.gif", b"GIF89a", "one GIF picture"),
        ("2.jxl", b"", "one JXL picture"),
        ("2.psd", b"8BPS", "one PSD picture"),
        ("2.png_", encoded("PNG"), "one PNG picture with the ending .png_"),
        ("picture", encoded("JPEG"), "one JPEG picture with the ending (none)"),
        ("2.orig", b"GIF87a", "one GIF picture"),
        ("2.photo", b"\0\0\0\x1cftypheix", "one HEIC picture"),
        ("train-00000.parquet", b"PAR1", "another form"),
        ("data.arrow", b"", "another form"),
        ("shard-000.tar", b"", "one tar archive"),
        ("more.zip", b"", "one zip archive"),
    ],
)
def test_what_is_not_read_is_named_and_no_set_vanishes(tmp_path, no_heic, name, data, says):
    panels(tmp_path / "0001", caption=CAPTION)
    panels(tmp_path / "0003", caption=CAPTION, seed=3)
    (tmp_path / "0002").mkdir()
    (tmp_path / "0002" / name).write_bytes(data)
    dataset = open_dataset(tmp_path, STORY)
    assert [s.name for s in dataset.sets] == ["0001", "0003"]
    (problem,) = errors(dataset)
    assert problem.subject == f"0002/{name}"
    assert says in problem.text
    assert problem.advice


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "an empty folder"),
        ([".DS_Store"], "an empty folder"),
        (["caption.txt"], "no image or set takes"),
        (["a.mp4", "b.mp4"], "2 films"),
        (["1.png.crdownload"], ".crdownload"),
        (["1.png.lnk"], ".lnk"),
        ([".1.png.icloud"], "iCloud"),
        (["1.npz"], "numbers"),
    ],
)
def test_a_set_of_which_no_picture_is_there_is_an_error(tmp_path, names, says):
    panels(tmp_path / "0001", caption=CAPTION)
    (tmp_path / "0002").mkdir()
    (tmp_path / "notes").mkdir()
    for name in names:
        (tmp_path / "0002" / name).write_bytes(b"a boat")
    found = open_dataset(tmp_path, STORY).problems
    assert [p.severity for p in found if p.subject == "notes"] == ["warning"]
    assert any(p.severity == "error" and says in p.text for p in found)


@pytest.mark.parametrize(
    "name", ["caption.md", "caption", "Caption.rtf", "prompt.docx", "captions.yaml", "caption.json"]
)
def test_a_caption_in_another_kind_of_file_is_named(tmp_path, name):
    panels(tmp_path / "0001")
    (tmp_path / "0001" / name).write_text(json.dumps(CAPTION))
    (problem,) = open_dataset(tmp_path, STORY).problems
    assert "caption.txt" in problem.advice


@pytest.mark.parametrize("ending", ["md", "text", "rtf", "html"])
def test_texts_of_panels_in_another_kind_of_file_are_named(tmp_path, ending):
    panels(tmp_path / "0001")
    for number in (1, 2, 3):
        (tmp_path / "0001" / f"{number}.{ending}").write_text("a boat")
    (tmp_path / "0001" / "README.md").write_text("about")
    (problem,) = open_dataset(tmp_path, STORY).problems
    assert problem.text.startswith("3 texts of another kind")
    assert "with .txt" in problem.advice


def test_a_missing_caption_is_written_where_the_hint_says(tmp_path):
    panels(tmp_path)  # The folder itself is the one set.
    (one,) = open_dataset(tmp_path, STORY).sets
    with pytest.raises(DatasetError) as refused:
        one.caption()
    name = re.search(r"Write (.*)\.", refused.value.advice)[1]
    (tmp_path / name).write_text(CAPTION)
    (one,) = open_dataset(tmp_path, STORY).sets
    assert one.caption() == CAPTION


def test_caches_of_other_trainers_beside_pictures_are_no_error(tmp_path):
    panels(tmp_path / "0001", caption=CAPTION)
    for name in ("1_0064x0032_flux.npz", "1_te.npz", "2.safetensors"):
        (tmp_path / "0001" / name).write_bytes(b"PK")
    assert {p.severity for p in open_dataset(tmp_path, STORY).problems} == {"warning"}


def test_a_caption_in_utf_16_is_read_and_one_with_control_characters_named(tmp_path):
    panels(tmp_path / "0001", caption=CAPTION)
    place = tmp_path / "0001" / "caption.txt"
    place.write_bytes(CAPTION.encode("utf-16"))
    assert open_dataset(tmp_path, STORY).sets[0].caption() == CAPTION
    for damage in (CAPTION.encode() + bytes(9), CAPTION.encode("utf-16-le"), b"\x1b[31m boat"):
        place.write_bytes(damage)
        assert any("control character" in p.text for p in problems(open_dataset(tmp_path, STORY)))


def test_files_of_a_kind_are_named_once_a_folder(tmp_path):
    panels(tmp_path / "0001", caption=CAPTION)
    panels(tmp_path / "0002", caption=CAPTION, seed=1)
    for k in range(7):
        (tmp_path / "0001" / f"{k}.xyz").write_bytes(b"?")
    (problem,) = open_dataset(tmp_path, STORY).problems
    assert problem.severity == "warning"
    assert "7 files with the ending .xyz are not read (0.xyz, 1.xyz, 2.xyz, 3.xyz, ...)" in str(
        problem
    )


def test_a_dataset_of_other_pictures_alone_says_which_they_are(tmp_path, no_heic):
    (tmp_path / "0001").mkdir()
    (tmp_path / "0001" / "a.heic").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"no image sets.*one HEIC picture is not read"):
        open_dataset(tmp_path, STORY)


def test_endings_of_jpeg_that_browsers_write_are_read(tmp_path):
    for k, ending in enumerate(("jfif", "JPE", "Jpeg")):
        (tmp_path / "0001").mkdir(exist_ok=True)
        (tmp_path / "0001" / f"{k}.{ending}").write_bytes(encoded("JPEG"))
    (tmp_path / "0001" / "caption.txt").write_text(CAPTION)
    (found,) = open_dataset(tmp_path, STORY).sets
    assert len(found.images) == 3


def test_what_systems_and_services_leave_is_no_set(tmp_path):
    panels(tmp_path / "0001", caption=CAPTION)
    panels(tmp_path / "0002", caption=CAPTION, seed=1)
    for name in (
        "@__thumb/1.png",
        "@tmp/1.png",
        "@SynoResource",
        "@eaDir/1.png",
        "#recycle",
        "$RECYCLE.BIN",
        "@Recycle",
        "__MACOSX",
        ".thumbs",
    ):
        panels(tmp_path / "0001" / name)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._1.png"):
        (tmp_path / "0002" / name).write_bytes(b"junk")
    (tmp_path / "README.md").write_text("about")
    dataset = open_dataset(tmp_path, STORY)
    assert [s.name for s in dataset.sets] == ["0001", "0002"]
    assert dataset.problems == ()


def test_sets_outside_the_folder_of_the_manifest_are_named(tmp_path):
    panels(tmp_path / "a" / "0001", caption=CAPTION)
    panels(tmp_path / "b" / "0001", caption=CAPTION, seed=1)
    (tmp_path / "a" / "iclora.toml").write_text(f'recipe = "{STORY}"')
    dataset = open_dataset(tmp_path)
    assert [s.name for s in dataset.sets] == ["0001"]
    assert any('3 pictures outside "a"' in p.text for p in errors(dataset))
    (tmp_path / "iclora.toml").write_text('recipe = "couple-profile"')
    (problem, *_) = open_dataset(tmp_path).problems
    assert (problem.subject, problem.severity) == ("a/iclora.toml", "error")
    assert 'for the recipe "film-storyboard"' in problem.text


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_captions_in_a_table_are_read(tmp_path, table):
    for name in ("0001", "0002"):
        pair(tmp_path, name, caption=None)
    panels(tmp_path / "0003")
    rows = {"0001.png": CAPTION, "./0002.png": CAPTION.replace("Ana", "Eva"), "0003": CAPTION}
    if table.endswith("l"):
        text = "\n\n".join(json.dumps({"file_name": k, "text": v}) for k, v in rows.items())
    else:
        text = "file_name,caption\r\n" + "\r\n".join(f'{k},"{v}"' for k, v in rows.items())
    (tmp_path / table).write_text("\ufeff" + text, encoding="utf-8")
    dataset = open_dataset(tmp_path, STORY)
    assert errors(dataset) == []
    assert dataset.sets[1].caption() == CAPTION.replace("Ana", "Eva")
    assert caption_path(dataset, dataset.sets[0]) == tmp_path / "0001.txt"
    compose_dataset(dataset, tmp_path / "out")
    assert (tmp_path / "out" / "0003.txt").read_text() == CAPTION


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("metadata.csv", f'file_name;text\n0001.png;"{CAPTION}"\n'),
        ("metadata.csv", f"image_path\tprompt\n0001.png\t{CAPTION}\n"),
        ("metadata.jsonl", json.dumps({"file": "0001.PNG", "caption": [CAPTION]})),
        ("metadata.jsonl", json.dumps({"filename": "0001", "text": CAPTION})),
        ("metadata.jsonl", json.dumps({"image": {"path": "0001.png"}, "text": CAPTION})),
        ("captions.json", json.dumps({"0001.png": CAPTION})),
        ("captions.json", json.dumps({"0001": {"caption": CAPTION}})),
        ("captions.json", json.dumps([{"image": "0001.png", "text": CAPTION}])),
        ("captions.jsonl", json.dumps({"image": "0001.png", "text": CAPTION})),
        ("captions.tsv", f"0001.png\t{CAPTION}\n"),
        ("captions.tsv", f"file_name\ttext\n0001.png\t{CAPTION}\n"),
    ],
)
def test_the_columns_signs_and_letters_of_a_table_may_be_others(tmp_path, table, text):
    pair(tmp_path, "0001", caption=None)
    (tmp_path / table).write_text(text)
    dataset = open_dataset(tmp_path, STORY)
    assert [dataset.problems, dataset.sets[0].caption()] == [(), CAPTION]


def test_panels_in_the_order_of_the_alphabet_are_named_once(tmp_path):
    for folder in ("0001", "0002"):
        panels(tmp_path / folder, caption=CAPTION)
        for number, name in enumerate(("wide", "close", "detail"), 1):
            (tmp_path / folder / f"{number}.png").rename(tmp_path / folder / f"{name}.png")
    (problem,) = open_dataset(tmp_path, STORY).problems
    assert problem.severity == "warning"
    assert "(close.png, detail.png, wide.png, as in 1 other sets)" in problem.text


@pytest.mark.parametrize(
    ("table", "line"),
    [
        *[("metadata.jsonl", line) for line in ("{", "[1]", "3", "[" * 100_000)],
        ("metadata.jsonl", '{"file_name": 3, "text": []}'),
        ("captions.json", '{"images": [{"id": 1}], "annotations": []}'),
        ("captions.json", "[1]"),
        ("captions.tsv", "0001.png a day\n"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, table, line):
    pair(tmp_path, "0001")
    (tmp_path / table).write_text(line)
    (problem,) = open_dataset(tmp_path, STORY).problems
    assert problem.subject == table


def test_of_several_tables_the_first_of_the_list_counts(tmp_path):
    pair(tmp_path, "0001", caption=None)
    (tmp_path / "captions.json").write_text(json.dumps({"0001.png": "b"}))
    (tmp_path / "metadata.csv").write_text("file_name,text\n0001.png,c\n")
    row = {"file_name": "0001.png", "text": CAPTION}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert open_dataset(tmp_path, STORY).sets[0].caption() == CAPTION


@pytest.mark.parametrize(("system", "severity"), [("posix", "warning"), ("nt", "error")])
def test_a_set_with_a_name_that_windows_lacks_is_named_and_refused_there(
    tmp_path, monkeypatch, system, severity
):
    for name in ("NUL", "good", "last."):
        pair(tmp_path, name)
    monkeypatch.setattr(finding, "os", SimpleNamespace(name=system))
    found = [(p.subject, p.severity) for p in open_dataset(tmp_path, STORY).problems]
    assert found == [("last.", severity), ("NUL", severity)]


def test_folders_whose_names_differ_in_their_form_keep_their_own_captions(tmp_path):
    for letter, form in (("a", "NFC"), ("b", "NFD")):
        panels(tmp_path / unicodedata.normalize(form, "é"), caption=CAPTION.replace("day", letter))
    dataset = open_dataset(tmp_path, STORY)
    assert [errors(dataset), len({each.caption() for each in dataset.sets})] == [[], 2]


def test_rows_of_a_table_of_which_nothing_comes_are_named(tmp_path):
    pair(tmp_path, "0001", caption=None)
    rows = [("0001.png", CAPTION), ("./0001.png", "b"), ("gone.png", "c"), ("../0001.png", "d")]
    text = "\n".join(json.dumps({"file_name": k, "text": v}) for k, v in rows)
    (tmp_path / "metadata.jsonl").write_text(text)
    lost, again = open_dataset(tmp_path, STORY).problems
    assert "2 of its 4 rows name files that are not there (gone.png, ../0001.png)" in lost.text
    assert "1 of its 4 rows tell another caption" in again.text


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("0001.png", "0001.caption"),
        ("0001.png", "0001.png.txt"),
        ("IMG_1.PNG", "img_1.txt"),
        (
            unicodedata.normalize("NFC", "Käpt'n é.png"),
            unicodedata.normalize("NFD", "Käpt'n é.txt"),
        ),
        (unicodedata.normalize("NFD", "ボート.png"), unicodedata.normalize("NFC", "ボート.txt")),
    ],
)
def test_a_caption_s_name_may_be_nearly_its_picture_s(tmp_path, image, text):
    pair(tmp_path, "x", caption=None)
    (tmp_path / "x.png").rename(tmp_path / image)
    (tmp_path / text).write_text(CAPTION, encoding="utf-8")
    dataset = open_dataset(tmp_path, STORY)
    assert errors(dataset) == []
    assert caption_path(dataset, dataset.sets[0]) == tmp_path / text


@pytest.mark.parametrize("key", ["caption", "text", "prompt"])
def test_a_caption_in_a_json_file_beside_its_picture_is_read(tmp_path, key):
    pair(tmp_path, "0001", caption=None)
    (tmp_path / "0001.json").write_text(json.dumps({"tags": ["a"], key: CAPTION}))
    (found,) = open_dataset(tmp_path, STORY).sets
    assert found.caption() == CAPTION


@pytest.mark.parametrize(
    "text", ["0001/0001.txt", "0001.txt", "0001/prompt.txt", "0001/caption.caption"]
)
def test_a_caption_of_a_folder_may_have_the_folder_s_name(tmp_path, text):
    panels(tmp_path / "0001")
    panels(tmp_path / "0002", caption=CAPTION, seed=1)
    (tmp_path / text).write_text(CAPTION)
    dataset = open_dataset(tmp_path, STORY)
    assert [(s.name, len(s.images)) for s in dataset.sets] == [("0001", 3), ("0002", 3)]
    assert errors(dataset) == []


def test_a_text_for_each_panel_is_joined_behind_the_markers(tmp_path):
    for s in (1, 2):
        panels(tmp_path / f"000{s}", seed=s)
        for k in (1, 2, 3):
            (tmp_path / f"000{s}" / f"{k}.txt").write_text(f"Ana in scene {k}\nof {s}")
    (tmp_path / "0002" / "caption.txt").write_text("A day at sea")
    (tmp_path / "0002" / "3.txt").write_text("[SCENE-3] Ana sails home")
    dataset = open_dataset(tmp_path, STORY)
    assert [(s.name, len(s.images)) for s in dataset.sets] == [("0001", 3), ("0002", 3)]
    assert errors(dataset) == []
    assert [s.caption() for s in dataset.sets] == [
        "[MOVIE-SHOTS] [SCENE-1] Ana in scene 1 of 1 [SCENE-2] Ana in scene 2 of 1 "
        "[SCENE-3] Ana in scene 3 of 1",
        "[MOVIE-SHOTS] A day at sea [SCENE-1] Ana in scene 1 of 2 [SCENE-2] Ana in scene 2 of 2 "
        "[SCENE-3] Ana sails home",
    ]
    assert any("joined behind the markers" in p.text for p in problems(dataset))
    (tmp_path / "0001" / "2.txt").write_text(" ")
    assert "0001/2.txt is empty" in errors(open_dataset(tmp_path, STORY))[0].text


def test_composites_in_a_folder_with_joint_captions_stay_composites(tmp_path):
    for name in ("1", "2", "3"):
        pair(tmp_path / "sub", name)
    pair(tmp_path, "4")
    dataset = open_dataset(tmp_path, STORY)
    assert [s.name for s in dataset.sets] == ["4", "sub-1", "sub-2", "sub-3"]
    assert all(s.composite for s in dataset.sets)


def test_one_folder_of_panels_is_one_set_at_first_try(tmp_path):
    panels(tmp_path / "board", size=(384, 192))
    for place in (tmp_path, tmp_path / "board"):
        (found,) = open_dataset(place, STORY).sets
        assert len(found.images) == 3
    assert caption_path(open_dataset(tmp_path, STORY), found).name == "caption.txt"
    # Squares of a 2x2 have the shape of their composite: a folder of its own decides.
    panels(tmp_path / "b" / "girl", names="1234", size=(60, 60))
    (found,) = open_dataset(tmp_path / "b", "portrait-photography").sets
    assert (found.name, len(found.images)) == ("girl", 4)


def test_a_folder_of_made_sets_is_read_without_their_composites(tmp_path):
    for name in ("0001", "0002"):
        panels(
            tmp_path / name, names=("composite", "panel-1", "panel-2", "panel-3"), seed=int(name)
        )
        request = {"prompt": CAPTION, "recipe": STORY if name == "0001" else "other"}
        (tmp_path / name / "request.json").write_text(json.dumps(request))
    with pytest.raises(DatasetError, match="which recipe"):
        open_dataset(tmp_path)
    (tmp_path / "0002" / "request.json").write_text(json.dumps(request | {"recipe": STORY}))
    dataset = open_dataset(tmp_path)
    assert [(s.name, len(s.images), s.caption()) for s in dataset.sets] == [
        ("0001", 3, CAPTION),
        ("0002", 3, CAPTION),
    ]
    assert dataset.problems == ()


def test_a_set_with_the_longest_of_names_is_composed(tmp_path):
    long = tmp_path / ("p" * 120) / ("q" * 120)
    panels(long, caption=CAPTION)
    panels(tmp_path / "b", caption=CAPTION, seed=1)
    pair(tmp_path, "p" * 251)
    compose_dataset(open_dataset(tmp_path, STORY), tmp_path / "out")
    assert len(open_dataset(tmp_path / "out").sets) == 3


def test_surplus_pictures_are_counted_before_any_is_decoded(tmp_path, monkeypatch):
    panels(tmp_path / "0001", names=[str(k) for k in range(40)], caption=CAPTION)
    monkeypatch.setattr("iclora.sets.dataset.read_image", None)
    (problem,) = errors(open_dataset(tmp_path, STORY))
    assert "has 40 images" in problem.text


def test_one_picture_at_a_time_is_in_memory_during_a_check(make_dataset, monkeypatch):
    import iclora.sets.dataset as room

    read, pictures, most = room.read_image, [], []

    def counted(data, name):
        most.append(sum(picture() is not None for picture in pictures))
        image = read(data, name)
        pictures.append(weakref.ref(image))
        return image

    dataset = open_dataset(make_dataset(sets=2))
    monkeypatch.setattr(room, "read_image", counted)
    assert errors(dataset) == []
    assert len(most) == 6
    assert max(most) <= 1
