"""Pictures as people have them: turned, transparent, in print colours, broken, or bombs."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from iclora.errors import ImageError, StorageError
from iclora.sets.dataset import open_dataset
from iclora.sets.images import (
    BLANK,
    encode_png,
    open_given,
    open_image,
    png_text,
    read_image,
    write_png,
)
from tests.conftest import CAPTION, picture


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    if form == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


FORMS = [
    *("PNG", "JPEG", "WEBP", "TIFF", "BMP"),
    pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF")),
    pytest.param(
        "HEIF", marks=pytest.mark.skipif(not find_spec("pillow_heif"), reason="no pillow-heif")
    ),
]


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_a_picture_taken_with_a_turned_camera_comes_upright(orientation, undo):
    upright = picture(60, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(upright.transpose(undo), exif=exif)
    image = read_image(data, "p")
    assert image.tobytes() == upright.tobytes()
    assert image.getexif() == {}


@pytest.mark.parametrize("form", FORMS[-2:])
def test_what_phones_write_is_read(tmp_path, form):
    upright = picture(60, 40)
    exif = Image.Exif()
    # The encoder of HEIC writes no orientation.
    turned = upright.transpose(Image.Transpose.ROTATE_90) if form == "AVIF" else upright
    exif[0x0112] = 6 if form == "AVIF" else 1
    data = saved(turned, form, exif=exif, quality=95)
    got = np.asarray(read_image(data, "p")).astype(int)
    assert got.shape == (40, 60, 3)
    assert np.abs(got - np.asarray(upright)).mean() < 4
    for k in (1, 2, 3):
        (tmp_path / f"{k}.{'avif' if form == 'AVIF' else 'HEIC'}").write_bytes(data)
    (tmp_path / "caption.txt").write_text(CAPTION)
    (found,) = open_dataset(tmp_path, "film-storyboard").sets
    assert len(found.images) == 3


def test_transparent_pixels_become_white_by_their_share():
    layer = Image.new("RGBA", (2, 1))
    layer.putpixel((0, 0), (255, 0, 0, 0))
    layer.putpixel((1, 0), (0, 0, 0, 128))
    image = read_image(saved(layer), "p")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 0)) == (127, 127, 127)


def test_a_palette_with_a_transparent_colour_is_composited_too():
    image = picture(16, 16).quantize(8)
    image.putpixel((0, 0), 3)
    got = read_image(saved(image, transparency=3), "p")
    assert got.getpixel((0, 0)) == (255, 255, 255)
    assert read_image(saved(image), "p").tobytes() == image.convert("RGB").tobytes()


def test_print_colours_and_grey_are_converted():
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    red = read_image(saved(cmyk, "JPEG", quality=100), "p").getpixel((0, 0))
    assert red[0] > 200
    assert max(red[1:]) < 60
    assert read_image(saved(Image.new("L", (4, 4), 77)), "p").getpixel((0, 0)) == (77, 77, 77)
    assert read_image(saved(Image.new("1", (4, 4), 1)), "p").getpixel((0, 0)) == (255,) * 3


def test_16_bit_greys_are_scaled_and_not_clipped():
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    image = read_image(saved(Image.fromarray(values)), "p")
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_a_wide_gamut_profile_is_converted_to_srgb():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    plain = picture(8, 8)
    # A profile of another colour space than the pixels is set aside, as browsers do.
    assert read_image(saved(plain, icc_profile=profile.tobytes()), "p").tobytes() == plain.tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    got = np.asarray(read_image(saved(plain, icc_profile=srgb.tobytes()), "p")).astype(int)
    assert np.abs(got - np.asarray(plain)).max() <= 2


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_short_is_refused_by_name(form):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, form)
    assert read_image(data, "p").size == (64, 64)
    with pytest.raises(ImageError, match=r'image "set/2\.png" (is|.* and is damaged)'):
        read_image(data[: len(data) // 2], "set/2.png")


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "is empty"), (b"GIF89a" + b"\0" * 50, "is not a"), (b"hello", "is not a")],
)
def test_what_is_no_picture_is_refused_by_name(data, says):
    with pytest.raises(ImageError, match=says):
        read_image(data, "x.png")


def test_a_decompression_bomb_is_refused_by_its_header_alone():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    for side in (13_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
        with pytest.raises(ImageError, match="decompression bomb"):
            read_image(bomb, "b.png")


def test_an_animation_is_refused_since_no_frame_is_meant():
    frames = [picture(8, 8, i) for i in range(3)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="3 frames"):
        read_image(data, "a.webp")


@pytest.mark.parametrize("form", FORMS)
def test_a_file_damaged_anywhere_is_read_or_refused_by_an_error_of_ours(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = (
        saved(picture(24, 16), form, exif=exif) if form != "BMP" else saved(picture(24, 16), form)
    )
    for at in range(0, len(data), max(1, len(data) // (50 if form == "AVIF" else 300))):
        broken = bytearray(data)
        broken[at] ^= 0xA5
        with suppress(ImageError):
            read_image(bytes(broken), "x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png"):
        open_image(tmp_path / "none.png")


def test_a_written_png_comes_back_with_its_text(tmp_path):
    image = picture(20, 10)
    write_png(tmp_path / "a.png", image, {"iclora:layout": "hello"})
    assert open_image(tmp_path / "a.png").tobytes() == image.tobytes()
    assert png_text((tmp_path / "a.png").read_bytes(), "iclora:layout") == "hello"
    assert png_text(encode_png(image), "iclora:layout") is None
    assert png_text(b"nonsense", "iclora:layout") is None


def test_writing_into_a_place_that_cannot_be_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        write_png(tmp_path / "file" / "a.png", picture(4, 4))


def logo(colour):
    """A square of one colour in the middle of nothing."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste(colour, (16, 16, 48, 48))
    return image


@pytest.mark.parametrize(
    ("colour", "background", "corner", "blank"),
    [
        ("white", "white", 255, True),
        ("#f8f8f8", "white", 255, True),
        ("black", "white", 255, False),
        ("black", "black", 0, True),
        ("white", "auto", 0, False),
        ("black", "auto", 255, False),
        ("white", "#102030", 16, False),
        ("teal", "Teal", 0, True),
        ("white", "hsl(240, 100%, 50%)", 0, False),
    ],
)
def test_a_transparent_picture_that_does_not_show_is_marked(colour, background, corner, blank):
    image = read_image(saved(logo(colour)), "p", background)
    assert image.getpixel((0, 0))[0] == corner
    assert (BLANK in image.info) == blank
    assert BLANK not in read_image(saved(Image.new("RGBA", (8, 8), colour)), "p", background).info


def test_a_blank_panel_is_warned_of_and_a_given_one_refused(make_dataset, tmp_path):
    from tests.sets.test_check import problems

    root = make_dataset(1, size=(64, 64))
    logo("white").save(root / "0001" / "2.png")
    assert any("0001/2.png is transparent" in p.text for p in problems(open_dataset(root)))
    auto = open_dataset(root, background="auto")
    assert not any("transparent" in p.text for p in problems(auto))
    assert auto.sets[0].load(auto.recipe).panels[1].getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(ImageError, match="nothing of it shows on white"):
        open_given({1: str(root / "0001" / "2.png")})
    assert open_given({1: str(root / "0001" / "2.png")}, "auto")[1].size == (64, 64)


def test_what_begins_as_a_kind_that_is_read_is_not_said_to_be_none():
    with pytest.raises(ImageError) as refused:
        read_image(b"II*\0" + bytes(60), "a.tif")
    assert "begins as TIFF does, and is damaged" in refused.value.problem
    assert "is not a" not in refused.value.problem
