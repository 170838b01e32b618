"""Kinds of pictures: which are read, by their endings and decoders, and what others are called."""

from __future__ import annotations

from importlib.util import find_spec

from PIL import features

__all__ = ["HEIC_ADVICE", "IMAGE_SUFFIXES", "decoders", "kind_of"]

_HEIC = find_spec("pillow_heif") is not None
"""True if the extra is installed that reads what phones write."""
# Some distributions build Pillow without it.
_AVIF: bool = features.check("avif") is True
HEIC_ADVICE = (
    "Install what reads it (pip install pillow-heif, the extra iclora[heic]), or export as PNG or "
    "JPEG, or remove."
)
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".jfif", ".jpe", ".dib"),
    *((".avif",) if _AVIF else ()),
    *((".heic", ".heif", ".hif") if _HEIC else ()),
)
_DECODERS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", *(("AVIF",) if _AVIF else ()))
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"GIF8", "GIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
)


def kind_of(head: bytes) -> str | None:
    """The kind of a picture by its first 16 bytes or more; None if they are of no picture."""
    found = next((kind for at, sign, kind in _MAGIC if head[at : at + len(sign)] == sign), None)
    # An AVIF may begin as any picture of its container does, and names itself behind.
    return "AVIF" if found == "HEIC" and b"avif" in head[8:64] else found


def decoders(head: bytes) -> tuple[str, ...]:
    """Pillow's decoders that may run on a file that begins so.

    Only these: a dataset is other people's files, and Pillow has some 40 more. (JPEG covers MPO,
    the two-picture JPEG of many phones.)
    """
    if _HEIC and kind_of(head) == "HEIC":
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
        return (*_DECODERS, "HEIF")
    return _DECODERS
