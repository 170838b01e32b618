"""The JSON object in a model's answer, wherever it stands and however badly it is written."""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["find_object"]

_BRACES = 200
"""Most places at which an object is looked for."""
_LONGEST = 20_000
"""Characters of an object that is no JSON."""
_WIDE = str.maketrans("\uff1a\uff0c\uff5b\uff5d\uff3b\uff3d\u201c\u201d\u201e", ':,{}[]"""')


def find_object(text: str, *keys: str) -> dict[str, Any] | None:
    """The last JSON object in a text that has these keys, whatever stands around it.

    What makes bad JSON of many answers is forgiven if nothing better is there: commas before a
    closing bracket, curly quotes, HTML escapes, a second escaping, comments, keys without quotes,
    signs of Chinese width, and Python in place of JSON.
    """
    for way in dict.fromkeys(_ways(text)):
        found = _last_object(way, keys)
        if found is not None:
            return found
    return _python(text, keys)


def _ways(text: str) -> Iterator[str]:
    yield text
    yield re.sub(r",(\s*[}\]])", r"\1", text)
    yield html.unescape(text)
    yield text.replace('\\"', '"')
    yield re.sub("[\u201c\u201d]", '"', text)
    yield text.translate(_WIDE)
    bare = re.sub(r"(?m)(^|[,\[{])\s*//[^\n]*$|/\*.*?\*/", r"\1", text)
    bare = re.sub(r"([{,]\s*)([A-Za-z_]\w{0,40})(\s*:)", r'\1"\2"\3', bare)
    yield re.sub(r",(\s*[}\]])", r"\1", bare)


def _last_object(text: str, keys: Sequence[str]) -> dict[str, Any] | None:
    decoder = json.JSONDecoder(strict=False)
    found, at = None, -1
    for _ in range(_BRACES):
        at = text.find("{", at + 1)
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            break
        except ValueError:
            continue
        named = _named(value)
        if all(key in named for key in keys):
            found, at = named, end - 1
    return found


def _python(text: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """The dictionary between the first brace and the last, as Python writes it."""
    start, end = text.find("{"), text.rfind("}") + 1
    if start < 0 or not 0 < end - start <= _LONGEST:
        return None
    try:
        value = ast.literal_eval(text[start:end])
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    named = _named(value) if isinstance(value, dict) else {}
    return named if named and all(key in named for key in keys) else None


def _named(value: dict[Any, Any]) -> dict[str, Any]:
    return {str(key).strip().lower(): held for key, held in value.items()}
