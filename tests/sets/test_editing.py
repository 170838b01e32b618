"""Changes of sets by hand, applied to real folders and read again by `open_dataset`."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from iclora.errors import DatasetError, LayoutError
from iclora.sets.dataset import open_dataset
from iclora.sets.editing import (
    boxes_by_hand,
    leave_out_panel,
    leave_out_set,
    replace_panel,
    swap_panels,
)
from iclora.sets.images import encode_png, with_png_text

CAPTION = "[MOVIE-SHOTS] A day, [SCENE-1] a red one, [SCENE-2] a green one [SCENE-3] a blue one."
COLOURS = ("red", "green", "blue")


def write(folder, changes):
    for name, data in changes.items():
        place = folder / name
        if data is None:
            place.unlink()
        else:
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data)


def open_one(folder):
    dataset = open_dataset(folder, "film-storyboard")
    return dataset, dataset.sets[0]


def colours(folder):
    dataset, one = open_one(folder)
    return [panel.getpixel((3, 3)) for panel in one.load(dataset.recipe).panels]


def rgb(*names):
    return [Image.new("RGB", (1, 1), name).getpixel((0, 0)) for name in names]


@pytest.fixture
def panels(tmp_path):
    place = tmp_path / "0001"
    place.mkdir()
    for number, colour in enumerate(COLOURS, 1):
        suffix = "jpg" if number == 2 else "png"
        Image.new("RGB", (64, 32), colour).save(place / f"{number}.{suffix}", quality=100)
    (place / "caption.txt").write_text(CAPTION)
    return tmp_path


@pytest.fixture
def composite(tmp_path):
    """Three rows of 40, 30 and 20 px, with a line across the first that looks like a seam."""
    whole = Image.new("RGB", (64, 90), "red")
    whole.paste("white", (0, 28, 64, 29))
    whole.paste("green", (0, 40, 64, 70))
    whole.paste("blue", (0, 70, 64, 90))
    (tmp_path / "0001.png").write_bytes(encode_png(whole))
    (tmp_path / "0001.txt").write_text(CAPTION)
    return tmp_path


PLACED = [(0, 0, 64, 40), (0, 40, 64, 30), (0, 70, 64, 20)]


def test_placed_borders_are_read_again_and_no_pixel_is_encoded_again(composite):
    before = (composite / "0001.png").read_bytes()
    dataset, one = open_one(composite)
    assert [p.height for p in one.load(dataset.recipe).panels] != [40, 30, 20]
    changes, layout = boxes_by_hand(dataset, one, PLACED)
    assert layout.per_row == (1, 1, 1)
    write(composite, changes)
    dataset, one = open_one(composite)
    assert [p.size for p in one.load(dataset.recipe).panels] == [(64, 40), (64, 30), (64, 20)]
    at = before.index(b"IDAT")
    assert before[at:] in (composite / "0001.png").read_bytes()


def test_boxes_with_gutters_are_kept_as_they_are_placed(composite):
    dataset, one = open_one(composite)
    boxes = [(2, 2, 60, 36), (0, 40, 64, 28), (0, 72, 64, 16)]
    changes, _ = boxes_by_hand(dataset, one, boxes)
    write(composite, changes)
    dataset, one = open_one(composite)
    assert [tuple(box) for box in one.load(dataset.recipe).found.boxes] == boxes


@pytest.mark.parametrize(
    ("boxes", "error"),
    [
        (PLACED[:2], DatasetError),
        ([(0, 0, 64, 41), *PLACED[1:]], LayoutError),
        ([*PLACED[:2], (0, 70, 64, 30)], LayoutError),
        ([(0, 0, 64, 5), *PLACED[1:]], DatasetError),
    ],
)
def test_boxes_that_are_too_few_overlap_leave_the_picture_or_are_tiny_are_refused(
    composite, boxes, error
):
    with pytest.raises(error):
        boxes_by_hand(*open_one(composite), boxes)


def test_a_composite_that_is_no_png_becomes_one_with_its_pixels_and_its_words(composite):
    with Image.open(composite / "0001.png") as whole:
        whole.save(composite / "0001.webp", lossless=True)
    (composite / "0001.png").unlink()
    (composite / "0001.txt").rename(composite / "0001.webp.txt")
    dataset, one = open_one(composite)
    with Image.open(composite / "0001.webp") as file:
        before = np.asarray(file.convert("RGB"))
    write(composite, boxes_by_hand(dataset, one, PLACED)[0])
    assert sorted(path.name for path in composite.iterdir()) == ["0001.png", "0001.txt"]
    with Image.open(composite / "0001.png") as file:
        assert (np.asarray(file) == before).all()
    dataset, one = open_one(composite)
    assert (one.caption(), dataset.problems) == (CAPTION, ())


def test_swapped_panels_take_their_words_along_whatever_their_formats(panels):
    dataset, one = open_one(panels)
    write(panels, swap_panels(dataset, one, 2, 3))
    assert sorted(path.name for path in (panels / "0001").iterdir()) == [
        "1.png",
        "2.png",
        "3.jpg",
        "caption.txt",
    ]
    found = colours(panels)
    assert found[:2] == rgb("red", "blue")
    assert (panels / "0001" / "caption.txt").read_text().strip() == (
        "[MOVIE-SHOTS] A day, [SCENE-1] a red one, [SCENE-2] a blue one. [SCENE-3] a green one"
    )


def test_a_composite_of_which_a_panel_is_changed_becomes_a_folder_of_the_same_name(composite):
    dataset, one = open_one(composite)
    write(composite, boxes_by_hand(dataset, one, PLACED)[0])
    write(composite, swap_panels(*open_one(composite), 1, 3))
    dataset, one = open_one(composite)
    assert (one.name, one.composite, dataset.problems) == ("0001", False, ())
    assert colours(composite) == rgb("blue", "green", "red")
    assert "[SCENE-1] a blue one" in one.caption()


def test_a_panel_is_replaced_added_and_left_out(panels):
    dataset, one = open_one(panels)
    white = encode_png(Image.new("RGB", (64, 32), "white"))
    write(panels, replace_panel(dataset, one, 2, white, ".png"))
    assert colours(panels) == rgb("red", "white", "blue")
    write(panels, leave_out_panel(*open_one(panels), 1))
    assert open_one(panels)[1].images == ("0001/2.png", "0001/3.png")
    write(panels, replace_panel(*open_one(panels), 3, white, ".png"))
    assert colours(panels) == rgb("white", "blue", "white")
    with pytest.raises(DatasetError, match="no panel 5"):
        replace_panel(*open_one(panels), 5, white, ".png")


def test_a_set_of_two_panels_loses_none(panels):
    write(panels, leave_out_panel(*open_one(panels), 1))
    with pytest.raises(DatasetError, match="no set"):
        leave_out_panel(*open_one(panels), 1)


def test_a_set_is_left_out_with_its_words(panels, composite):
    dataset = open_dataset(composite, "film-storyboard")
    one = dataset.sets[-1]
    assert set(leave_out_set(dataset, one)) == {*one.images, one.words.files[0]}


def test_a_made_set_and_a_zip_are_not_changed(panels, tmp_path_factory):
    packed = shutil.make_archive(str(tmp_path_factory.mktemp("z") / "a"), "zip", panels)
    dataset = open_dataset(packed, "film-storyboard")
    with pytest.raises(DatasetError, match="zip"):
        leave_out_panel(dataset, dataset.sets[0], 1)
    (panels / "0001" / "request.json").write_text("{}")
    with pytest.raises(DatasetError, match="made by iclora"):
        swap_panels(*open_one(panels), 1, 2)


def test_a_text_in_a_png_replaces_the_one_before_and_is_read_by_pillow():
    data = encode_png(Image.new("RGB", (4, 4), "red"), {"a": "old", "b": "stays"})
    data = with_png_text(with_png_text(data, "a", "new"), "c", "more")
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert image.text == {"a": "new", "b": "stays", "c": "more"}
