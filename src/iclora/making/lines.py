"""The lines of a file of prompts: what people and other programs write around them is taken off.

Nothing goes without a word: what is left out becomes a note, and what cannot be told from the words
of a prompt is refused by its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iclora.files import Refusal
from iclora.sets.counted import is_counted, without_counts
from iclora.settings import foreign_words

__all__ = ["Line", "lines_of", "refuse_foreign", "without_marks"]


@dataclass(frozen=True)
class Line:
    """A line of a file."""

    number: int
    """Counted from 1."""
    words: str


_BLOCKS = (("<!-- -->", r"<!--.*?-->"), ("/* */", r"^\s*/\*.*?\*/"))
"""Comments of several lines."""
_COMMENT = re.compile(r"#|//|;|%(?!\d)|--\s|\.\.\s|REM\s|\W*$")
"""A line that other tools leave out, and one without a word: a rule, a fence."""
_UNSEEN = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
"""Signs that nobody sees; those that join letters of Persian and Hindi are none of them."""
_QUOTES = ('""', "''", "\u201c\u201d", "\u201e\u201c", "\u00ab\u00bb", "\u300c\u300d", "``")
_BULLET = (
    r"(?:[-*+>]\s+|[\u2022\u2023\u25aa\u25ab\u25a0-\u25ff\u2192\u27a4\u2713\u2714\u00b7]\s*"
    r"|[\u2013\u2014]\s+)(?:\[[ xX]\]\s+)?(.*)"
)
_ODD = (
    (
        # JSON, YAML and TOML, the head of a table, of one column too, and a table's rows.
        r"[{\[]\s*(\"|$)|\"?(prompt|text)\"?\s*[,;\t]\s*\S+$|\"?(prompts?|texts?|captions?)\"?:?$"
        r"|(?:[\"\w ]+[,;])+\"?(prompt|text|caption)\"?$|[0-9]+[,;]\"|\||.*\t"
        r"|(?:prompts?|texts?|captions?)\s*=|\w+:$",
        "this is JSON or a table and not a prompt",
        "Write one prompt in each line, its words alone.",
    ),
    (
        r"\{\\rtf",
        "this is a document of a word processor and no plain text",
        "Save it as plain text, of UTF-8.",
    ),
    (
        r"(?:positive )?prompt(?:\s*[0-9]+)?\s*[:\uff1a]",
        "only some lines have such a label, which would be painted as words",
        "Leave it out, or begin the lines that are no prompts with #.",
    ),
    (
        r".*\s(#|//)\s",
        "a comment within a line would be painted as words",
        "Comments stand in lines of their own, which begin with #.",
    ),
    (
        r".*\\$",
        "a backslash at its end would be painted, and the next line is another prompt",
        "Write each prompt in one line.",
    ),
    (
        r".*\s--$",
        "two dashes at its end would be painted as words",
        "Leave them out; an option of another tool may have stood there.",
    ),
    (r".*[\x00-\x08\x0e-\x1f\x7f]", "it holds control characters", "Save the file as plain text."),
)
"""Lines that are no prompts: how they look, what they are, what to do."""


def lines_of(text: str) -> tuple[list[Line], list[str]]:
    """The lines of a text that are neither empty nor comments, and what was left out."""
    notes = []
    for shown, form in _BLOCKS:
        # Its line ends stay, for errors count lines.
        fewer = re.sub(form, lambda found: _line_ends(found[0]), text, flags=re.DOTALL | re.M)
        if fewer != text:
            notes.append(f"what stands in {shown} is left out")
        text = fewer
    seen = _UNSEEN.sub("", text)
    if seen != text:
        notes.append("signs that nobody sees are left out")
    rows = [Line(n, row.strip()) for n, row in enumerate(seen.splitlines(), 1) if row.strip()]
    kept = [row for row in rows if not _COMMENT.match(row.words)]
    if not kept and without_counts([row.words for row in rows]):
        kept = rows  # #1 a boat, #2 a gull
    if len(kept) < len(rows):
        count = len(rows) - len(kept)
        notes.insert(0, f"{count} comment line{'s' * (count > 1)} left out")
    return kept, notes


def without_marks(lines: Sequence[Line]) -> tuple[list[Line], list[str]]:
    """Lines without bullets, numbers, labels, quotes and bold type, if each has them.

    Returns: the lines, and what was left out.
    """
    notes: list[str] = []
    words = [line.words for line in lines]
    steps: tuple[tuple[str, Callable[[list[str]], list[str]]], ...] = (
        ("the bullets before the lines are left out", _each(_BULLET)),
        ("the numbers before the lines are left out", without_counts),
        ('the words "prompt:" before the lines are left out', _each(r"(?i:prompt)\s*:\s*(.*)")),
        ("the stars of bold type are left out", _without_stars),
        ("the quotes around the lines are left out", _without_quotes),
    )
    for note, step in steps:
        if bare := step(words):
            words = bare
            notes.append(note)
    return [Line(o.number, w) for o, w in zip(lines, words, strict=True)], notes


def refuse_foreign(lines: Sequence[Line], source: str, refuse: Refusal) -> None:
    """Refuse what would be painted and is no prompt. Raises: what `refuse` makes."""
    for line in lines:
        for form, problem, advice in _ODD:
            if re.match(form, line.words, re.IGNORECASE):
                raise refuse(f"{source}, line {line.number}: {problem}", advice)
    for line in lines:
        if found := foreign_words(line.words):
            raise refuse(
                f'{source}, line {line.number}: "{found}" is an option of another tool and would '
                "be painted as words",
                "Leave it out; `size`, `seed`, `steps`, `guidance`, `negative` and `adapter` are "
                "settings here.",
            )
    if odd := _without_number(lines):
        raise refuse(
            f"{source}, line {odd.number}: it has no number, and other lines are numbered",
            "Begin it with # if it is no prompt; write each prompt in one line.",
        )


def _without_number(lines: Sequence[Line]) -> Line | None:
    """The first line without a number among others that count: a heading, or the end of one."""
    marked = [line for line in lines if is_counted(line.words)]
    counted = len(marked) > 1 and without_counts([line.words for line in marked], first=1)
    if not counted or len(marked) == len(lines):
        return None
    return next(line for line in lines if line not in marked)


def _line_ends(text: str) -> str:
    return "\n" * (len(f"{text}.".splitlines()) - 1)


def _each(form: str) -> Callable[[list[str]], list[str]]:
    """Takes from lines what stands around the group of a pattern; nothing unless all match."""

    def take(words: list[str]) -> list[str]:
        found = [re.fullmatch(form, line) for line in words]
        return [match[1] for match in found if match] if words and all(found) else []

    return take


def _without_quotes(words: list[str]) -> list[str]:
    for pair in _QUOTES:
        first, last = map(re.escape, pair)
        bare = _each(rf"{first}(.*){last},?")(words)
        if bare and not any(sign in line for line in bare for sign in pair):
            return bare
    return []


def _without_stars(words: list[str]) -> list[str]:
    bare = [re.sub(r"\*\*(?=\S)(.+?)(?<=\S)\*\*", r"\1", line) for line in words]
    return bare if bare != words else []
