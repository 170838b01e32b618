"""The words of sets as people write them: files of prompts, and stories.

No torch is needed here: what is wrong with words is said before anything heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from iclora.errors import SettingsError
from iclora.files.documents import read_words
from iclora.settings import foreign_words

__all__ = ["Prompts", "Story", "Window", "plan_windows", "read_prompts", "windows"]


@dataclass(frozen=True)
class Prompts:
    """The lines of a file that are prompts."""

    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was left out of the file."""


_TABLE = re.compile(
    r"[{\[]\s*(\"|$)|\"?(prompt|text)\"?\s*[,;\t]\s*\S+$"
    # The head of a table of one column.
    r"|\"?(prompts?|texts?|captions?)\"?$",
    re.IGNORECASE,
)
"""A line of JSON, or the head of a table."""


def read_prompts(path: str | Path, setting: str = "prompts") -> Prompts:
    """A text file with a prompt in each line that is neither empty nor a comment.

    Comments begin with #, //, ; or %, or stand in <!-- -->. Numbers before lines are left out if
    they count (1. 2. 3.), bullets and quotes if every line has them.

    Args:
        setting: the one that names the file.
    Raises: SettingsError, also for options of other tools, which would be painted as words.
    """

    def refuse(problem: str, advice: str) -> SettingsError:
        return SettingsError(problem, advice, setting)

    whole = read_words(path, refuse, setting)
    # Its line ends stay, for errors count lines.
    text = re.sub(r"<!--.*?-->", lambda found: _line_ends(found[0]), whole, flags=re.DOTALL)
    rows = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    kept = [(n, line) for n, line in rows if not _COMMENT.match(line)]
    notes = []
    if len(kept) < len(rows):
        count = len(rows) - len(kept)
        notes.append(f"{path}: {count} comment line{'s' * (count > 1)} left out")
    if text != whole:
        notes.append(f"{path}: what stands in <!-- --> is left out")
    for what, bare in (
        ("numbers", _without_numbers([line for _, line in kept])),
        ("bullets", _without([line for _, line in kept], r"[-*+\u2022]\s+(.*)")),
        ('words "prompt:"', _without([line for _, line in kept], r"(?i:prompt)\s*:\s*(.*)")),
    ):
        if bare:
            kept = [(n, line) for (n, _), line in zip(kept, bare, strict=True)]
            notes.append(f"{path}: the {what} before the lines are left out")
    bare = _without([line for _, line in kept], r"[\"\u201c](.*)[\"\u201d],?")
    if bare and not any('"' in line for line in bare):
        kept = [(n, line) for (n, _), line in zip(kept, bare, strict=True)]
        notes.append(f"{path}: the quotes around the lines are left out")
    for n, line in kept:
        if _TABLE.match(line):
            raise refuse(
                f"{setting} {path}, line {n}: this is JSON or a table and not a prompt",
                "Write one prompt in each line, its words alone.",
            )
    for n, line in kept:
        found = foreign_words(line)
        if found:
            raise refuse(
                f'{setting} {path}, line {n}: "{found}" is an option of another tool and would be '
                "painted as words",
                "Leave it out; `size`, `seed`, `steps`, `guidance`, `negative` and `adapter` are "
                "settings here.",
            )
    return Prompts(tuple(line for _, line in kept), tuple(notes))


def _line_ends(text: str) -> str:
    return "\n" * (len(f"{text}.".splitlines()) - 1)


_COMMENT = re.compile(r"#|//|[;%]\s|REM\s|\W*$")
"""A line that other tools leave out, and one without a word: a rule, a fence."""


def _without(lines: Sequence[str], form: str) -> list[str]:
    """The lines without what stands around the group of a pattern; nothing unless all match."""
    found = [re.fullmatch(form, line) for line in lines]
    return [match[1] for match in found if match] if lines and all(found) else []


def _without_numbers(lines: Sequence[str]) -> list[str]:
    """The lines without the numbers before them; nothing unless these count: 1. 2. 3."""
    form = (
        r"(?i:prompt\s*)?[(\[#]?([0-9]{1,4})"
        r"(?:[.):\]]+\s+|[.):\]]+(?=[^\W\d])|\s+[-\u2013\u2014]\s+)(?=\S)"
    )
    found = [re.match(form, line) for line in lines]
    numbers = [int(match[1]) for match in found if match]
    if not numbers or numbers != list(range(numbers[0], numbers[0] + len(lines))):
        return []
    return [line[match.end() :] for line, match in zip(lines, found, strict=True) if match]


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
        read = read_prompts(path, "story")
        lines = read.lines
        if len(lines) < 2:
            raise SettingsError(
                f"story {path} has {len(lines)} lines",
                "Write what all images share into the first line, then a line for each image.",
            )
        return cls(lines[0], tuple(lines[1:]), read.notes)


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
