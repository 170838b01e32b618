"""The verb that measures this software on the machine at hand: bench."""

from __future__ import annotations

import shlex

from iclora.cli.output import option_of, show_table
from iclora.progress import Console
from iclora.settings import BenchSettings, verb

__all__ = ["bench"]

_CHILD = ("-m", "iclora.jobs.bench.child", "iclora.cli.main:VERBS")
_ON = {"any": "any", "card": "card", "cpu": "CPU"}


@verb(BenchSettings)
def bench(settings: BenchSettings, console: Console) -> int:
    """Measure speed, memory and correctness on this machine, one process a row."""
    from iclora.jobs.bench.rows import chosen
    from iclora.jobs.bench.supervise import bench as measure

    if settings.list:
        lines = [
            (row.name, _ON[row.on], f"{row.takes} s", f"{row.limit} s", row.about)
            for row in chosen(settings.rows)
        ]
        show_table(("ROW", "ON", "TAKES", "LIMIT", "MEASURES"), lines, whole=4)
        return 0
    book = measure(settings, console, _typed(settings), _CHILD)
    console.say(f"wrote {book.folder / 'bench.md'} and bench.json")
    if book.failed:
        console.warn(f"not whole: {', '.join(book.failed)}")
        return 1
    return 0


def _typed(settings: BenchSettings) -> str:
    """The command, without the folder: it may name a person."""
    words = ["iclora", "bench"]
    for name in sorted(settings.model_fields_set - {"out"}):
        value = getattr(settings, name)
        words.append(option_of(BenchSettings, name))
        if value is not True:
            several = value if isinstance(value, tuple) else (value,)
            words += [f"{v:g}" if isinstance(v, float) else shlex.quote(str(v)) for v in several]
    return " ".join(words)
