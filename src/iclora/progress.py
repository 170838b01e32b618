"""Long work seen: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Bar", "progress_bar"]

Bar = Callable[[str, int, int, str], None]
"""Shows progress: what is done, how much of it, of how much, and a note."""


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Progress as a bar in a terminal, as a line now and then in a log."""
    if not sys.stdout.isatty():
        yield _line_printer()
        return
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[note]}"),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with rich.Progress(*columns) as progress:
        tasks: dict[str, rich.TaskID] = {}

        def show(what: str, done: int, total: int, note: str) -> None:
            if what not in tasks:
                # What a resumed run has behind it must not count as speed.
                tasks[what] = progress.add_task(what, total=total, note=note, rate="")
                progress.update(tasks[what], completed=done - 1)
            speed = progress.tasks[tasks[what]].speed
            rate = (
                "" if not speed else f"{speed:.2f}/s" if speed >= 1 else f"{1 / speed:.2f} s each"
            )
            progress.update(tasks[what], completed=done, total=total, note=note, rate=rate)

        yield show


def _line_printer() -> Bar:
    began: dict[str, tuple[float, int]] = {}
    last = 0.0

    def show(what: str, done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        start, first = began.setdefault(what, (now, done))
        if done < total and now - last < 10:
            return
        last = now
        each = (now - start) / max(done - first, 1)
        left = f", {each:.2f} s each, {each * (total - done):.0f} s left" if done > first else ""
        print(f"{what} {done}/{total} {note}{left}".replace(" ,", ","), flush=True)

    return show
