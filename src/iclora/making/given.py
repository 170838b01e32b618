"""Given panels as a request names them, by the hash of their pixels and of their latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import BaseModel, ConfigDict

from iclora.files import digest
from iclora.sets.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GivenPanel", "describe_given", "fitting_latents", "hash_latents"]


class GivenPanel(BaseModel):
    """A given panel: its file beside the request, and the hash of its pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str
    latents: str = ""
    """Hash of its latents, if they come from a set that was made; else it is encoded."""


def describe_given(
    given: Mapping[int, Image.Image], latents: Mapping[int, Tensor]
) -> dict[int, GivenPanel]:
    """Given panels as a request names them."""
    return {
        n: GivenPanel(
            file=f"panel-{n}.png",
            sha256=digest(image.tobytes()),
            latents=hash_latents(latents[n]) if n in latents else "",
        )
        for n, image in sorted(given.items())
    }


def hash_latents(latents: Tensor) -> str:
    """What stands for a panel's latents in a request."""
    return digest(latents.contiguous().numpy().tobytes())


def fitting_latents(
    layout: Layout, latents: Mapping[int, Tensor], given: Mapping[int, Image.Image], grid: int
) -> dict[int, Tensor]:
    """Those latents that belong to a given panel and are as large as its box."""
    found = {}
    for number in sorted(set(latents) & set(given)):
        box = layout.boxes[number - 1]
        if latents[number].shape[:2] == (box.height // grid, box.width // grid):
            found[number] = latents[number]
    return found
