"""Damage that decoders pass over: pictures that end too early, too late, or in blocks of zeros.

libjpeg and libwebp paint something over what is missing and say nothing. What they read shows it:
the last line of a JPEG needs the last bytes of its scan, and no sooner ones.
"""

from __future__ import annotations

import io
import random
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageChops

__all__ = ["Feed", "damage_in_scans", "lean_png"]

_LONG_TEXT = 2**16
"""Bytes of a PNG's text beyond which it is left out before decoding; Pillow refuses 1 MiB."""
_LARGEST_PROFILE = 2**24


class Feed(io.BytesIO):
    """A JPEG's bytes that watch how far the picture has come just before their end.

    Only a picture of one scan, which is decoded from the top down, can be watched.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._image: Image.Image | None = None
        start, end = _scan(data) or (0, 0)
        # Beyond the data of the last line there may be a few bytes to fill a word.
        self._hold = end - max(16, (end - start) // 200) if end - start > 400 else 0
        self._seen: list[list[tuple[int, ...]]] = []

    def watch(self, image: Image.Image) -> None:
        """Look at this picture when its last bytes are asked for."""
        self._image = image if self._hold else None

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        if self._image is not None and at < self._hold:
            size = self._hold - at if size is None or size < 0 else min(size, self._hold - at)
        elif self._image is not None and at == self._hold and not self._seen:
            self._seen = self._look()
        return super().read(size)

    def _look(self) -> list[list[tuple[int, ...]]]:
        """Some pixels of the last line, and of one far enough above it to be there already."""
        assert self._image is not None
        width, height = self._image.size
        core: Any = self._image.im
        far = max(0, height - 1 - 64 - height // 20)
        found: list[list[tuple[int, ...]]] = []
        for y in (height - 1, far):
            line = [core.getpixel((width * k // 9, y)) for k in range(9)]
            found.append([p if isinstance(p, tuple) else (p,) for p in line])
        return found if far else [found[0], []]

    def damage(self) -> str | None:
        """What is wrong with the picture, once it is decoded; None if nothing is."""
        if self._image is None:
            return None
        if not self._seen:
            return "its data go on behind the picture's end"
        (last, far), (last_now, far_now) = self._seen, self._look()
        if far != far_now:
            return "its data end before the picture does"
        if last == last_now and any(max(p) for p in last_now):
            return "its data go on behind the picture's end"
        return None


def _scan(data: bytes) -> tuple[int, int] | None:
    """Where the one scan of a baseline JPEG begins and ends; None for other files."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:
            at += 1
            continue
        if kind in (0xC2, 0xC6, 0xC9, 0xCA, 0xCE):  # progressive, or arithmetic
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == 0xDA:
            found = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]").search(data, at)
            if found is None or data[found.end() - 1] != 0xD9:
                return None
            return at, found.start()
    return None


# -- JPEGs of several scans, or with zeros ------------------------------------------------------


class _Scan(NamedTuple):
    """One pass over a JPEG's picture: some of its coefficients, to some of their bits."""

    start: int
    """Of its data in the file."""
    end: int
    components: tuple[int, ...]
    coefficients: range
    bit: int
    """The lowest that it brings."""
    bit_only: bool
    """True if it brings no more than one further bit of each block's colour."""


# No 0xff, which would begin a marker. One may happen to say what stands there already.
_NOISES = [random.Random(k).randbytes(4096).replace(b"\xff", b"\x5a") for k in range(4)]


def damage_in_scans(data: bytes, picture: Image.Image) -> str | None:
    """What is wrong with a JPEG of several scans, or with zeros in it; None if nothing is.

    A scan that is whole uses all of its data and no more. So noise behind its end changes nothing,
    and noise in place of its last bytes something.

    Args:
        data: the file.
        picture: what it was decoded to.
    """
    parts, wanted = _scans(data)
    if not parts:
        return None
    short = "its data end before the picture does"
    several = len(parts) > 1 or not _is_complete(parts, wanted)
    if several and not _is_complete(parts, wanted):
        return short
    ends = [(scan.end, scan.end) for scan in parts]
    if (several or _ends_flat(picture)) and _differs(data, ends, picture, _NOISES[:1]):
        return short
    zeros = [scan for scan in parts if _has_zeros(data, scan)]
    if any(scan.coefficients[0] for scan in zeros):
        return "a part of its data are zeros"
    for scan in zeros:
        # Of a picture of one colour they are right, and noise does not matter anywhere.
        if not _differs(data, [(scan.start, scan.start)], picture):
            continue
        after, instead = (scan.end, scan.end), (scan.end - 16, scan.end)
        if _differs(data, [after], picture) or not _differs(data, [instead], picture):
            return "a part of its data are zeros"
    return None


def _ends_flat(picture: Image.Image) -> bool:
    """True if some pixels of the last line are of one colour, as where data are missing."""
    line = [picture.getpixel((picture.width * k // 9, picture.height - 1)) for k in range(9)]
    return len(set(line)) == 1


def _has_zeros(data: bytes, scan: _Scan) -> bool:
    """True if a scan has more zeros in a row than it should, or than can be told without a try."""
    size = scan.end - scan.start
    # No coder writes many into details; corrections alone fill up to 117 bytes.
    least = 160 if scan.coefficients[0] else 48
    return not scan.bit_only and b"\0" * max(least, size // 100) in data[scan.start : scan.end]


def _differs(
    data: bytes,
    places: Sequence[tuple[int, int]],
    picture: Image.Image,
    noises: Sequence[bytes] = _NOISES,
) -> bool:
    """True if noise in place of these bytes changes the picture."""
    for noise in noises:
        kept, at = [], 0
        for start, end in places:
            kept += [data[at:start], noise]
            at = end
        file = io.BytesIO(b"".join([*kept, data[at:]]))
        try:
            with Image.open(file, formats=("JPEG",)) as other:
                same = other.convert(picture.mode)
                if ImageChops.difference(same, picture).getbbox() is not None:
                    return True
        except OSError:  # A decoder may also give up.
            return True
    return False


def _scans(data: bytes) -> tuple[list[_Scan], tuple[int, ...]]:
    """The scans of a JPEG coded by Huffman, up to its end mark, and all components they serve.

    Returns: nothing for a JPEG that is coded in another way.
    """
    found: list[_Scan] = []
    components: tuple[int, ...] = ()
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:
            at += 1
            continue
        if kind == 0xD9:
            break
        body = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        at += 4 + len(body)
        if kind in (0xC0, 0xC1, 0xC2) and len(body) > 5:
            components = tuple(body[6 + 3 * k] for k in range(body[5]) if 6 + 3 * k < len(body))
        elif kind == 0xDA:
            end = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]").search(data, at)
            stop = end.start() if end else len(data)
            count = body[0] if body else 0
            if len(body) < 2 * count + 4:
                return [], ()
            first, last, bits = body[2 * count + 1 : 2 * count + 4]
            own = tuple(body[1 + 2 * k] for k in range(count))
            found.append(
                _Scan(at, stop, own, range(first, last + 1), bits & 15, first == 0 and bits > 15)
            )
            at = stop
    return (found, components) if components else ([], ())


def _is_complete(scans: Sequence[_Scan], components: Sequence[int]) -> bool:
    """True if scans bring every coefficient of every component to its last bit."""
    last = {
        (component, coefficient)
        for scan in scans
        if scan.bit == 0
        for component in scan.components
        for coefficient in scan.coefficients
    }
    return all((c, k) in last for c in components for k in range(64))


def lean_png(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without long texts and without a compressed colour profile, and that profile.

    Programs write megabytes of both into pictures, and Pillow takes these for damage.
    """
    kept, at, profile, cut = [data[:8]], 8, None, False
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        whole = data[at : at + 12 + size]
        if kind == b"IEND" or not kind.isalpha():
            break  # Millions of bytes that are no chunks may lie here.
        at += 12 + size
        if kind in (b"tEXt", b"zTXt", b"iTXt") and (size > _LONG_TEXT or kind == b"zTXt"):
            cut = True
            continue
        if kind == b"iTXt" and b"\0\x01\0" in body[:82]:  # compressed
            cut = True
            continue
        if kind == b"iCCP":  # However small it is, zeros behind a profile unpack to megabytes.
            packed = body[body.find(b"\0") + 2 :]
            try:
                profile = zlib.decompressobj().decompress(packed, _LARGEST_PROFILE)
                cut = True
                continue
            except zlib.error:
                pass
        kept.append(whole)
    return (b"".join([*kept, data[at:]]) if cut else data), profile
