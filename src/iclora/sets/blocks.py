"""Blocks that are lost in a picture's data: read as zeros, as a disk or a copy leaves them.

Formats without a checksum show them: a compressed picture does not have so many zeros in a row, an
uncompressed one turns black (or white) in the middle of a line, as no picture does.
"""

from __future__ import annotations

import io
import random
import re
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from PIL import Image, ImageChops

__all__ = ["lost_blocks", "went_astray"]

_SECTOR = 512
_NOISES = [random.Random(k).randbytes(16) for k in range(3)]
_CHANCE = 8
"""Bytes beside a lost sector that may be of its value by chance."""
_ABRUPT = 24
"""Mean difference, in 256 levels, of the line above from the block's black or white."""
_PACKBITS, _DEFLATE, _JPEG = 32773, (8, 32946), 7


def lost_blocks(data: bytes, image: Any) -> str | None:
    """What is wrong with a picture's data, if a block of them is lost; None if nothing shows.

    Args:
        data: the file.
        image: what it is opened as, not yet decoded.
    """
    zeros = "a good part of its data are zeros"
    if image.format == "WEBP":
        for lossless, part in _webp_pictures(data):
            most = _SECTOR if lossless else min(_SECTOR, max(128, len(part) // 20))
            # Flat pictures may be full of zeros too; these need all of their data.
            if _longest(part) > most and not (lossless and _needs_its_end(data, part)):
                return zeros
    elif image.format in ("AVIF", "HEIF"):
        return zeros if _longest(data) > 48 else None
    elif image.format in ("TIFF", "BMP"):
        strips = list(_strips(image, len(data)))
        packing = image.tag_v2.get(259, 1) if hasattr(image, "tag_v2") else 1
        if packing in (1, 0) and image.tile and image.tile[0][0] == "raw":
            return _turns_flat(data, strips)
        return next(filter(None, (_of_strip(data, strip, packing) for strip in strips)), None)
    return None


def _longest(data: bytes) -> int:
    """The most zeros in a row, if they are more than a few."""
    return max((len(found) for found in re.findall(rb"\0{32,}", data)), default=0)


# -- WebP ---------------------------------------------------------------------------------------


def _needs_its_end(data: bytes, part: bytes) -> bool:
    start, picture = data.index(part), _decoded(data)
    return picture is None or _matters(data, start, start + len(part), picture)


def _webp_pictures(data: bytes) -> Iterator[tuple[bool, bytes]]:
    """The data of each picture, and True if they are lossless."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] in (b"VP8 ", b"VP8L"):
            yield data[at : at + 4] == b"VP8L", data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


# -- the ends of arithmetic coders --------------------------------------------------------------


def went_astray(data: bytes, picture: Image.Image) -> str | None:
    """What is wrong with a WebP or AVIF of which the last bytes do not matter; None if they do.

    A changed bit makes its decoder read other symbols from there on, of another length in all: more
    than there is, which libwebp refuses, or less, which no decoder does.

    Args:
        data: the file, of one picture.
        picture: what it was decoded to.
    """
    ends = _avif_ends(data) if data[4:8] == b"ftyp" else _webp_ends(data)
    whole = all(_matters(data, start, end, picture) for start, end in ends)
    return None if whole else "its data go on behind the picture's end"


def _webp_ends(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the data of each picture begin and end."""
    for _, part in _webp_pictures(data):
        start = data.index(part)
        yield start, start + len(part)


def _avif_ends(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the data of all pictures begin and end, if nothing else stands at their end."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + size if size else len(data)
        if data[at + 4 : at + 8] == b"mdat" and _ends_in_tiles(data[at + 8 : end]):
            yield at + 8, end
        at = end if size == 0 or size >= 8 else len(data)


def _ends_in_tiles(part: bytes) -> bool:
    """True for a row of AV1's units, each with its size, of which the last one holds tiles."""
    at = kind = 0
    while at < len(part):
        head, size, shift = part[at], 0, 0
        if head & 0x81 or not head & 2:  # Text or another picture's container, or no size.
            return False
        kind = head >> 3 & 15
        at += 2 if head & 4 else 1
        for byte in part[at : at + 4]:
            size |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        at += size
    return at == len(part) and kind in (4, 6)


def _matters(data: bytes, start: int, end: int, picture: Image.Image) -> bool:
    """True if noise in place of a picture's last bytes changes it, as of a whole picture."""
    # Behind the last symbol some coders write a few zeros.
    last = data[end - 8 : end]
    size = min(len(_NOISES[0]), (end - start) // 2)
    end -= len(last) - len(last.rstrip(b"\0"))
    for noise in _NOISES:
        after = _decoded(data[: end - size] + noise[:size] + data[end:])
        if after is None or after.size != picture.size or after.mode != picture.mode:
            return True
        pairs = zip(after.split(), picture.split(), strict=True)
        if any(ImageChops.difference(*pair).getbbox() for pair in pairs):
            return True
    return False


def _decoded(data: bytes) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP", "AVIF")) as image:
            image.load()
            return image
    except Exception:  # Damaged files make decoders raise almost anything.
        return None


# -- TIFF and BMP -------------------------------------------------------------------------------


class _Strip(NamedTuple):
    """Some lines of a picture in a file."""

    start: int
    end: int
    stride: int
    """Bytes of one line, decoded."""
    lines: int
    bits: int
    """Of a pixel."""


def _strips(image: Any, size: int) -> Iterator[_Strip]:
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        bits = {"1": 1, "L": 8, "P": 8, "RGB": 24, "RGBA": 32}.get(image.mode, 0)
        _, (_, top, _, bottom), offset, args = image.tile[0]
        stride = args[1] if isinstance(args[1], int) and args[1] else image.width * bits // 8
        yield _Strip(
            offset, min(size, offset + stride * (bottom - top)), stride, bottom - top, bits
        )
        return
    if 324 in tags or tags.get(284, 1) != 1:  # tiles and planes: lines do not follow each other
        return
    depth = tags.get(258, (8,))
    bits = sum(depth) if isinstance(depth, tuple) else int(depth)
    bits = 1 if image.mode == "1" else bits
    stride, per = (image.width * bits + 7) // 8, int(tags.get(278, image.height))
    offsets, counts = tags.get(273, ()), tags.get(279, ())
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=False)):
        lines = min(per, image.height - number * per)
        yield _Strip(offset, min(size, offset + count), stride, lines, bits)


def _turns_flat(data: bytes, strips: list[_Strip]) -> str | None:
    """Find a block that begins or ends in the middle of a line, and goes on over several.

    The line above it goes on as a picture there, where the block is black or white. Beside a ground
    of that colour a shape may end so; there it counts at the edge of a sector alone.
    """
    if not strips or strips[0].stride < 8 or strips[0].bits < 8:
        return None
    stride, low, high = strips[0].stride, strips[0].start, strips[-1].end
    if any(a.end != b.start for a, b in pairwise(strips)):
        low, high = strips[0].start, strips[0].end
    reach = max(16, stride // 8)
    for value in (0, 255):
        ground = bytes([value]) * reach
        block = re.compile(re.escape(bytes([value])) + b"{%d,}" % max(2 * stride, _SECTOR))
        for found in block.finditer(data, low, high):
            # Where it begins, the line above is a picture on both sides; and where it ends.
            before, after = found.start() - stride, found.end() + stride
            in_line = (found.start() - low) % stride
            if min(in_line, stride - in_line) > 8 and before - reach >= low:
                here = data[before : before + min(reach, stride - in_line)]
                last = data[found.start() - min(reach, in_line) : found.start()]
                line = data[before - in_line : before - in_line + stride]
                lost = ground not in line or -found.start() % _SECTOR <= _CHANCE
                if lost and min(_away(here, value), _away(last, value)) > _ABRUPT:
                    return "a part of its data are lost: it turns flat within a line"
            in_line = (found.end() - low) % stride
            if min(in_line, stride - in_line) > 8 and after <= high:
                here = data[after - min(reach, in_line) : after]
                next_ones = data[found.end() : found.end() + min(reach, stride - in_line)]
                line = data[after - in_line : after - in_line + stride]
                lost = ground not in line or found.end() % _SECTOR <= _CHANCE
                if lost and min(_away(here, value), _away(next_ones, value)) > _ABRUPT:
                    return "a part of its data are lost: it turns flat within a line"
    return None


def _away(data: bytes, value: int) -> float:
    return sum(abs(each - value) for each in data) / max(1, len(data))


def _of_strip(data: bytes, strip: _Strip, packing: int) -> str | None:
    part = data[strip.start : strip.end]
    if packing in _DEFLATE:
        try:  # libtiff does not look at the checksum
            zlib.decompress(part)
        except zlib.error:
            return "the checksum of a strip is wrong"
    elif packing == _PACKBITS and not _is_packed(part, strip.stride * strip.lines):
        return "a strip is longer or shorter than its lines"
    elif packing == _JPEG and _longest(part) > 128:
        return "a part of its data are zeros"
    return None


def _is_packed(part: bytes, size: int) -> bool:
    """True if runs unpack to so many bytes and use all of their data."""
    at = made = 0
    while at < len(part) and made < size:
        head = part[at]
        if head < 128:
            at, made = at + head + 2, made + head + 1
        elif head > 128:
            at, made = at + 2, made + 257 - head
        else:
            at += 1
    return made == size and len(part) - 2 <= at <= len(part)
