"""What a server's refusal means, and the setting that helps: in its own words, at once."""

from __future__ import annotations

import re
from typing import Any

from iclora.errors import VisionModelError
from iclora.vlm.wire import Reply

__all__ = ["EndsTheRun", "complaint", "is_about_form", "status_of", "words_of"]

_LONGEST = 300
_FEW_PICTURES = re.compile(
    r"at most (?:\d+|one|a single) image|only (?:\d|one|a single|single) (?:image|picture)"
    r"|(?:multiple|several|too many|more than (?:one|\d+)) (?:image|picture)|single[- ]image"
    r"|limit[_-]mm[_-]per[_-]prompt|(?:image|picture)s? (?:count|limit|per (?:prompt|request))"
    r"|(?:number|maximum) of images|max(?:imum)?[_ ]images",
    re.IGNORECASE,
)
_BLIND = re.compile(
    r"(?:not|n't|no) (?:support(?:s|ed)?|accept|take|have|process|handle)[^.]{0,40}"
    r"(?:image|vision|multi-?modal|picture)|not (?:a )?(?:multi-?modal|vision)|mmproj"
    r"|(?:image|vision|multi-?modal|image_url)[^.]{0,40}(?:not|n't|only) (?:be )?(?:support"
    r"|allowed|available|enabled)|unknown (?:part|content) type|image input is not",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model[^.\n]{0,80}(?:not (?:be )?(?:found|exist|loaded|available)|does(?:n't| not) exist"
    r"|is ?n[o']t (?:found|loaded|available|valid)|unknown|not a valid|unavailable|invalid)"
    r"|no (?:such )?models?\b|(?:unknown|invalid|unsupported|missing) model|model_not_found",
    re.IGNORECASE,
)
_WRONG_PATH = re.compile(
    r"unexpected endpoint|(?:unknown|invalid|no such) (?:endpoint|route|path|url|request url)"
    r"|cannot (?:post|get)\b|no route|404 page|method not allowed|not found: /",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)|maximum context|too many (?:input )?tokens|n_ctx"
    r"|(?:prompt|input|request|decoder prompt)[^.]{0,40}(?:too (?:long|large)|exceeds?|longer)",
    re.IGNORECASE,
)
_QUOTA = re.compile(
    r"insufficient[_ ](?:quota|funds|balance|credit)|exceeded your current quota|credit balance"
    r"|out of credits|not enough credits|billing|payment required|arrears",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"(?:invalid|incorrect|missing|no|wrong|bad|expired) (?:api[ _-]?)?(?:key|token|credentials)\b"
    r"|unauthori[sz]ed|authentication",
    re.IGNORECASE,
)
_FORM = re.compile(
    r"response_format|json_schema|schema|structured|grammar|guided|temperature|max_tokens"
    r"|max_completion_tokens|unsupported parameter|unrecognized",
    re.IGNORECASE,
)


class EndsTheRun(VisionModelError):
    """A refusal that every other ask will meet as well."""


def status_of(reply: Reply) -> int:
    """The status of a reply; for an error inside a success the one it names, else 400."""
    if reply.status >= 300 or not isinstance(reply.data, dict):
        return reply.status
    error = _error_of(reply.data)
    if error is None:
        return reply.status
    for part in (error, reply.data):
        code = part.get("code") or part.get("status") if isinstance(part, dict) else None
        if str(code).isdecimal() and str(code).isascii() and 300 <= int(str(code)[:9]) < 600:
            return int(str(code))
    return 400


def words_of(reply: Reply) -> str:
    """What a server says is wrong, on one line and not too long."""
    words = _words(reply.data) or re.sub(r"<[^<>]*>", " ", reply.text)
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in words).split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def is_about_form(reply: Reply) -> bool:
    """True if the same question may be taken without a schema or limits."""
    if status_of(reply) not in (400, 422):
        return False
    words = words_of(reply)
    if _FORM.search(words):
        return True
    known = (_FEW_PICTURES, _BLIND, _NO_MODEL, _WRONG_PATH, _TOO_LONG, _QUOTA, _KEY)
    # An error inside a success is no refusal of a form, unless it says so.
    return reply.status >= 300 and not any(pattern.search(words) for pattern in known)


def complaint(reply: Reply, server: str, model: str, pictures: int) -> VisionModelError:
    """What to tell about a reply without an answer; an EndsTheRun if it meets every ask.

    Args:
        server: its address as it may be shown.
        pictures: how many were sent.
    """
    status, words = status_of(reply), words_of(reply)
    says = f": {words}" if words else ""
    if reply.status in range(300, 400):
        return EndsTheRun(
            f"{server} redirects to {reply.elsewhere or 'nowhere'}, and pictures are not sent on",
            "If you trust that address, name it by `api`.",
            setting="api",
        )
    if status < 300:
        return VisionModelError(f"the server's answer cannot be read{says}", "Try again.")
    if status == 402 or (status == 429 and _QUOTA.search(words + _code(reply.data))):
        return EndsTheRun(
            f"{server} says that the account's quota is used up{says}",
            "Settle that with its provider.",
        )
    if status in (401, 403) or (status == 400 and _KEY.search(words)):
        return EndsTheRun(
            f"{server} refuses the key (status {status}{says})", "Check $OPENAI_API_KEY."
        )
    if _FEW_PICTURES.search(words) and status != 429:
        advice = "Send one picture a set: `send` composite."
        if pictures < 2:
            advice = "Use a server that takes pictures."
        return EndsTheRun(
            f"{server} does not take {pictures} pictures at once{says}", advice, setting="send"
        )
    if status == 405 or _WRONG_PATH.search(words):
        return EndsTheRun(
            f"{server} speaks no chat completions (status {reply.status}{says})",
            "Check `api`, which usually ends in /v1.",
            setting="api",
        )
    if status == 404 or _NO_MODEL.search(words):
        return EndsTheRun(
            f"{server} knows no model {model}, or speaks no chat completions (status "
            f"{reply.status}{says})",
            "Check the model's name in `captioner`, and `api`, which usually ends in /v1.",
            setting="captioner",
        )
    if pictures and _BLIND.search(words):
        return EndsTheRun(
            f"the model {model} takes no pictures{says}",
            "Name one that sees by `captioner`; llama.cpp needs the mmproj file of such a model.",
            setting="captioner",
        )
    if status == 413 or _TOO_LONG.search(words):
        return VisionModelError(
            f"the question is too long for {model} (status {status}{says})",
            "Send smaller pictures by `longest_side`, or one a set: `send` composite.",
            setting="longest_side",
        )
    advice = "See the server's log."
    if status == 429:
        advice = "Ask for fewer at a time by `together`, or try later."
    kind = "answered with an error" if reply.status < 300 else f"refused with status {status}"
    return VisionModelError(
        f"the server {kind}{says}", advice, setting="together" if status == 429 else None
    )


def _error_of(data: dict[str, Any]) -> Any:
    """The error in a body that holds no answer, or in its first choice; None if there is none."""
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, dict) and first.get("error") and not first.get("message"):
        return first["error"]
    if first is not None:
        return None
    for name in ("error", "errors", "detail", "message", "msg"):
        if data.get(name):
            return data[name]
    return None


def _words(data: Any) -> str:
    """The message in an error of whatever shape."""
    if isinstance(data, str):
        return data
    if isinstance(data, list):
        return _words(data[0]) if data else ""
    if not isinstance(data, dict):
        return ""
    for name in ("error", "message", "detail", "errors", "msg", "error_msg", "reason", "code"):
        if words := _words(data.get(name)):
            return words
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return _words(first.get("error")) if isinstance(first, dict) else ""


def _code(data: Any) -> str:
    error = data.get("error") if isinstance(data, dict) else None
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    return f" {code}" if isinstance(code, str) else ""
