"""The words of sets as people write them: files of prompts, and stories.

No torch is needed here: what is wrong with words is said before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from iclora.errors import SettingsError
from iclora.files import Refusal
from iclora.files.documents import read_words
from iclora.making.lines import Line, lines_of, refuse_foreign, without_marks

__all__ = ["Prompts", "Story", "Window", "plan_windows", "read_prompts", "windows"]


@dataclass(frozen=True)
class Prompts:
    """The lines of a file that are prompts."""

    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was left out of the file."""


def read_prompts(path: str | Path, setting: str = "prompts") -> Prompts:
    """A text file with a prompt in each line that is neither empty nor a comment.

    Comments begin with #, //, ; or %, or stand in <!-- -->. Numbers before lines are left out if
    they count (1. 2. 3., ① ②, Scene 1:), bullets and quotes if every line has them.

    Args:
        setting: the one that names the file.
    Raises: SettingsError, also for options of other tools, which would be painted as words.
    """
    lines, notes = _lines(path, setting)
    lines, more = without_marks(lines)
    refuse_foreign(lines, f"{setting} {path}", _refusal(setting))
    return _prompts(path, lines, [*notes, *more])


def _lines(path: str | Path, setting: str) -> tuple[list[Line], list[str]]:
    return lines_of(read_words(path, _refusal(setting), setting))


def _refusal(setting: str) -> Refusal:
    return lambda problem, advice: SettingsError(problem, advice, setting)


def _prompts(path: str | Path, lines: Sequence[Line], notes: Sequence[str]) -> Prompts:
    return Prompts(tuple(line.words for line in lines), tuple(f"{path}: {n}" for n in notes))


# -- stories ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """The words of a row of pictures."""

    overview: str
    """What they share."""
    images: tuple[str, ...]
    """Each one's own words."""
    notes: tuple[str, ...] = ()
    """What was left out of its file."""

    @classmethod
    def read(cls, path: str | Path) -> Story:
        """A text file: the overview in the first line, then a line for every image.

        Raises: SettingsError, also for options of other tools; see `read_prompts`.
        """
        lines, notes = _lines(path, "story")
        lines, more = without_marks(lines)
        if not more:  # The overview may stand without a number before those that have one.
            rest, more = without_marks(lines[1:])
            lines = [*lines[:1], *rest]
        refuse_foreign(lines, f"story {path}", _refusal("story"))
        read = _prompts(path, lines, [*notes, *more])
        if len(lines) < 2:
            raise SettingsError(
                f"story {path} has {len(lines)} lines",
                "Write what all images share into the first line, then a line for each image.",
            )
        return cls(read.lines[0], read.lines[1:], read.notes)


@dataclass(frozen=True)
class Window:
    """One canvas of a story."""

    images: tuple[int, ...]
    """The image that each panel shows, counted from 1."""
    made: int
    """How many of them, the last ones, are made here; the others are given."""

    @property
    def given(self) -> dict[int, int]:
        """Given images by panel number."""
        return dict(enumerate(self.images[: len(self.images) - self.made], 1))


def windows(count: int, panels: int, anchors: Sequence[int], fresh: int) -> list[Window]:
    """Slide a canvas of `panels` over `count` images.

    The first canvas is made whole; each further one shows the anchors, the latest images that fit,
    and `fresh` new ones.

    Args:
        anchors: images of the first canvas that stay in view, counted from 1.
    Raises: SettingsError if they do not fit together.
    """
    if count < panels:
        raise SettingsError(
            f"the story has {count} images and the canvas {panels} panels",
            "Write more lines, or use a recipe with fewer panels.",
        )
    if not 1 <= fresh < panels:
        raise SettingsError(
            f"{fresh} new images on a canvas of {panels} panels", f"Use 1 to {panels - 1}."
        )
    anchors = sorted(set(anchors))
    if any(not 1 <= n <= panels for n in anchors) or len(anchors) > panels - fresh:
        raise SettingsError(
            f"anchors {anchors} on a canvas of {panels} panels with {fresh} new ones",
            f"Name at most {panels - fresh} of the images 1 to {panels}.",
        )
    found = [Window(tuple(range(1, panels + 1)), panels)]
    done = panels
    while done < count:
        new = min(fresh, count - done)
        others = [n for n in range(1, done + 1) if n not in anchors]
        latest = others[len(others) - (panels - new - len(anchors)) :]
        shown = (*sorted((*anchors, *latest)), *range(done + 1, done + new + 1))
        found.append(Window(shown, new))
        done += new
    return found


def plan_windows(
    story: Story,
    panels: int,
    anchors: Sequence[int] = (1,),
    fresh: int | None = None,
    given: Collection[int] = (),
) -> list[Window]:
    """The canvases of a story; see `windows`.

    Args:
        panels: of a canvas.
        fresh: new images on each further canvas; by default a third of its panels, at least 1.
        given: numbers of images whose pictures are given; a canvas that shows no other is not made.
    Raises: SettingsError, also if one is given that the story does not have.
    """
    count = len(story.images)
    plan = windows(count, panels, anchors, fresh or max(1, panels // 3))
    for number in sorted(given):
        if not 1 <= number <= count:
            raise SettingsError(
                f"image {number} is given, and the story has images 1 to {count}",
                "Count images from 1.",
                setting="given",
            )
    if len(set(given)) == count:
        raise SettingsError("all images are given", "Leave one out.", setting="given")
    return plan
