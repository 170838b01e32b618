"""Pictures in and out: upright, opaque, 8-bit sRGB, or refused by name."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from iclora.errors import ImageError
from iclora.files import write_bytes
from iclora.files.documents import read_bytes
from iclora.sets.archives import HEAD, container_of
from iclora.sets.blocks import lost_blocks, went_astray
from iclora.sets.damage import Feed, damage_in_scans, lean_png
from iclora.sets.kinds import HEIC_ADVICE, decoders, kind_of

__all__ = [
    "BLANK",
    "check_shown",
    "encode_png",
    "open_given",
    "open_image",
    "picture_size",
    "png_text",
    "read_image",
    "with_png_text",
    "write_png",
]

BLANK = "iclora:blank"
"""In `Image.info`: the colour on which a transparent picture does not show."""
_LEAST_SHOWN = 0.002
_READ = ("PNG", "JPEG", "WebP", "AVIF", "TIFF", "BMP")
# 12,000 x 12,000: far above any panel, far below what exhausts 24 GB when decoded.
_MOST_PIXELS = 144_000_000
_MOST_BYTES = 2**30
"""Of a file: an uncompressed picture of the most pixels in 16 bits has 0.9 GB."""
_PNG_LEVEL = 4
"""Of 9; the usual 6 takes twice the time for files that are 0 to 5% smaller."""


def _open(data: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own pixel limit below is the judge, and names the file.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Feed(data) if data[:2] == b"\xff\xd8" else io.BytesIO(data)
            image = Image.open(file, formats=decoders(data[:64]))
    except UnidentifiedImageError as error:
        raise _not_read(data, name) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "more than Pillow decodes") from error
    except Exception as error:
        raise _damaged(name, error) from error
    if image.width * image.height > _MOST_PIXELS:
        raise _too_large(name, f"{image.width}x{image.height} px")
    return image


def _not_read(data: bytes, name: str) -> ImageError:
    kind = kind_of(data[:64])
    what = "is not a PNG, JPEG, WebP, AVIF, TIFF or BMP image"
    if kind in _READ:
        what = f"begins as {kind} does, and is damaged or of a form of it that is not read"
    elif kind:
        what += f"; it begins as {kind} does"
    advice = HEIC_ADVICE if kind == "HEIC" else "Export it again as PNG or JPEG."
    if not kind and (found := container_of("", data[:HEAD])):
        what, advice = f"is no picture; it is of this kind: {found.name}", found.advice
    return ImageError(f'image "{name}" {what if data else "is empty"}', advice)


def _too_large(name: str, size: str) -> ImageError:
    return ImageError(
        f'image "{name}" is {size}; more than {_MOST_PIXELS // 1_000_000} megapixels is refused, '
        "for such a file can exhaust the memory (a decompression bomb)",
        "Scale it down; no base model uses more than a few megapixels.",
    )


def _damaged(name: str, error: Exception | str) -> ImageError:
    return ImageError(
        f'image "{name}" is damaged or cut short ({error})',
        "Copy or export it again; a partly read panel is never used.",
    )


def png_text(data: bytes, key: str) -> str | None:
    """A PNG's text chunk, as `write_png` puts it there; None if there is none."""
    try:
        with Image.open(io.BytesIO(lean_png(data)[0]), formats=("PNG",)) as image:
            value = image.info.get(key)
    except (OSError, SyntaxError, ValueError):
        return None
    return value if isinstance(value, str) else None


def with_png_text(data: bytes, key: str, value: str) -> bytes:
    """A PNG's bytes with a text in it, which replaces one of this key; no pixel is encoded again.

    Args:
        key, value: of Latin-1.
    Raises: ImageError for what is no whole PNG.
    """
    own = key.encode("latin-1") + b"\0"
    body = b"tEXt" + own + value.encode("latin-1")
    new = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if data[:4] != b"\x89PNG" or end > len(data):
            raise ImageError("this is no whole PNG", "Export it again.")
        if not (kind in (b"tEXt", b"zTXt", b"iTXt") and data[at + 8 : end].startswith(own)):
            kept.append(data[at:end])
        if kind == b"IHDR":
            kept.append(new)  # Before the pixels, so that readers have it before they decode.
        if kind == b"IEND":
            break
        at = end
    return b"".join(kept)


def picture_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height in px by a picture's header, as it lies there. Raises: ImageError."""
    return _open(data, name).size


def open_image(path: Path, background: str = "white") -> Image.Image:
    """`read_image` of a file. Raises: ImageError."""
    data = read_bytes(path, ImageError, "image", _MOST_BYTES)
    return read_image(data, str(path), background)


def open_given(files: Mapping[int, str], background: str = "white") -> dict[int, Image.Image]:
    """The pictures of given panels, transparent parts filled with a colour.

    Raises: ImageError, also for a transparent picture of which nothing shows on that colour.
    """
    given = {number: open_image(Path(file), background) for number, file in files.items()}
    for number, picture in given.items():
        check_shown(picture, f'image "{files[number]}"')
    return given


def check_shown(picture: Image.Image, name: str) -> None:
    """Raises: ImageError for a transparent picture of which nothing shows on its background."""
    if BLANK in picture.info:
        raise ImageError(
            f"{name} is transparent, and nothing of it shows on {picture.info[BLANK]}",
            "Choose another `background`, such as auto, or fill it yourself.",
            setting="background",
        )


def read_image(data: bytes, name: str, background: str = "white") -> Image.Image:
    """Decode a picture to upright, opaque 8-bit sRGB.

    EXIF orientation is applied, transparency filled with a colour, CMYK, greyscale, palette and
    16-bit pixels converted, a colour profile converted to sRGB. Animations are refused, since
    which frame is meant cannot be known.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        background: a colour, or auto for the first of white, black and grey that shows the picture.
    Returns: an RGB image; its `info` has BLANK if nothing of it shows on the background.
    Raises: ImageError naming the image.
    """
    profile = None
    if data[:4] == b"\x89PNG":
        data, profile = lean_png(data)
    image = _open(data, name)
    source = getattr(image, "fp", None)
    feed = source if isinstance(source, Feed) else None
    try:
        lost = lost_blocks(data, image)
        if feed and image.format in ("JPEG", "MPO"):
            feed.watch(image)
        frames = _frames(image)
        image.load()
        damage = feed.damage() if feed else lost
        if image.format in ("JPEG", "MPO"):
            damage = damage or damage_in_scans(data, image)
        elif image.format in ("WEBP", "AVIF") and frames == 1:
            damage = damage or went_astray(data, image)
        profile = profile or image.info.get("icc_profile")
        # The picture is ours alone, so that it need not be copied for this.
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        # Damaged files make Pillow raise almost anything: struct.error, TypeError, KeyError ...
        raise _damaged(name, error) from error
    if damage:
        raise _damaged(name, damage)
    if frames > 1:
        many = "more than one frame" if image.format == "TIFF" else f"{frames} frames"
        raise ImageError(
            f'image "{name}" has {many}', "Export the frame you mean as a single picture."
        )
    return _to_srgb(_opaque(_eight_bit(image, image.format, name), background), profile)


def _frames(image: Image.Image) -> int:
    """The pictures in a file; of a TIFF two stand for all, since counting reads every page."""
    if image.format == "MPO":
        return 1
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    try:
        image.seek(1)
    except EOFError:
        return 1
    image.seek(0)
    return 2


def _eight_bit(image: Image.Image, form: str | None, name: str) -> Image.Image:
    """Raises: ImageError for numbers of which nobody can say which is white."""
    if image.mode == "F" or (image.mode == "I" and form == "TIFF"):
        kind = "decimal numbers" if image.mode == "F" else "numbers of 32 bits"
        raise ImageError(
            f'image "{name}" has {kind} for pixels, and nothing says which of them is white',
            "Export it again with 8 or 16 bits a channel.",
        )
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit greys at 255 instead of scaling them.
        grey = np.asarray(image).astype(np.float64)
        low, high = float(grey.min()), float(grey.max())
        if low < high < 1024:
            raise ImageError(
                f'image "{name}" has 16 bits a pixel but no number above {high:.0f} of 65535, so '
                "it would be black",
                "Export it again with 8 bits a channel, or over the whole range.",
            )
        return Image.fromarray((grey.clip(0, 65535.0) * (255.0 / 65535.0)).round().astype(np.uint8))
    return image


def _opaque(image: Image.Image, background: str) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        filled = layer.convert("RGB")
        # Most pictures that say they may be transparent are not.
        if layer.getchannel("A").getextrema() == (255, 255):
            return filled
        for colour in ("white", "black", "gray") if background == "auto" else (background,):
            ground = Image.new("RGBA", layer.size, colour)
            filled = Image.alpha_composite(ground, layer).convert("RGB")
            off = ImageChops.difference(filled, ground.convert("RGB")).convert("L")
            if sum(off.histogram()[16:]) > _LEAST_SHOWN * off.width * off.height:
                return filled
        filled.info[BLANK] = background
        return filled
    return image if image.mode in ("RGB", "CMYK") else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    blank = image.info.get(BLANK)
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            # A profile for another colour space than the pixels (common after careless
            # exports): show the numbers as they are, as browsers do.
            converted = None
        if converted is not None:
            image = converted
    clean = image.convert("RGB")  # a copy, also of an RGB picture
    # Without EXIF and profile: both are applied now, and must not be applied again.
    clean.info = {} if blank is None else {BLANK: blank}
    return clean


def encode_png(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """An RGB image as PNG bytes, lossless.

    Args:
        text: entries for PNG text chunks; `png_text` reads them back.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def write_png(path: Path, image: Image.Image, text: Mapping[str, str] | None = None) -> None:
    """`encode_png` to a file, whole or not at all. Raises: StorageError."""
    write_bytes(path, encode_png(image, text))
