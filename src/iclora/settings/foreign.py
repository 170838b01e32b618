"""What other tools read as options, weights or switches in a prompt, and a base would paint."""

from __future__ import annotations

import re
from functools import cache

__all__ = ["foreign_words"]


@cache
def _loose() -> re.Pattern[str]:
    # Compiling takes 5 ms, and nearly no text needs it.
    return re.compile(
        # <lora:style:0.8>, <random:red,blue>
        r"<[a-z_]{3,20}:[^<>\s][^<>]*>"
        r"|(?<![\w-])(?:--|\u2013|\u2014)(?:[a-z]|ar|aspect|chaos|seed|stylize|style|quality|niji|no|iw"
        r"|sref|cref|tile|stop|raw|weird|cfg|steps|negative|neg|width|height|am|ow|sp|pc|num|lora|model"
        r"|sampler|scheduler|prompt|[a-z]+[_-][a-z_-]+)(?![\w-])(?:[ =][^\s,]+)?"
        # InvokeAI's -W512 -H512 -S42.
        r"|(?<!\S)-[a-z] ?[0-9]+(?:\.[0-9]+)?(?![\w-])"
        r"|(?<![^\s,])(?:width|height|steps|seed|cfg|cfg_scale|guidance|sampler|denoise)=[^\s,]+"
        # As A1111 and ComfyUI write weights, switches, wildcards and their settings below a prompt.
        r"|\([^()\n]{1,80}:[0-9]\.[0-9]+\)|\([^()\n]{0,80}[^\W\d]:[0-9]\)"
        r"|\({2,}[^()\n]{1,80}\){2,}|\)[+-]{2,}(?!\w)|\)[0-9]\.[0-9]+(?!\w)"
        r"|\[[^\[\]\n]{1,80}:[0-9]*\.[0-9]+\]|\[[^\[\]\n]{0,80}[^\W\d]:[0-9]+\]"
        r"|\[[^\[\]|\n]{1,80}\|[^\[\]\n]{1,200}\]"
        r"|\{[^{}|\n]{1,80}\|[^{}\n]{1,200}\}|(?<!\w)__[a-z][\w/-]{0,60}__(?!\w)"
        r"|(?<!\w)embedding:[\w./-]+|\w::-?[0-9.]+(?!\w)|(?<=\s)::(?:-?[0-9.]+|(?=\s))"
        r"|^\s*/imagine\b(?:\s+prompt:)?|^\s*https?://\S+"
        r"|^\s*negative prompt:|^\s*steps: [0-9]+, (?:sampler|cfg)\b"
        r"|,\s*(?:steps|seed|cfg scale|sampler): \S+(?=,|\s*$)",
        re.IGNORECASE | re.MULTILINE,
    )


_LOUD = re.compile(
    # Words that are switches only in capitals; among others in capitals they are a sign's.
    r"(?<!\S)(?:BREAK|ADDCOL|ADDROW|ADDCOMM|ADDBASE)(?!\S)|(?<=[a-z.,)] )AND(?= [a-z(])"
)
# Nearly all prompts hold none of these, and need not be searched for each of so many forms.
_SIGNS = ("<", "\u2013", "\u2014", "=", "(", ")", "{", "_", ":", "/", "|", "--")
_DASH = re.compile(r"(?<!\S)-")
_WORDS = ("BREAK", "ADD", "AND")


def foreign_words(text: str) -> str | None:
    """What other tools read as an option in a prompt: --ar 16:9, --w 64, <lora:x:1>, (x:1.3)."""
    loose = any(sign in text for sign in _SIGNS) or bool(_DASH.search(text))
    match = loose and _loose().search(text)
    match = match or (any(word in text for word in _WORDS) and _LOUD.search(text))
    return match[0].strip() if match else None
