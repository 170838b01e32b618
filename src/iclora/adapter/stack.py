"""Several adapters at once: their updates are added, each with a strength of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from iclora.adapter.file import Adapter
from iclora.errors import AdapterError
from iclora.settings import split_strength

__all__ = ["Load", "load_stack", "stack"]

Load = Callable[[str], Adapter]
"""Reads one adapter: `Adapter.load`, or a keeper of those that were read."""


def load_stack(sources: Sequence[str], load: Load = Adapter.load) -> Adapter | None:
    """Read adapters that are added up; None if there are none.

    Args:
        sources: each as `Adapter.load` takes it, with =STRENGTH behind it where that is not 1.
    Raises: AdapterError.
    """
    found = []
    for source in sources:
        try:
            path, strength = split_strength(source)
        except ValueError as error:
            raise AdapterError(f"adapter {source}: {error}", "Write FILE=0.7.") from error
        adapter = load(path)
        found.append(adapter if strength is None else replace(adapter, strength=strength))
    return stack(found) if found else None


def stack(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that stands for several.

    Recipe, layout, base and what panels read are those of the first that says; it notes which
    others say otherwise.

    Args:
        adapters: at least one; with their own `strength`.
    """
    first, *others = adapters
    if not others:
        return first
    notes = [f"{_called(each)}: {note}" for each in adapters for note in each.notes]
    deciding = next((each for each in adapters if each.info), first)
    about = deciding.info
    for each in adapters:
        own = each.info
        if each is deciding or own is None or about is None:
            continue
        if not own.recipe.same_task(about.recipe) or own.layout != about.layout:
            notes.append(
                f"{_called(each)} was trained for {own.recipe.name} on "
                f"{own.layout.width}x{own.layout.height} px; recipe and layout are those of "
                f"{_called(deciding)}"
            )
        if own.text != about.text:
            notes.append(
                f"{_called(each)} was trained with `text` {own.text}; what panels read is "
                f"{about.text}, as for {_called(deciding)}, unless `text` says otherwise"
            )
        if own.base != about.base:
            notes.append(
                f"{_called(each)} was trained on {Path(own.base).name}, "
                f"{_called(deciding)} on {Path(about.base).name}"
            )
    return replace(first, info=about, notes=tuple(notes), beside=tuple(others))


def _called(adapter: Adapter) -> str:
    """Its file's name, or its folder's if the file is called adapter."""
    path = adapter.path
    if path is None:
        return "an adapter"
    return path.parent.name if path.stem == "adapter" else path.name
