"""What a run at work is asked for from outside, by empty files in its folder.

RUN/stop.now       end after this step, with a checkpoint, as Ctrl-C does
RUN/save.now       write a checkpoint after this step
RUN/preview.now    draw previews after this step

Anybody who may write into the folder can ask: `touch RUN/save.now`, or a server's page. The run
takes a file away once it has done what the file asks for. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from iclora.files import write_bytes

__all__ = ["NAMES", "Asked", "ask", "asked_of", "forget"]

Asked = Literal["stop", "save", "preview"]
NAMES: tuple[Asked, ...] = get_args(Asked)


def ask(run: Path, name: Asked) -> None:
    """Ask the run in a folder. Raises: StorageError."""
    write_bytes(_file(run, name), b"")


def asked_of(run: Path) -> frozenset[Asked]:
    """What the run in a folder is asked for and has not done yet."""
    return frozenset(name for name in NAMES if _file(run, name).is_file())


def forget(run: Path, names: Iterable[Asked] = NAMES) -> None:
    """Take away what was asked for: it is done, or was asked of a run that is not at work."""
    for name in names:
        _file(run, name).unlink(missing_ok=True)


def _file(run: Path, name: Asked) -> Path:
    return run / f"{name}.now"
