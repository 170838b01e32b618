"""Verbs that make sets: generate complete reroll extend."""

from __future__ import annotations

from pathlib import Path

from iclora.jobs.at_once import check_extend, check_reroll, check_sets
from iclora.jobs.opening import Opener
from iclora.progress import Console
from iclora.settings import CompleteSettings, ExtendSettings, GenerateSettings, RerollSettings, verb

__all__ = ["complete", "extend", "generate", "reroll"]


@verb(GenerateSettings)
def generate(settings: GenerateSettings, console: Console) -> None:
    """Make new sets from joint prompts, or repeat a request."""
    _make(settings, console)


@verb(CompleteSettings)
def complete(settings: CompleteSettings, console: Console) -> None:
    """Make the missing panels of a set, or repeat a request."""
    _make(settings, console)


def _make(settings: GenerateSettings, console: Console) -> None:
    check_sets(settings, console)
    if settings.workers > 1 or settings.engine == "ray":
        from iclora.serve.sharing import make_shared

        make_shared(settings, console)
        return
    from iclora.jobs.making import make

    make(settings, console, Opener())


@verb(RerollSettings)
def reroll(settings: RerollSettings, console: Console) -> None:
    """Make panels of a set again; the others stay, pixel for pixel."""
    check_reroll(settings)
    from iclora.jobs.making import reroll as make_again

    console.say(f"wrote {make_again(settings, console, Opener())}")


@verb(ExtendSettings)
def extend(settings: ExtendSettings, console: Console) -> None:
    """Make a story of any length, a canvas at a time, in view of what was made before."""
    check_extend(settings, console)
    from iclora.jobs.making import extend as make_story

    out, images = Path(settings.out), make_story(settings, console, Opener())
    console.say(f"wrote {out}: {images} images, and every canvas under {out / 'windows'}")
