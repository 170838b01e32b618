"""Adapters beside the first one, as a request holds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iclora.settings import FilePath, Settings, Strength

if TYPE_CHECKING:
    from iclora.adapter import Adapter

__all__ = ["Beside", "describe_beside"]


class Beside(Settings):
    """An adapter whose update is added."""

    file: FilePath | None = None
    """Where it lay; the hash decides."""
    sha256: str
    strength: Strength = 1.0

    def shared(self) -> Beside:
        """The same without the folders of this machine."""
        return self.model_copy(update={"file": self.file and Path(self.file).name})


def describe_beside(adapter: Adapter | None, strength: float) -> list[dict[str, object]]:
    """What a request says of the adapters beside the first.

    Args:
        strength: a further factor on all of them.
    """
    return [
        {
            "file": str(each.path) if each.path else None,
            "sha256": each.sha256,
            "strength": each.strength * strength,
        }
        for each in (adapter.beside if adapter else ())
    ]
