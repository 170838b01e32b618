"""Sections of RESULTS.md that scripts write."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["put"]

_RESULTS = Path(__file__).with_name("RESULTS.md")
_NEXT = "## Texts of their own"


def put(heading: str, text: str) -> None:
    """Put a section into RESULTS.md, in the place of the one before.

    Args:
        heading: its first line, with its signs; sections inside of it are not its own.
        text: what is below, without an empty line around it.
    """
    whole, section = _RESULTS.read_text(), f"{heading}\n\n{text}\n"
    old = re.search(rf"{re.escape(heading)}\n.*?\n(?=\n##|\Z)", whole, re.S)
    at = whole.index(_NEXT)
    whole = whole.replace(old[0], section) if old else f"{whole[:at]}{section}\n{whole[at:]}"
    _RESULTS.write_text(whole)
