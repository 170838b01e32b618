"""Libraries that only some sources need, with a clear word where one is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from iclora.errors import SettingsError

__all__ = ["needed"]


def needed(module: str, package: str, reads: str) -> Any:
    """A module of the extra `collect`.

    Args:
        package: its name for pip.
        reads: what is read with it, such as "videos".
    Raises: SettingsError if it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{reads} are read with {package}, which is not installed ({error})",
            "Install what `collect` reads with: pip install 'iclora[collect]'.",
        ) from error
