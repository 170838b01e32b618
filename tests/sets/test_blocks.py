"""Lost blocks are noticed in formats without a checksum; flat and letterboxed pictures are read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from iclora.errors import ImageError
from iclora.sets.images import read_image
from tests.conftest import picture
from tests.sets.test_damage import on_white, photo
from tests.sets.test_images import saved

FORMS = [
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "packbits"}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("BMP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"quality": 95}),
]


FAST = {"lossless": True, "method": 0, "quality": 0}
"""This encoder writes zeros for flat grounds."""


def zeroed(data: bytes, at: float, size: int) -> bytes:
    start = int(len(data) * at) + 101
    return data[:start] + bytes(size) + data[start + size :]


@pytest.mark.parametrize(("form", "options"), FORMS)
@pytest.mark.parametrize("at", [0.2, 0.55])
def test_some_lost_sectors_are_noticed(form, options, at):
    data = saved(photo(200, 160, seed=3), form, **options)
    assert read_image(data, "p")
    with pytest.raises(ImageError, match="is damaged"):
        read_image(zeroed(data, at, 4096 if len(data) > 30_000 else 1024), "p")


@pytest.mark.parametrize(("form", "options"), [FORMS[0], FORMS[5]])
def test_an_unwritten_end_and_erased_flash_are_noticed(form, options):
    data = saved(photo(200, 160, seed=5), form, **options)
    half = len(data) // 2 + 277
    with pytest.raises(ImageError, match="turns flat within a line"):
        read_image(data[:half] + bytes(len(data) - half), "p")
    with pytest.raises(ImageError, match="turns flat within a line"):
        read_image(data[:half] + b"\xff" * 8192 + data[half + 8192 :], "p")


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
@pytest.mark.parametrize(("quality", "at"), [(80, 0.4), (80, 0.6), (95, 0.5)])
def test_a_flipped_bit_behind_an_arithmetic_coder_is_noticed(form, quality, at):
    """There is no checksum, but a wrong bit makes the decoder end at another place."""
    data = bytearray(saved(photo(200, 160, seed=3), form, quality=quality))
    data[int(len(data) * at)] ^= 4
    with pytest.raises(ImageError, match="is damaged"):
        read_image(bytes(data), "p")


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
def test_what_else_lies_in_a_picture_file_does_not_damage_it(form):
    layer = photo(200, 160)
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    exif = Image.Exif()
    exif[0x010E] = "a fox" * 50
    for image in (photo(200, 160), layer, letterboxed("black"), Image.new("RGB", (16, 16))):
        for more in ({}, {"exif": exif}, {"xmp": b"<x/>" * 40}):
            assert read_image(saved(image, form, **more), "p").size == image.size


def letterboxed(colour):
    page = Image.new("RGB", (300, 240), colour)
    page.paste(photo(300, 150), (0, 45))
    ImageDraw.Draw(page).rectangle((0, 60, 170, 90), fill=colour)  # reaches in from one side
    return page


PAGES = [on_white(400), letterboxed("black"), letterboxed("white"), Image.new("RGB", (300, 200))]


@pytest.mark.parametrize(
    ("form", "options"), [*FORMS, ("WEBP", {"lossless": True, "method": 0, "quality": 0})]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_flat_pages_and_letterboxes_are_whole(form, options, mode):
    if mode != "RGB" and (form == "WEBP" or options.get("compression") == "jpeg"):
        return
    for page in PAGES:
        image = page.convert(mode)
        assert read_image(saved(image, form, **options), "p").size == page.size


def test_a_picture_with_a_drawn_step_of_many_lines_is_whole():
    page = photo(256, 200)
    ImageDraw.Draw(page).rectangle((100, 50, 255, 120), fill="black")
    ImageDraw.Draw(page).rectangle((0, 80, 255, 150), fill="black")
    for form in ("TIFF", "BMP"):
        assert read_image(saved(page, form), "p").size == page.size


@pytest.mark.parametrize("ground", [(0, 0, 0, 0), (255, 255, 255, 255), (0, 0, 0, 255)])
def test_shapes_on_a_flat_ground_are_whole_and_lost_sectors_beside_them_noticed(ground):
    shapes = Image.new("RGBA", (300, 200), ground)
    ImageDraw.Draw(shapes).ellipse((60, 20, 240, 150), fill=(250, 60, 240, 255))
    # Its lower edge sinks by a pixel in 150.
    ImageDraw.Draw(shapes).polygon((20, 170, 280, 170, 280, 181, 20, 180), fill=(9, 200, 90, 255))
    data = saved(shapes, "TIFF")
    assert read_image(data, "p").size == shapes.size
    assert read_image(saved(shapes.convert("RGB"), "BMP"), "p").size == shapes.size
    with pytest.raises(ImageError, match="turns flat"):
        read_image(data[: 512 * 195] + bytes([ground[0]]) * 4096 + data[512 * 203 :], "p")


def test_tiffs_of_other_layouts_are_read():
    values = np.asarray(photo(64, 48)).astype(np.uint16)[..., 0] * 257
    for image in (Image.fromarray(values), picture(64, 48).convert("CMYK")):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        assert read_image(buffer.getvalue(), "p").size == (64, 48)
