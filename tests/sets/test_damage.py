"""Damage that decoders pass over is noticed; large or unusual but whole pictures are read."""

from __future__ import annotations

import io
import json
import time
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from iclora.errors import ImageError
from iclora.sets.damage import lean_png
from iclora.sets.dataset import open_dataset
from iclora.sets.images import png_text, read_image, write_png
from iclora.sets.layout import Layout
from tests.conftest import picture
from tests.sets.test_images import saved


def photo(width=320, height=400, seed=0):
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 14, (height, width, 3))
    return Image.fromarray(
        np.clip(np.asarray(picture(width, height, seed)) + grain, 0, 255).astype("uint8")
    )


def on_white(side=700):
    """A photo in the corner of a white page: most of what is coded of it is nothing."""
    page = Image.new("RGB", (side, side), "white")
    page.paste(photo(), (0, 0))
    return page


FORMS = [
    {"quality": 90},
    {"quality": 60, "subsampling": 0},
    {"quality": 80, "optimize": True},
    {"quality": 85, "restart_marker_blocks": 8},
    {"quality": 88, "progressive": True},
    {"quality": 70, "progressive": True, "subsampling": 0},
]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_whole_jpeg_of_any_kind_is_read(options, mode):
    plain = (
        photo(),
        Image.new("RGB", (200, 300), "gray"),
        Image.new("RGB", (700, 700)),
        picture(90, 40),
        on_white(),
    )
    for image in plain:
        data = saved(image.convert(mode), "JPEG", **options)
        assert read_image(data, "p").size == image.size
        assert read_image(data + b"trailing", "p").size == image.size
    half = photo()
    half.paste("white", (0, 200, 320, 400))
    assert read_image(saved(half.convert(mode), "JPEG", **options), "p")


@pytest.mark.parametrize("options", [*FORMS[:3], *FORMS[4:]])
@pytest.mark.parametrize("damage", ["zeros", "cut"])
@pytest.mark.parametrize("share", [0.12, 0.3, 0.6, 0.75, 0.9])
def test_a_jpeg_of_which_a_part_is_missing_is_named(options, damage, share):
    data = bytearray(saved(photo(), "JPEG", **options))
    at = int(len(data) * share)
    if damage == "cut":
        data = data[:at] + b"\xff\xd9"
    else:
        some = len(data) // 12
        data[at : at + some] = bytes(some)
    with pytest.raises(ImageError, match=r'"p\.jpg" is damaged'):
        read_image(bytes(data), "p.jpg")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_phone_s_jpeg_of_two_pictures_is_watched_too(share):
    first, second = (saved(photo(seed=k), "JPEG", quality=88) for k in (0, 1))
    buffer = io.BytesIO()
    photo().save(buffer, "MPO", save_all=True, append_images=[photo(seed=1)], quality=88)
    data = buffer.getvalue()
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert read_image(data, "p").tobytes() == read_image(first, "p").tobytes()
    end = data.index(second[-40:-20]) - len(second)
    at = int(end * share)
    with pytest.raises(ImageError, match="is damaged"):
        read_image(data[:at] + b"\xff\xd9" + data[end:], "p")


def test_a_picture_of_newer_phones_of_which_a_part_is_zeros_is_named():
    for form in ("AVIF", "HEIF"):
        if form == "HEIF" and not find_spec("pillow_heif"):
            continue
        data = bytearray(saved(photo(), form))
        assert read_image(bytes(data), "p")
        assert read_image(saved(on_white(), form), "p")
        data[len(data) // 2 : len(data) * 2 // 3] = bytes(len(data) * 2 // 3 - len(data) // 2)
        with pytest.raises(ImageError, match="is damaged"):
            read_image(bytes(data), "p")


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_of_which_a_part_is_zeros_is_named(lossless):
    data = bytearray(saved(photo(), "WEBP", lossless=lossless))
    assert read_image(bytes(data), "p")
    assert read_image(saved(on_white(), "WEBP", lossless=lossless), "p")
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    with pytest.raises(ImageError, match="is damaged"):
        read_image(bytes(data), "p")


@pytest.mark.parametrize("values", [np.float32([[0, 0.5, 1]]), np.int32([[0, 100, 255]])])
def test_numbers_without_a_white_are_named(values):
    data = saved(Image.fromarray(values), "TIFF")
    with pytest.raises(ImageError, match="nothing says which of them is white"):
        read_image(data, "p")


def test_a_16_bit_picture_that_would_be_black_is_named():
    values = np.uint16([[0, 100, 255]])
    for form in ("PNG", "TIFF"):
        with pytest.raises(ImageError, match="it would be black"):
            read_image(saved(Image.fromarray(values), form), "p")
    assert read_image(saved(Image.fromarray(np.zeros((2, 2), np.uint16))), "p")


def test_a_tiff_of_many_pages_is_refused_at_the_second(monkeypatch):
    pages = [picture(8, 8, k) for k in range(3)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="more than one frame"):
        read_image(data, "p")
    seeks = []
    real = TiffImageFile.seek
    monkeypatch.setattr(TiffImageFile, "seek", lambda self, n: (seeks.append(n), real(self, n)))
    many = [Image.new("1", (1, 1))] * 100
    data = saved(many[0], "TIFF", save_all=True, append_images=many[1:])
    with pytest.raises(ImageError, match="more than one frame"):
        read_image(data, "p")
    assert max(seeks, default=0) <= 1


@pytest.mark.parametrize("packed", [False, True])
def test_megabytes_of_text_or_profile_do_not_damage_a_png(packed):
    info = PngInfo()
    info.add_text("iclora:layout", "here")
    info.add_text("workflow", "node" * 500_000, zip=packed)
    info.add_itxt("more", "ノード" * 700_000, zip=packed)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Zeros behind it are packed into a few bytes.
    profile = srgb + (bytes(3_000_000) if packed else np.random.default_rng(0).bytes(3_000_000))
    image = picture(40, 30)
    data = saved(image, pnginfo=info, icc_profile=profile)
    got = np.asarray(read_image(data, "p")).astype(int)
    assert np.abs(got - np.asarray(image)).max() <= 2
    assert png_text(data, "iclora:layout") == "here"


@pytest.mark.parametrize("junk", [b"", b"\0" * 20_000_000, b"\0\0\0\0tEXt" * 2_000_000])
def test_what_lies_behind_a_png_takes_no_time_and_no_harm(junk):
    data = saved(picture(40, 30))
    began = time.process_time()
    assert lean_png(data + junk)[0][: len(data)] == data
    assert time.process_time() - began < 0.2


def test_a_recorded_layout_that_swaps_or_crops_panels_is_not_believed(tmp_path):
    canvas = Image.new("RGB", (120, 180))
    for k in range(3):
        canvas.paste(picture(120, 60, k), (0, 60 * k))
    boxes = [[0, 120, 120, 60], [0, 60, 120, 60], [0, 0, 120, 60]]
    swapped = {"width": 120, "height": 180, "per_row": [], "boxes": boxes}
    cropped = {**swapped, "boxes": [[0, 0, 120, 20], [0, 60, 120, 20], [0, 120, 120, 20]]}
    moved = Layout.stacked((16, 148, 16), [[120]] * 3).to_json()
    for number, forged in enumerate((swapped, cropped, moved)):
        text = {"iclora:layout": json.dumps(forged)}
        write_png(tmp_path / str(number) / "a.png", canvas, text)
        dataset = open_dataset(tmp_path / str(number), "film-storyboard")
        panels = dataset.sets[0].load(dataset.recipe)
        assert panels.panels[0].tobytes() == picture(120, 60, 0).tobytes()


def test_a_recorded_layout_of_free_boxes_keeps_their_order():
    free = Layout.free([(0, 0, 64, 64), (64, 0, 32, 32), (64, 32, 32, 32)], 96, 64)
    larger = Layout.free([(0, 0, 96, 128), (96, 0, 96, 32), (96, 32, 96, 96)], 192, 128)
    swapped = Layout.free([(0, 0, 64, 64), (64, 32, 32, 32), (64, 0, 32, 32)], 96, 64)
    assert free.has_places_of(larger)
    assert not free.has_places_of(swapped)
    assert not free.has_places_of(Layout.rows(3, 96, 96))


def test_reading_a_watched_jpeg_gives_the_pixels_that_pillow_gives():
    data = saved(photo(), "JPEG", quality=88)
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    assert read_image(data, "p").tobytes() == plain.tobytes()
