"""Weights that were loaded: all of them, none left over, and weights at all.

Libraries fill in at random what a file lacks, leave out what they do not know, and take whole
numbers for weights; then a base paints something else without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from iclora.errors import ModelError

__all__ = ["check_loaded", "check_numbers"]

_WHOLE = ("I", "U", "BOOL")
"""Beginnings of the kinds of numbers that are no weights: I8, U8, BOOL."""


def check_loaded(said: Mapping[str, Any], what: str, *, alone: bool) -> None:
    """Refuse a part of which weights are missing or left over.

    Args:
        said: what the library tells of its loading.
        what: the part, for errors.
        alone: True if its files hold this part and nothing else.
    Raises: ModelError.
    """
    if lost := sorted(map(str, said.get("missing_keys") or ())):
        raise ModelError(f"{what} lacks weights: {_some(lost)}", "Download it again, whole.")
    over = sorted(map(str, said.get("unexpected_keys") or ())) if alone else []
    if over:
        raise ModelError(
            f"{what} has weights that nothing reads: {_some(over)}",
            "It is of another kind of model, or quantised by another tool; use the base as its "
            "makers publish it.",
        )


def check_numbers(files: Iterable[Path], what: str) -> None:
    """Refuse safetensors files of whole numbers. Raises: ModelError; OSError, SafetensorError."""
    for path in files:
        with safe_open(path, "pt") as file:
            kinds = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        found = sorted(name for name, kind in kinds.items() if kind.startswith(_WHOLE))
        if found:
            raise ModelError(
                f"{what} has whole numbers for weights: {_some(found)}",
                "It is quantised by another tool; use the base as its makers publish it, and "
                "`precision` to make it smaller here.",
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
