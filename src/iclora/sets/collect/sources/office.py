"""Slides of a PPTX as pages of a PDF, by LibreOffice where it is installed.

It is a program of the machine, not a package: it draws what no library of Python does. Macros of a
document do not run in it, and a deck that draws on what lies outside of it is left alone, since
LibreOffice would fetch that.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from iclora.errors import DatasetError

__all__ = ["SLIDES", "draw_slides", "find_office"]

SLIDES = "slides.pdf"
_MOST_SECONDS = 300
_NEEDED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "TEMP", "APPDATA")
_EXPORT = 'pdf:impress_pdf_Export:{"ReduceImageResolution":{"type":"boolean","value":"false"}}'


def find_office() -> str | None:
    """LibreOffice's program, if there is one."""
    return shutil.which("soffice") or shutil.which("libreoffice")


def draw_slides(office: str, path: Path, folder: Path) -> None:
    """Write the slides of a deck as `SLIDES` into a folder.

    Raises: DatasetError if the program fails, or takes more than five minutes.
    """
    with tempfile.TemporaryDirectory(prefix="iclora-slides-") as work:
        # A profile of its own: another LibreOffice that is open would take the document over.
        home = Path(work, "profile").as_uri()
        deck = Path(work, "slides.pptx")
        shutil.copyfile(path, deck)
        options = {"headless": (), "norestore": (), "convert-to": (_EXPORT,), "outdir": (work,)}
        told = [word for name, value in options.items() for word in (f"--{name}", *value)]
        command = [office, f"-env:UserInstallation={home}", *told, str(deck)]
        said = _run(command)
        made = deck.with_suffix(".pdf")
        if not made.is_file():
            why = (said.strip().splitlines() or ["it wrote nothing"])[-1][:200]
            raise DatasetError(
                f"LibreOffice cannot draw the slides of {path}: {why}",
                "Export it as PDF and collect that.",
            )
        shutil.move(made, folder / SLIDES)


def _run(command: list[str]) -> str:
    """What the program says. In a session of its own, so that all of it ends with its time.

    Of the environment it gets what a program needs, and no keys.
    """
    own = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    with subprocess.Popen(  # noqa: S603 (no shell; the one path in it is ours)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=own,
        start_new_session=True,
    ) as process:
        try:
            return process.communicate(timeout=_MOST_SECONDS)[0]
        except subprocess.TimeoutExpired:
            return f"it took more than {_MOST_SECONDS} s"
        finally:
            if process.poll() is None:
                if sys.platform == "win32":
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)
