"""What the command line says: results, notes, errors, tables, progress."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from iclora.cli.table import table_lines
from iclora.files.visible import visible
from iclora.progress import Event, Progress
from iclora.settings import TrainSettings, about

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

__all__ = [
    "Terminal",
    "as_options",
    "bar_mover",
    "noting",
    "open_streams",
    "option_of",
    "quiet_libraries",
    "show_error",
    "show_table",
    "tell",
]

_COLOURS = {"error": "1;31", "warning": "1;33", "note": "1;33", "hint": "1;36"}


class Terminal:
    """A terminal, or the log that stands for it: results to stdout, the rest to stderr.

    Args:
        model: what the verb is told; notes name its settings by their options.
        silent: say nothing, as all but the first of the processes that share a run.
    """

    def __init__(self, model: type[BaseModel], *, silent: bool = False) -> None:
        self.model = model
        self.silent = silent

    def say(self, text: str) -> None:
        """A result, or what is going on."""
        if not self.silent:
            print(visible(text), flush=True)

    def warn(self, text: str) -> None:
        """What a person should know, although the work goes on."""
        if not self.silent:
            tell("note", as_options(text, self.model))

    def tell(self, role: str, text: str) -> None:
        """What is wrong with something that was read."""
        if not self.silent:
            tell(role, as_options(text, self.model))

    def show(self, picture: Path) -> None:
        """Nothing: a terminal shows no pictures, and says where they lie."""

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Progress as a bar per kind of work in a terminal, as a line now and then in a log."""
        if self.silent:
            yield Progress()
        elif not sys.stdout.isatty():
            yield Progress(_line_printer())
        else:
            with _bars() as bars:
                yield Progress(bar_mover(bars))


def open_streams() -> None:
    """Let output be written whatever it is connected to.

    Names that a terminal's encoding lacks (cp1252, GBK, ASCII) are escaped, where Python would
    raise; a stream that was closed goes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Open as long as the program runs.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def option_of(model: type[BaseModel], name: str) -> str:
    """How the command line names a field: --best-of; a positional one by its name alone."""
    known = about(model, name)
    if known.get("position"):
        return name
    return "--" + str(known.get("option") or name).replace("_", "-")


def as_options(text: str, model: type[BaseModel]) -> str:
    """A text with settings in backticks as the command line says it, with options.

    Settings of a training run are known to all verbs; other words in backticks stay.
    """

    def say(match: re.Match[str]) -> str:
        for known in (model, TrainSettings):
            if match[1] in known.model_fields:
                return option_of(known, match[1])
        return match[0]

    def say_no(match: re.Match[str]) -> str:
        option = say(match)
        return f"pass --no-{option[2:]}" if option.startswith("--") else match[0]

    text = re.sub(r"turn `([a-z][a-z0-9_]*)` off", say_no, text)
    return re.sub(r"`([a-z][a-z0-9_]*)`", say, text)


def show_error(problem: str, advice: str) -> None:
    """What went wrong, and what to do next."""
    tell("error", problem)
    tell("hint", advice)


def tell(role: str, text: str) -> None:
    """One message on stderr with its role before it: error, hint, warning or note."""
    colourful = (
        sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    shown = f"\x1b[{_COLOURS[role]}m{role}:\x1b[0m" if colourful else f"{role}:"
    print(f"{shown} {visible(text)}", file=sys.stderr, flush=True)


@contextmanager
def noting(console: Terminal) -> Iterator[None]:
    """Show as notes, inside the block, what models say of the machine: its attention kernels."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.warn(record.getMessage())

    log, notes = logging.getLogger("iclora.models"), Notes()
    before = log.level
    log.addHandler(notes)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(notes)
        log.setLevel(before)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, whole: int = 0) -> None:
    """Rows under their columns.

    Args:
        whole: how many columns, from the left, must not break into lines.
    """
    # A pipe or a file is given as much as the usual terminal.
    width = shutil.get_terminal_size().columns
    shown = [[visible(cell) for cell in row] for row in rows]
    print("\n".join(table_lines(columns, shown, width, whole)), flush=True)


def quiet_libraries() -> None:
    """Keep libraries' chatter out of the output; a user who sets these variables wins."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


# -- progress -----------------------------------------------------------------------------------


def _bars() -> Bars:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
    )


def bar_mover(bars: Bars) -> Callable[[Event], None]:
    """Draw events: one bar per kind of work, which starts again with the work on the next thing."""
    from rich.progress import TaskID

    tasks: dict[str, TaskID] = {}

    def show(event: Event) -> None:
        known = tasks.get(event.what)
        if known is None:
            known = tasks[event.what] = bars.add_task(event.what, note="", rate="")
        if event.done < bars.tasks[known].completed or bars.tasks[known].total is None:
            # What a resumed run has behind it must not count as speed.
            bars.reset(known, total=event.total, completed=max(event.done - 1, 0))
        speed = bars.tasks[known].speed
        rate = "" if not speed else f"{speed:.2f}/s" if speed >= 1 else f"{1 / speed:.2f} s each"
        bars.update(
            known, completed=event.done, total=event.total, note=visible(event.note), rate=rate
        )

    return show


def _line_printer() -> Callable[[Event], None]:
    began: dict[str, tuple[float, int, int]] = {}
    last = 0.0

    def show(event: Event) -> None:
        nonlocal last
        what, done, total = event.what, event.done, event.total
        now = time.monotonic()
        start, first, before = began.get(what, (now, done, done))
        if done < before:  # the same work on the next thing
            start, first = now, done
        began[what] = start, first, done
        if done < total and now - last < 10:
            return
        last = now
        each = (now - start) / max(done - first, 1)
        left = f", {each:.2f} s each, {each * (total - done):.0f} s left" if done > first else ""
        note = visible(event.note)
        print(f"{what} {done}/{total} {note}{left}".replace(" ,", ","), flush=True)

    return show
