"""What was measured, on disk after every row: bench.json for programs, bench.md for people."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from iclora.errors import SettingsError
from iclora.files import write_text
from iclora.files.documents import read_json
from iclora.files.visible import visible
from iclora.jobs.bench.machine import home, same

__all__ = ["Book", "Outcome", "Status", "shown"]

Status = Literal["measured", "failed", "ended", "left out", "not begun"]
"""measured: whole. failed: an error, a crash, or not as it must be. ended: at its limit of time.
left out: this machine cannot. not begun: no time was left, or the card no longer answers."""

_FORMAT = 1
_TRIED = ("measured", "failed", "ended")


@dataclass
class Outcome:
    """What became of a row."""

    row: str
    about: str
    status: Status
    seconds: float = 0.0
    """Of the clock, from the order to the end."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    """What it told, also before it failed."""
    why: str = ""
    """Why it was not measured, or not whole."""
    date: str = ""
    log: str = field(default="", repr=False)
    """Last lines of what a failed row's process said."""


class Book:
    """The results in a folder.

    Args:
        folder: where they are written.
        about: the machine, the software, the command, the dates.
        keep: take over rows that were measured there before.
    Raises: SettingsError for a bench.json that is none, if rows are to be kept.
    """

    def __init__(self, folder: Path, about: dict[str, Any], keep: bool = False) -> None:
        self.folder, self.about = folder, about
        self.outcomes: dict[str, Outcome] = {}
        self.note = ""
        if keep and (folder / "bench.json").exists():
            self._keep(folder / "bench.json")

    def _keep(self, path: Path) -> None:
        found = read_json(path, SettingsError, "results")
        try:
            before, rows = found["about"], [Outcome(**row) for row in found["rows"]]
            assert found["bench"] == _FORMAT
        except (KeyError, TypeError, AssertionError) as error:
            raise SettingsError(
                f"{path} holds no results of this version", "Choose another `out`.", setting="out"
            ) from error
        if not same(before, self.about):
            self.note = (
                f"{path.name} was measured on another card or with other software: nothing is kept"
            )
            return
        self.about["card"] = before.get("card", {})
        self.outcomes = {row.row: row for row in rows if row.status == "measured"}

    @property
    def failed(self) -> list[str]:
        """Rows that were tried and are not whole."""
        return [o.row for o in self.outcomes.values() if o.status in ("failed", "ended")]

    def add(self, outcome: Outcome) -> None:
        """Take a row's outcome, and write both files."""
        self.outcomes[outcome.row] = outcome
        self.write()

    def write(self) -> None:
        """Write both files, each whole or not at all. Raises: StorageError."""
        rows = [asdict(outcome) for outcome in self.outcomes.values()]
        said = {"bench": _FORMAT, "about": self.about, "rows": rows}
        write_text(self.folder / "bench.json", anonymous(json.dumps(said, indent=1)) + "\n")
        write_text(self.folder / "bench.md", anonymous("\n".join(self._lines())) + "\n")

    def _lines(self) -> Iterator[str]:
        yield "# iclora bench"
        yield ""
        yield "| | |"
        yield "|---|---|"
        for name, text in _heads(self.about):
            yield f"| {name} | {_cell(text)} |"
        tried = [o for o in self.outcomes.values() if o.status in _TRIED]
        yield ""
        yield "| row | what | measured | target | |"
        yield "|---|---|---|---|---|"
        for outcome in tried:
            yield f"| **{outcome.row}** | {_cell(outcome.about)} | {_state(outcome)} | | |"
            for figure in outcome.figures:
                yield _line(figure)
        for outcome in tried:
            if outcome.why:
                yield ""
                yield f"**{outcome.row}** {outcome.status}:"
                yield ""
                yield from (f"    {line}" for line in [*outcome.why.splitlines()])
                if outcome.log:
                    yield "    ..."
                    yield from (f"    {line}" for line in outcome.log.splitlines())
        rest = [o for o in self.outcomes.values() if o.status not in _TRIED]
        if rest:
            yield ""
            yield "| not measured | | why |"
            yield "|---|---|---|"
            for outcome in rest:
                yield f"| {outcome.row} | {_cell(outcome.about)} | {_cell(outcome.why)} |"


def _heads(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    card, cards = about.get("card", {}), about.get("cards", [])
    named = [
        f"{c['name']}, {c['memory.total']}, driver {c['driver_version']}, capability "
        f"{c['compute_cap']}"
        for c in cards
    ]
    if card.get("name"):
        named.append(
            f"as torch sees it: {card['name']}, {card.get('memory GB')} GB, of them "
            f"{card.get('free GB')} free"
        )
    yield "card", "; ".join(named) or "none"
    yield (
        "machine",
        f"{about['processor']}, {about['cores']} cores, {about['memory GB']} GB; {about['system']}",
    )
    known = ("python", "torch", "triton", "diffusers", "transformers", "peft", "accelerate")
    software = [f"{name} {about[name]}" for name in known if about.get(name)]
    software += [f"{name} {card[name]}" for name in ("CUDA", "cuDNN") if card.get(name)]
    yield "software", ", ".join(software)
    yield (
        "iclora",
        f"{about['iclora']}, commit {about['commit'] or 'unknown'}, source {about['source']}",
    )
    yield "command", f"`{about['command']}`"
    yield "date", f"{about['began']}, {about.get('took', 0):.0f} s so far"


def _state(outcome: Outcome) -> str:
    words = {"measured": "", "failed": "**failed**, ", "ended": "**ended at its limit**, "}
    return f"{words[outcome.status]}{outcome.seconds:.0f} s"


def _line(figure: Mapping[str, Any]) -> str:
    beside = [figure.get("note", "")]
    spread = figure.get("all", [])
    if len(spread) > 1:
        beside.append(f"{shown(min(spread))} to {shown(max(spread))}, {len(spread)} times")
    met = {True: "", False: " **missed**", None: ""}[figure.get("met")]
    value = "-" if figure["value"] is None else shown(figure["value"])
    unit = f" {figure['unit']}" * bool(figure["unit"])
    cells = (figure["what"], value + unit, figure.get("target", ""))
    what, measured, target = map(_cell, cells)
    return f"| | {what} | {measured} | {target}{met} | {_cell('; '.join(filter(None, beside)))} |"


def shown(value: float | str) -> str:
    """A number as people read it: four digits that count."""
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}"


def _cell(text: str) -> str:
    return visible(str(text)).replace("|", "\\|").replace("\n", "<br>")


def anonymous(text: str) -> str:
    """A text without the folders of this machine and the names in them.

    People attach these files to issues.
    """
    folders = {str(home()): "REPOSITORY", sys.prefix: "PYTHON", sys.base_prefix: "PYTHON"}
    folders[str(Path.home())] = "~"
    for folder, word in sorted(folders.items(), key=lambda pair: -len(pair[0])):
        if len(folder) > 4:
            text = text.replace(folder, word)
    text = re.sub(r"/[^\s\"']*/iclora-bench-\w+/", "WORK/", text)
    return re.sub(r"(/home|/Users)/[^/\s\"']+", r"\1/USER", text)
