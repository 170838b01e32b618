"""ai-toolkit's configuration read as a training run.

In-Context LoRA was published as such a file. What ai-toolkit's own defaults decide, where the file
is silent, is written out too, for iclora's are the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from iclora.errors import SettingsError
from iclora.settings import TrainSettings, settings_of
from iclora.train.aitoolkit.config import Config
from iclora.train.aitoolkit.reading import WHAT, Reading, Row, read_document, shortened
from iclora.train.aitoolkit.sets import Sets

__all__ = ["Imported", "Row", "import_run"]


@dataclass(frozen=True)
class Imported:
    """A run as ai-toolkit's configuration describes it."""

    settings: TrainSettings
    rows: tuple[Row, ...]
    """One for every field of the file, in its order, then one for every default."""
    notes: tuple[str, ...]
    """What was found out or guessed, and what is still to be done."""

    def __str__(self) -> str:
        """What became of every field, a line each."""
        taken = [
            f"  {row.field} = {shortened(row.value)}  ->  {row.setting} = {shortened(row.result)}"
            + (f"  ({row.note})" if row.note else "")
            for row in self.rows
            if row.field and row.setting
        ]
        others = {
            near: [
                f"  {row.field} = {shortened(row.value)}: {row.note}"
                for row in self.rows
                if not row.setting and row.near == near
            ]
            for near in (True, False)
        }
        defaults = [
            f"  {row.setting} = {shortened(row.result)}" for row in self.rows if not row.field
        ]
        parts = {
            "taken over": taken,
            "not quite the same": others[True],
            "nothing to set": others[False],
            "ai-toolkit's defaults, since the file does not say": defaults,
        }
        return "\n".join(line for name, lines in parts.items() if lines for line in (name, *lines))

    def run_file(self) -> str:
        """A run file that `read_settings` reads back."""
        table = self.settings.table(exclude_unset=True)
        return "# From a configuration of ai-toolkit, by `iclora import`.\n" + tomli_w.dumps(
            {"train": table}
        )


def import_run(path: str | Path, *, recipe: str | None = None, data: str | None = None) -> Imported:
    """Read a configuration of ai-toolkit, YAML or (.json, .jsonc) JSON.

    Args:
        recipe: name or TOML path; by default the dataset's own, or the one that prompts fit.
        data: where the sets lie on this machine; by default where the file says.
    Raises: SettingsError naming every field that iclora has nothing for, or does not know.
    """
    document = read_document(Path(path))
    reading = Reading()
    reading.table(document, "", "")
    if reading.other_kind:
        # Of another job every field would be called unknown, though it is right there.
        raise SettingsError(
            f"{WHAT} {path} describes something else than the training of a LoRA:\n"
            + "\n".join(f"  {problem}" for problem in reading.other_kind),
            "Give the configuration of a run that trains; its other fields were not looked at.",
        )
    config = Config(document)
    reading.problems += config.problems()
    if reading.problems:
        raise SettingsError(
            f"{WHAT} {path} asks for what iclora does not do:\n"
            + "\n".join(f"  {problem}" for problem in reading.problems),
            "Change these lines in a copy of the file, and import that.",
        )
    values = config.settings()
    if data is not None:
        values["data"] = data
    notes: list[str] = []
    known = Sets(values, recipe, config.prompts, notes)
    values |= {"recipe": known.setting} if known.setting else {}
    known.check_trigger(config.trigger)
    if not Path(values["data"]).exists():
        notes.append(f"there is no {values['data']} here: set `data` to where the sets lie")
    rows = [
        _with_value(row, values) for each in reading.rows for row in (each, *_also(each, values))
    ]
    decided = {row.setting for row in rows}
    rows += [
        Row("", None, name, "ai-toolkit's default", value)
        for name, value in values.items()
        if name not in decided and name != "recipe"
    ]
    return Imported(settings_of(TrainSettings, values), tuple(rows), tuple(notes))


def _also(row: Row, values: Mapping[str, Any]) -> list[Row]:
    """What a field decides beside its own setting."""
    if row.setting != "shift" or "sigma_std" not in values:
        return []
    note = "ai-toolkit draws levels evenly before it shifts them; this does within 1%"
    return [Row(row.field, row.value, "sigma_std", note)]


def _with_value(row: Row, values: Mapping[str, Any]) -> Row:
    """A row with its setting's value; one that decides nothing says so."""
    if row.setting is None:
        return row
    if row.setting not in values:
        return Row(row.field, row.value, None, "the same here")
    return replace(row, result=values[row.setting])
