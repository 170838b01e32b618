"""From plain values or a run file to settings; from a settings model to a verb."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from pydantic import BaseModel, ValidationError

from iclora.errors import SettingsError
from iclora.files import place
from iclora.files.documents import read_toml
from iclora.progress import Console
from iclora.settings.fields import M, about
from iclora.settings.findings import by_setting

__all__ = ["Verb", "read_settings", "settings_of", "verb"]


@dataclass(frozen=True)
class Verb(Generic[M]):
    """A verb of the command line; an entry point of the group "iclora.verbs" adds one."""

    settings: type[M]
    """What it is told; its options are made from this."""
    run: Callable[[M, Console], int | None]
    """What it does. Returns the exit status if that is not 0."""
    read: Callable[[dict[str, Any], Console], M] | None = None
    """Makes the settings of the values that were given; by default `settings_of` does."""

    @property
    def summary(self) -> str:
        """The first line of its function's docstring: its help."""
        return (self.run.__doc__ or "").strip().split("\n", 1)[0]


def verb(
    settings: type[M], read: Callable[[dict[str, Any], Console], M] | None = None
) -> Callable[[Callable[[M, Console], int | None]], Verb[M]]:
    """Make a verb of a function; its name is the one it is registered by.

    @verb(CheckSettings)
    def check(settings, console):
        "Read every image and caption of a dataset and say what is wrong."
    """
    return lambda run: Verb(settings, run, read)


def settings_of(
    model: type[M], values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> M:
    """Settings from plain values, such as a command line's or a JSON body's.

    Args:
        values: by the fields' names, as numbers or strings.
        defaults: for settings that `values` leaves out; they count as set.
    Raises: SettingsError naming every setting that is wrong.
    """
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return model.model_validate({**(defaults or {}), **given})
    except ValidationError as error:
        missing = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing"]
        if len(missing) == len(error.errors()):
            named = [f"`{name}`" for name in missing]
            raise SettingsError(
                f"{' and '.join(named)} must be given",
                f"{_example(model, missing)} and run it again.",
                setting=missing[0],
            ) from error
        found = by_setting(error, model)
        concerned = re.match(r"`(\w+)`", found[0])
        raise SettingsError(
            f"invalid setting{'s' if len(found) > 1 else ''}: {'; '.join(found)}",
            "Fix this and run it again; the verb's help tells what a setting may be.",
            setting=concerned[1] if concerned else None,
        ) from error


def read_settings(
    model: type[M],
    path: str | Path | None,
    overrides: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    table: str = "train",
) -> M:
    """Settings from one table of a TOML file and overrides, which win.

    Args:
        path: a run file, or None. Relative paths in it are relative to where the program runs.
        overrides: settings by name, as numbers or strings.
        defaults: for settings that neither has.
    Raises: SettingsError naming every setting that is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            found = read_toml(place(str(path)), SettingsError, "run file")
        except ValueError as error:
            raise SettingsError(f"run file {path}: {error}", "Check the path.") from error
        unknown = sorted(set(found) - {table})
        if unknown or not isinstance(found.get(table), dict):
            raise SettingsError(
                f"run file {path} needs its settings in one table [{table}]"
                + (f", but has {', '.join(unknown)} outside of it" if unknown else ""),
                f"Leave the rest out: it has [{table}]."
                if isinstance(found.get(table), dict)
                else f"Write [{table}] on the first line.",
            )
        values = found[table]
    return settings_of(model, {**values, **overrides}, defaults)


def _example(model: type[BaseModel], missing: list[str]) -> str:
    """How to set what is missing, by example."""
    known = {name: about(model, name).get("example") for name in missing}
    ways = [f"`{name}`" + (f", for instance to {e}," if e else "") for name, e in known.items()]
    return f"Set {' and '.join(ways)}"
