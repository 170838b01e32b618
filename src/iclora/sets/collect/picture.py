"""A picture that was found: where it lies, where it came from, how it looks."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iclora.errors import ImageError
from iclora.files import digest
from iclora.sets.images import picture_size, read_image
from iclora.sets.kinds import decoders
from iclora.sets.layout import Size

__all__ = ["Found", "Look", "Origin", "Picture", "glance", "glimpse", "look_at"]

_GREY = 32
"""Side of the grey picture whose waves are hashed, px."""
_WAVES = 8
_TONES = 8
"""Side of the colour picture that is kept of every picture, px."""
_SEEN = 64
"""Side to which a picture is scaled down before it is looked at, px."""


@dataclass(frozen=True)
class Origin:
    """Where a picture came from, so that it can be found again."""

    file: str
    """The source as it was named, with the path inside a folder or archive behind it."""
    at: dict[str, Any] = field(default_factory=dict)
    """Its place in that file: {"time": 12.48} in s, {"page": 3}, {"row": 7, "column": "image"}."""
    box: tuple[int, int, int, int] | None = None
    """Left, top, width and height of what was taken, px; None for the whole picture."""

    @property
    def name(self) -> str:
        """In messages: film.mp4, time 12.48."""
        return ", ".join([self.file, *(f"{key} {value}" for key, value in self.at.items())])

    def to_json(self) -> dict[str, Any]:
        own: dict[str, Any] = {"file": self.file, **self.at}
        return own if self.box is None else {**own, "box": list(self.box)}


@dataclass(frozen=True)
class Look:
    """What a picture looks like, in a few bytes."""

    size: Size
    """Upright, px."""
    hash: int
    """64 bits: which of the slowest waves of its brightness are above their median. Scaling and
    compressing a picture turns few of them."""
    tones: NDArray[np.uint8]
    """The picture at 8 x 8 px, RGB."""

    def to_json(self) -> dict[str, Any]:
        return {"size": self.size, "hash": f"{self.hash:016x}", "tones": self.tones.tolist()}

    @staticmethod
    def from_json(told: dict[str, Any]) -> Look:
        width, height = told["size"]
        return Look((width, height), int(told["hash"], 16), np.array(told["tones"], dtype=np.uint8))


@dataclass(frozen=True)
class Picture:
    """A picture of a source, unread."""

    origin: Origin
    read: Callable[[], bytes] = field(repr=False, compare=False)
    """Its file's bytes. Raises: IcloraError."""
    words: str = ""
    """What the source says of it."""

    def open(self) -> Image.Image:
        """The picture, upright and opaque sRGB. Raises: IcloraError for a damaged one."""
        return read_image(self.read(), self.origin.name)


@dataclass(frozen=True)
class Found:
    """A set that was found, unread."""

    pictures: tuple[Picture, ...]
    """One a panel, or one in which all panels are joined."""
    scene: str
    """What it was cut from: sets of one scene show the same things, so they are trained on or held
    out together."""
    way: str
    """How it was put together, for people: "by name", "shots of one scene"."""
    caption: str = ""
    """A joint caption that came along."""
    composite: bool = False
    """True if its one picture holds all panels."""

    @property
    def key(self) -> str:
        """Tells it from every other set."""
        return digest(*(picture.origin.name for picture in self.pictures))[:16]


def look_at(picture: Picture) -> Look:
    """See what a picture looks like, decoded no larger than that takes.

    Raises: IcloraError if it cannot be read at all; damage may show only when it is opened.
    """
    data, name = picture.read(), picture.origin.name
    size = picture_size(data, name)
    try:
        with Image.open(io.BytesIO(data), formats=decoders(data[:64])) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip them.
                return glance(read_image(data, name))
            turned = image.getexif().get(0x0112, 1) > 4
            # A JPEG is decoded at the smallest size that still has enough.
            image.draft("RGB", (4 * _SEEN, 4 * _SEEN))
            small = ImageOps.exif_transpose(image)
            seen = glance(_opaque(small))
    except ImageError:
        raise
    except Exception as error:
        # Damaged files make Pillow raise almost anything.
        raise ImageError(
            f'image "{name}" is damaged or cut short ({error})', "Copy or export it again."
        ) from error
    return Look(size[::-1] if turned else size, seen.hash, seen.tones)


def _opaque(image: Image.Image) -> Image.Image:
    image.thumbnail((4 * _SEEN, 4 * _SEEN), Image.Resampling.BOX)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def glimpse(image: Image.Image) -> Look:
    """The look of a large RGB picture, as `look_at` has it of its file without loss."""
    seen = glance(_opaque(image.copy()))
    return Look(image.size, seen.hash, seen.tones)


def glance(image: Image.Image) -> Look:
    """The look of an RGB picture."""
    small = image.resize((_SEEN, _SEEN), Image.Resampling.BOX)
    grey = small.convert("L").resize((_GREY, _GREY), Image.Resampling.BOX)
    waves = _COSINES @ np.asarray(grey, dtype=np.float64) @ _COSINES.T
    slow = waves.ravel()[1:]  # without the mean brightness
    bits = np.append(slow > np.median(slow), waves[0, 0] > 128 * _GREY)
    tones = np.asarray(small.resize((_TONES, _TONES), Image.Resampling.BOX), dtype=np.uint8)
    return Look(image.size, int.from_bytes(np.packbits(bits).tobytes()), tones)


_COSINES = np.cos(np.pi / _GREY * (np.arange(_GREY) + 0.5) * np.arange(_WAVES)[:, None]) * np.sqrt(
    2 / _GREY
)
_COSINES[0] /= np.sqrt(2)
