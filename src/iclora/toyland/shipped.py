"""What ships with iclora: two small bases and the captioner, registered by entry points.

Nothing heavy is loaded before they are asked for.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iclora.vlm import VisionModel

__all__ = ["base_folder", "captioner_folder", "klein_folder", "open_captioner"]


def base_folder() -> Path:
    """The base's folder, in diffusers' layout; see docs/toyland.md."""
    return _weights("toyland-base")


def klein_folder() -> Path:
    """The folder of a base in the layout of FLUX.2-klein-base-4B, of the same world."""
    return _weights("toyland-klein-base")


def captioner_folder() -> Path:
    """The captioner's folder, in transformers' layout."""
    return _weights("toyland-captioner")


def open_captioner(
    model: str, *, url: str | None, together: int | None, device: str, schema: bool
) -> VisionModel:
    """For `iclora.vlm.registry.CAPTIONERS`: it has one model, and asks no server."""
    del model, url, schema
    from iclora.vlm.local import LocalModel

    folder = str(captioner_folder())
    return LocalModel(folder, name="toyland", device=device, together=together or 4)


def _weights(name: str) -> Path:
    return Path(str(files("iclora") / "toyland" / "weights" / name))
