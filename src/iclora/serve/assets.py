"""Pictures that clients sent, each under the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from PIL import Image

from iclora.errors import ImageError
from iclora.files import write_bytes
from iclora.serve.problems import Refused
from iclora.sets.images import picture_size, read_image

__all__ = ["MEDIA_TYPES", "MOST_BYTES", "Assets", "suffix_of", "thumbnail"]

MOST_BYTES = 20 * 10**6
_MOST_PIXELS = 50 * 10**6
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".tif": "image/tiff",
    ".bmp": "image/bmp",
    ".heic": "image/heic",
}
"""What pictures are sent back as, by how they are kept; SVG is a program and not among them."""


class Assets:
    """A folder of pictures that were read once, so that a job can rely on them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: bytes, name: str) -> tuple[str, tuple[int, int], bool]:
        """Keep a picture.

        Args:
            name: what the client calls it, for errors.
        Returns: its hash, its width and height in px, and True if it is new.
        Raises: ImageError for what is no picture; Refused for one that is too large.
        """
        if len(data) > MOST_BYTES:
            raise Refused(
                413, f'"{name[:100]}" has {len(data) / 1e6:.0f} MB', "20 MB are the most."
            )
        shown = f"{name[:100]}" if name.isprintable() else "the picture"
        width, height = picture_size(data, shown)
        if width * height > _MOST_PIXELS:
            raise ImageError(
                f'image "{shown}" is {width}x{height} px; more than 50 megapixels is refused',
                "Scale it down; no base model uses more than a few megapixels.",
            )
        sha256 = hashlib.sha256(data).hexdigest()
        there = self._find(sha256)
        if there is None:
            size = read_image(data, shown).size
            write_bytes(self._folder / f"{sha256}{suffix_of(data)}", data)
            return sha256, size, True
        return sha256, (width, height), False

    def path(self, sha256: str) -> Path:
        """Where a picture lies. Raises: Refused with 404."""
        found = self._find(sha256)
        if found is None:
            raise Refused(
                404, f'there is no picture "{sha256[:80]}"', "Send it first.", setting="given"
            )
        return found

    def _find(self, sha256: str) -> Path | None:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            return None
        ways = (self._folder / f"{sha256}{suffix}" for suffix in MEDIA_TYPES)
        return next((path for path in ways if path.is_file()), None)


def suffix_of(data: bytes) -> str:
    """How a picture that was read is kept, by its first bytes."""
    if data[:2] == b"\xff\xd8":
        return ".jpg"
    if data[:4] == b"RIFF":
        return ".webp"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return ".tif"
    if data[:2] == b"BM":
        return ".bmp"
    if data[4:8] == b"ftyp":
        return ".avif" if data[8:12] in (b"avif", b"avis") else ".heic"
    return ".png"


def thumbnail(picture: Path, to: Path, edge: int = 512) -> None:
    """Write a small WebP of a picture. Raises: StorageError, OSError."""
    import io

    with Image.open(picture, formats=("PNG",)) as image:
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS, reducing_gap=2.0)
        held = io.BytesIO()
        image.convert("RGB").save(held, "WEBP", quality=80, method=2)
    write_bytes(to, held.getvalue())
