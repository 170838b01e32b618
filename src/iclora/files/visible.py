"""Other people's text as it may be shown: without what a terminal or a page would obey."""

from __future__ import annotations

import re

__all__ = ["visible"]

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb"
    r"\U000e0000-\U000e007f]"
)
"""Control characters, marks that turn the direction of writing or begin lines, and letters that
nobody sees (tags); not tabs and line ends."""


def visible(text: str) -> str:
    """A text whose control characters are shown as escapes: \\x1b for the one that begins colours.

    Names and captions come from other people's files; sent to a terminal, such characters could
    rewrite what stands there, and on a page turn round what a line says.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
