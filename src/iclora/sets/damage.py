"""Damage that decoders pass over: pictures that end too early, too late, or in blocks of zeros.

libjpeg and libwebp paint something over what is missing and say nothing. What they read shows it:
the last line of a JPEG needs the last bytes of its scan, and no sooner ones.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

__all__ = ["Feed", "lean_png", "zeros_in"]

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
        self._zeros = b"\0" * max(64, (end - start) // 100) in data[start:end]

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
        # What is missing becomes grey; a border may be as grey, but does not come of zeros.
        grey = all(set(p) == {128} for p in last_now)
        if grey and last != last_now and self._zeros:
            return "a part of its data are zeros"
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


def zeros_in(data: bytes, form: str | None) -> bool:
    """True if a good part of a compressed picture's data are zeros in a row."""
    parts: Iterator[bytes] | list[bytes] = []
    if form == "WEBP":
        parts = _webp_pictures(data)
    elif form in ("JPEG", "MPO"):
        found = re.search(rb"\xff\xda", data)
        parts = [data[found.end() :]] if found and _scan(data) is None else []
    return any(b"\0" * max(128, len(part) // 20) in part for part in parts)


def _webp_pictures(data: bytes) -> Iterator[bytes]:
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] in (b"VP8 ", b"VP8L"):
            yield data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def lean_png(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without long texts and without a compressed colour profile, and that profile.

    Programs write megabytes of both into pictures, and Pillow takes these for damage.
    """
    kept, at, profile, cut = [data[:8]], 8, None, False
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        whole = data[at : at + 12 + size]
        at += 12 + size
        if kind in (b"tEXt", b"zTXt", b"iTXt") and (size > _LONG_TEXT or kind == b"zTXt"):
            cut = True
            continue
        if kind == b"iTXt" and b"\0\x01\0" in body[:82]:  # compressed
            cut = True
            continue
        if kind == b"iCCP" and size > _LONG_TEXT // 16:
            packed = body[body.find(b"\0") + 2 :]
            try:
                profile = zlib.decompressobj().decompress(packed, _LARGEST_PROFILE)
                cut = True
                continue
            except zlib.error:
                pass
        kept.append(whole)
    return (b"".join([*kept, data[at:]]) if cut else data), profile
