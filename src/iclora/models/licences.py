"""Licences of bases that are known by their id on the hub.

A model card names the licence of the base its adapter is for. Bases that are not listed have one
too; iclora does not know it and says nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LICENCES", "Licence", "hub_id"]


@dataclass(frozen=True)
class Licence:
    """A licence as model cards of the hub name it."""

    id: str
    """The hub's own name for it, or "other"."""
    name: str | None = None
    """Its name, if the hub has none for it."""
    link: str | None = None
    """The address of its text, if the hub has none for it."""


def _of_dev(base: str) -> Licence:
    text = f"https://huggingface.co/{base}/blob/main/LICENSE.md"
    return Licence("other", "flux-1-dev-non-commercial-license", text)


LICENCES: dict[str, Licence] = {
    "black-forest-labs/FLUX.1-schnell": Licence("apache-2.0"),
    "black-forest-labs/FLUX.2-klein-base-4B": Licence("apache-2.0"),
    "black-forest-labs/FLUX.2-klein-4B": Licence("apache-2.0"),
    "Tongyi-MAI/Z-Image": Licence("apache-2.0"),
    "Tongyi-MAI/Z-Image-Turbo": Licence("apache-2.0"),
    "Qwen/Qwen-Image": Licence("apache-2.0"),
    "Qwen/Qwen-Image-2512": Licence("apache-2.0"),
    **{
        base: Licence(
            "other",
            "krea-2-community-license",
            f"https://huggingface.co/{base}/blob/main/LICENSE.pdf",
        )
        for base in ("krea/Krea-2-Raw", "krea/Krea-2-Turbo")
    },
    **{
        base: Licence(
            "other",
            "flux-non-commercial-license",
            f"https://huggingface.co/{base}/blob/main/LICENSE.md",
        )
        for base in ("black-forest-labs/FLUX.2-klein-base-9B", "black-forest-labs/FLUX.2-klein-9B")
    },
    **{
        base: _of_dev(base)
        for base in ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-Krea-dev")
    },
}
"""By the base's id on the hub."""


def hub_id(base: str) -> str | None:
    """The base's id on the hub; None for a folder, and for a base that ships with iclora."""
    return base if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", base, re.ASCII) else None
