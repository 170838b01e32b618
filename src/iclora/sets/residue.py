"""What no caption holds: leftovers of markup, of a model's chat and of its templates."""

from __future__ import annotations

import re
from functools import cache

__all__ = ["residue_in"]


@cache
def _residue() -> re.Pattern[str]:
    # Compiling takes 5 ms, and nearly no text needs it.
    return re.compile(
        r"\*\*|```|~~"  # Markdown
        r"|</\w[\w:-]*\s*>|<[a-z]\w*\s+[\w-]+=[^<>]{0,200}>|<(?:br|hr|img|p|div|span)\s*/?>"
        r"|&(?:lt|gt|amp|quot|nbsp|apos|#\d{1,6}|#x[0-9a-f]{1,6});"
        r"|<\||\|>|\[/?INST\]|<(?:think|grounding|box|ref|loc|quad|image)(?:_?\d+)?>"  # chat
        r"|\[/[A-Z][\w -]{0,40}\]|\[END\]"
        r"|\u3010\d+[^\u3011]{0,40}\u3011|:?contentReference|oaicite"  # citations
        r"|[\u2581\u0120\u010a]\w|\\u[0-9a-f]{4}|\w%20\w"  # pieces and escapes of other formats
        r"|\u00e2\u20ac|\u00c3[\u0080-\u00bf]|\u00ef\u00bb\u00bf|\ufffd"
        r"|\\text\{|\\begin\{"
        r"|\[(?:your |the )?(?:text|overview|description|caption|words|insert)[^\[\]]{0,60}\]"
        r"|\{\{[^{}]{0,80}\}\}|\blorem ipsum\b",
        re.IGNORECASE,
    )


# Nearly all captions hold none of these, and need not be searched for each of so many forms.
_SIGNS = (
    *("*", "`", "~", "<", ">", "&", "\\", "%", "{", "\u3010", "\u2581", "\u0120", "\u010a"),
    *("\u00e2", "\u00c2", "\u00c3", "\u00ef", "\ufffd", "[/", "\u00e3"),
)
_WORDS = ("contentreference", "oaicite", "lorem ipsum")
_BRACKET = re.compile(r"\[(?:your |the )?(?:text|overview|desc|capt|words|insert|end|inst)")


def residue_in(text: str) -> str | None:
    """The first such leftover in a text, which a base would learn as words; None without."""
    low = text.lower()
    told = any(sign in text for sign in _SIGNS) or any(word in low for word in _WORDS)
    if not told and not _BRACKET.search(low):
        return None
    found = _residue().search(text)
    return found[0] if found else None
