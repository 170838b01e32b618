"""The file itself: read with bounds, and every field looked up in the tables of `fields`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclora.errors import SettingsError
from iclora.files.documents import parse_json, parse_yaml, read_bytes
from iclora.settings import nearest
from iclora.train.aitoolkit.fields import FIELDS, Becomes, Inside, Needless, Only

__all__ = ["WHAT", "Reading", "Row", "read_document", "shortened"]

WHAT = "ai-toolkit configuration"


@dataclass(frozen=True)
class Row:
    """What became of one field."""

    field: str
    """Such as "train.lr"; empty for a default of ai-toolkit."""
    value: Any
    setting: str | None = None
    """The setting that it decides."""
    note: str = ""
    """Why it is not needed, or what is not quite the same."""
    result: Any = None
    """The setting's value."""
    near: bool = False
    """True if no setting is decided, and the run is not quite the same."""


def read_document(path: Path) -> dict[str, Any]:
    if path.suffix.lower() == ".toml":
        raise SettingsError(
            f"{path} is TOML, and ai-toolkit's configurations are YAML or JSON",
            "A run file needs no import: `iclora train` reads it.",
        )
    data, source = read_bytes(path, SettingsError, WHAT), f"{WHAT} {path}"
    is_json = path.suffix.lower() in (".json", ".jsonc")
    found = (parse_json if is_json else parse_yaml)(data, source, SettingsError)
    config = found.get("config") if isinstance(found, dict) else None
    config = config if isinstance(config, dict) else {}
    process = config.get("process")
    if not isinstance(process, list) or not all(isinstance(each, dict) for each in process):
        raise SettingsError(
            f"{path} is no configuration of ai-toolkit: it has no list config.process",
            "Of other trainers write a run file: docs/training.md tells how.",
        )
    if len(process) != 1:
        raise SettingsError(
            f"{source} has {len(process)} processes", "Keep one in config.process for each run."
        )
    name = str(config.get("name") or "")
    return dict(_replaced(found, source, name))


def _replaced(value: Any, source: str, name: str) -> Any:
    """[name] filled in, as ai-toolkit does. Raises: SettingsError for ${VARIABLE}."""
    if isinstance(value, dict):
        return {key: _replaced(each, source, name) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, source, name) for each in value]
    if isinstance(value, str):
        if variable := re.search(r"\$\{[^}]+\}", value):
            raise SettingsError(
                f"{source} has {variable[0]}, which stands for a variable of the environment",
                "Write its value in its place, or remove the line if it is a key.",
            )
        return value.replace("[name]", name)
    return value


class Reading:
    """A walk through all fields of the file: what becomes of each, and what cannot be."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self.other_kind: list[str] = []
        """Fields by which it is the configuration of no training."""

    def table(self, values: Any, name: str, place: str) -> None:
        if values is None:
            return
        if not isinstance(values, dict):
            self.problems.append(f"{place}: it is no table")
            return
        for key, value in values.items():
            self.field(name, key, f"{place}.{key}".lstrip("."), value)

    def field(self, table: str, key: str, place: str, value: Any) -> None:
        # As short as people know them: train.lr, not config.process[0].train.lr.
        place = place.removeprefix("config.process[0].")
        fate = FIELDS[table].get(key)
        if isinstance(fate, Inside) and fate.many:
            self._list(value, fate.table, place)
        elif isinstance(fate, Inside):
            self.table(value, fate.table, place)
        elif isinstance(fate, Becomes):
            self.rows.append(Row(place, value, fate.setting, fate.note))
        elif isinstance(fate, Needless):
            self.rows.append(Row(place, value, None, fate.why))
        elif isinstance(fate, Only) and isinstance(value, str) and value in fate.near:
            self.rows.append(Row(place, value, None, fate.near[value], near=True))
        elif isinstance(fate, Only) and fate.allows(_without_tag(key, value)):
            self.rows.append(Row(place, value, None, fate.note))
        elif isinstance(fate, Only):
            self.problems.append(f"{place} = {shortened(value)}: {fate.instead}")
            if place in ("job", "type"):
                self.other_kind.append(self.problems[-1])
        else:
            near = nearest(key, FIELDS[table]) or next(
                (f"{other}.{key}" for other, fields in FIELDS.items() if key in fields), None
            )
            meant = f"; did you mean {near}?" if near else ""
            self.problems.append(f"{place}: ai-toolkit has no such field{meant}")

    def _list(self, values: Any, table: str, place: str) -> None:
        if values is not None and not isinstance(values, list):
            self.problems.append(f"{place}: it is no list")
        for number, each in enumerate(values if isinstance(values, list) else ()):
            self.table(each, table, f"{place}[{number}]")


def _without_tag(key: str, value: Any) -> Any:
    """An architecture without the tag that ai-toolkit's pages put behind it: flux:dev."""
    return value.partition(":")[0] if key == "arch" and isinstance(value, str) else value


def shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
