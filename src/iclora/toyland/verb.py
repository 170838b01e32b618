"""The verb `demo`, found by the entry point "demo" of the group "iclora.verbs".

It loads nothing heavy before it runs: `iclora --help` reads its summary.
"""

from __future__ import annotations

from typing import Literal

from iclora.files import check_folder
from iclora.progress import Console
from iclora.settings import FilePath, Settings, verb
from iclora.settings.fields import setting

__all__ = ["DemoSettings", "demo"]


class DemoSettings(Settings):
    """What `demo` is told."""

    # Named here so that help need not load toyland; a test holds them equal to its tasks.
    task: Literal[
        "film-storyboard",
        "portrait-photography",
        "portrait-illustration",
        "sandstorm-effect",
        "visual-identity",
        "font-design",
        "ppt-template",
        "home-decoration",
    ] = "film-storyboard"
    """the recipe to show it with"""
    quick: bool = False
    """a smoke run, whose figures mean nothing"""
    out: FilePath = setting("demo", metavar="FOLDER")
    """new folder"""


@verb(DemoSettings)
def demo(settings: DemoSettings, console: Console) -> None:
    """Show the whole method on the small base that ships with iclora."""
    check_folder(settings.out, "out")
    import transformers

    from iclora.toyland.demo import run_demo

    transformers.utils.logging.disable_progress_bar()
    with console.progress() as progress:
        page = run_demo(settings, console.say, progress)
    console.say(f"\nwrote {page}; open it in a browser")
