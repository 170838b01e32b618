"""What the command line says: messages, notes, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from iclora.progress import Event, Progress

__all__ = ["progress_bar"]


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Progress as a bar in a terminal, as a line now and then in a log."""
    if not sys.stdout.isatty():
        yield Progress(_line_printer())
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

        def show(event: Event) -> None:
            if event.what not in tasks:
                # What a resumed run has behind it must not count as speed.
                tasks[event.what] = progress.add_task(
                    event.what, total=event.total, note="", rate=""
                )
                progress.update(tasks[event.what], completed=event.done - 1)
            speed = progress.tasks[tasks[event.what]].speed
            rate = (
                "" if not speed else f"{speed:.2f}/s" if speed >= 1 else f"{1 / speed:.2f} s each"
            )
            progress.update(
                tasks[event.what],
                completed=event.done,
                total=event.total,
                note=event.note,
                rate=rate,
            )

        yield Progress(show)


def _line_printer() -> Callable[[Event], None]:
    began: dict[str, tuple[float, int]] = {}
    last = 0.0

    def show(event: Event) -> None:
        nonlocal last
        what, done, total = event.what, event.done, event.total
        now = time.monotonic()
        start, first = began.setdefault(what, (now, done))
        if done < total and now - last < 10:
            return
        last = now
        each = (now - start) / max(done - first, 1)
        left = f", {each:.2f} s each, {each * (total - done):.0f} s left" if done > first else ""
        print(f"{what} {done}/{total} {event.note}{left}".replace(" ,", ","), flush=True)

    return show
