"""Answers of servers that stream although nobody asked them to: server-sent events, put together.

The format is the HTML standard's (9.2.6): lines "data: ...", an empty line behind each event. What
the events hold are OpenAI's chunks: a piece of the message in each, "[DONE]" at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["are_events", "events_of", "from_events"]

_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
"""What of a message comes in pieces."""


def are_events(text: str) -> bool:
    """True if a body is a stream of events and no JSON."""
    return re.match(r"\s*(?::|event:|data:|id:|retry:)", text) is not None


def events_of(text: str) -> Iterator[str]:
    """The data of every event, without the mark of the end."""
    for event in re.split(r"(?:\r\n|\r|\n){2,}", text):
        lines = [line[5:].removeprefix(" ") for line in event.splitlines() if line[:5] == "data:"]
        data = "\n".join(lines)
        if data.strip() and data.strip() != "[DONE]":
            yield data


def from_events(chunks: Sequence[Any]) -> Any:
    """A whole completion out of its chunks; an event that is none, such as an error, as it is."""
    held = [chunk for chunk in chunks if isinstance(chunk, dict)]
    for chunk in held:
        if "error" in chunk or (len(held) == 1 and "choices" not in chunk):
            return chunk
    if not held:
        return None
    message: dict[str, Any] = {}
    ended: Any = None
    whole: dict[str, Any] = {}
    for chunk in held:
        whole |= {key: value for key, value in chunk.items() if value is not None}
        choices = chunk.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict):
            continue
        ended = first.get("finish_reason") or ended
        piece = first.get("delta") or first.get("message")
        if not isinstance(piece, dict):
            continue
        for name in _TEXTS:
            if isinstance(text := piece.get(name), str):
                message[name] = message.get(name, "") + text
    # Without its last event a stream broke off, as an answer that is too long does.
    return {**whole, "choices": [{"message": message, "finish_reason": ended or "length"}]}
