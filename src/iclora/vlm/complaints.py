"""What a server's refusal means, and the setting that helps: in its own words, at once."""

from __future__ import annotations

import re
from typing import Any

from iclora.errors import VisionModelError
from iclora.vlm.wire import Reply

__all__ = ["EndsTheRun", "complaint", "is_about_form", "pause_of", "status_of", "words_of"]

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
    r"|missing data required for image|no endpoints found that support image|at most 0 image"
    r"|(?:image|vision|multi-?modal|image_url)[^.]{0,40}(?:not|n't|only) (?:be )?(?:support"
    r"|allowed|available|enabled)|unknown (?:part|content) type|image input is not",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model[^.\n]{0,80}(?:not (?:be )?(?:found|exist|loaded|available)|does(?:n't| not) exist"
    r"|is ?n[o']t (?:found|loaded|available|valid)|unknown|not a valid|unavailable|invalid)"
    r"|no (?:such )?models?\b|not a valid model|unable to access model|provider not provided"
    r"|model[^.\n]{0,80}not supported by|model_not_supported|model_not_found"
    r"|\u6a21\u578b\u4e0d\u5b58\u5728|(?:unknown|invalid|unsupported|missing) model",
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
    r"|out of credits|not enough credits|billing|payment required|arrear|good standing",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"(?:invalid|incorrect|missing|no|wrong|bad|expired) (?:api[ _-]?)?(?:key|token|credentials)\b"
    r"|(?:key|token) (?:is )?(?:not valid|invalid|expired|incorrect)|unauthori[sz]ed|authentication"
    r"|location is not supported|unsupported_country|\u4ee4\u724c|\u5bc6\u94a5",
    re.IGNORECASE,
)
_FLAGGED = re.compile(
    r"flagged|moderation|content[ _](?:policy|management|filter)|safety system|responsible ?ai"
    r"|prohibited[ _]content|inappropriate|\u654f\u611f|\u8fdd\u89c4|\u4e0d\u5f53",
    re.IGNORECASE,
)
"""A filter has seen something in this set; others may pass."""
_WAIT = re.compile(
    r"(?:retry|again|wait)(?: again)? (?:in|after|for) "
    r"((?:[0-9]+(?:\.[0-9]+)? ?(?:ms|s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)(?![a-z])"
    r"[ ,]*)+)",
    re.IGNORECASE,
)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
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
    page = re.sub(r"<(script|style)\b.*?(?:</\1>|$)", " ", reply.text, flags=re.DOTALL | re.I)
    words = _words(reply.data) or re.sub(r"<[^<>]*>", " ", page)
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in words).split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def is_about_form(reply: Reply) -> bool:
    """True if the same question may be taken without a schema or limits."""
    if status_of(reply) not in (400, 422):
        return False
    words = words_of(reply)
    if _FORM.search(words):
        return True
    known = (_FLAGGED, _FEW_PICTURES, _BLIND, _NO_MODEL, _WRONG_PATH, _TOO_LONG, _QUOTA, _KEY)
    # An error inside a success is no refusal of a form, unless it says so.
    said = words + _code(reply.data)
    return reply.status >= 300 and not any(pattern.search(said) for pattern in known)


def pause_of(reply: Reply) -> float | None:
    """Seconds a server asks to wait, in a header or in its words; None if it does not."""
    if reply.pause is not None:
        return reply.pause
    if not (found := _WAIT.search(words_of(reply))):
        return None
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)", found[1], re.IGNORECASE)
    return sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)


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
        return _of_no_answer(reply, server, says)
    said = words + _code(reply.data)
    if status not in (401, 402) and _FLAGGED.search(said):
        return VisionModelError(
            f"a filter of the server refuses this set{says}",
            "Look at the set's pictures, or use another `captioner`.",
            setting="captioner",
        )
    return (
        _of_account(reply, server, said, says)
        or _of_model(reply, server, model, pictures)
        or _of_server(status, reply, says)
    )


def _of_no_answer(reply: Reply, server: str, says: str) -> VisionModelError:
    """Of a success in which no answer can be found."""
    other = isinstance(reply.data, dict) and {"output", "message", "response"} & set(reply.data)
    if other or (reply.data is None and reply.text.lstrip().startswith("<")):
        what = "a web page" if reply.data is None else "in another form"
        return EndsTheRun(
            f"{server} speaks no chat completions; it answers {what}{says}",
            "Check `api`, which usually ends in /v1.",
            setting="api",
        )
    if isinstance(reply.data, dict) and reply.data.get("choices") == []:
        return VisionModelError(
            "the server's answer holds nothing, as of filters",
            "Look at the set's pictures, or use another `captioner`.",
            setting="captioner",
        )
    return VisionModelError(f"the server's answer cannot be read{says}", "Try again.")


def _of_account(reply: Reply, server: str, said: str, says: str) -> VisionModelError | None:
    """Of a key that is refused, or an account that may ask no more."""
    status = status_of(reply)
    # Some call every limit a quota, also one of a minute, and say how long it lasts.
    soon = status == 429 and _WAIT.search(said) and "insufficient" not in said
    if status == 402 or (status < 500 and not soon and _QUOTA.search(said)):
        return EndsTheRun(
            f"{server} says that the account's quota is used up{says}",
            "Settle that with its provider.",
        )
    if status in (401, 403) or (status == 400 and _KEY.search(said)):
        return EndsTheRun(
            f"{server} refuses the key (status {status}{says})",
            "Check $OPENAI_API_KEY, and what its account may use.",
        )
    return None


def _of_model(reply: Reply, server: str, model: str, pictures: int) -> VisionModelError | None:
    """Of a model that is not there, sees nothing, or cannot take what was sent."""
    status, words = status_of(reply), words_of(reply)
    said, says = words + _code(reply.data), f": {words}" if words else ""
    if pictures and _BLIND.search(words):
        return EndsTheRun(
            f"the model {model} takes no pictures{says}",
            "Name one that sees by `captioner`; llama.cpp needs the mmproj file of such a model.",
            setting="captioner",
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
    if status == 404 or _NO_MODEL.search(said):
        return EndsTheRun(
            f"{server} knows no model {model}, or speaks no chat completions (status "
            f"{reply.status}{says})",
            "Check the model's name in `captioner`, and `api`, which usually ends in /v1.",
            setting="captioner",
        )
    if status == 413 or _TOO_LONG.search(words):
        return VisionModelError(
            f"the question is too long for {model} (status {status}{says})",
            "Send smaller pictures by `longest_side`, or one a set: `send` composite.",
            setting="longest_side",
        )
    return None


def _of_server(status: int, reply: Reply, says: str) -> VisionModelError:
    """Of what only the server's own words explain."""
    kind = "answered with an error" if reply.status < 300 else f"refused with status {status}"
    advice = "See the server's log."
    if status == 429:
        advice = "Ask for fewer at a time by `together`, or try later."
    elif status >= 500:
        advice = "Try again later; if the server is yours, see its log."
    return VisionModelError(
        f"the server {kind}{says}", advice, setting="together" if status == 429 else None
    )


def _error_of(data: dict[str, Any]) -> Any:
    """The error in a body that holds no answer, or in its first choice; None if there is none."""
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, dict) and first.get("error"):
        message = first.get("message")
        if not (isinstance(message, dict) and message.get("content")):
            return first["error"]
    if first is not None:
        return None
    for name in ("error", "errors", "detail", "message", "msg"):
        found = data.get(name)
        if found and not (isinstance(found, dict) and "content" in found):  # an answer elsewhere
            return found
    return None


def _words(data: Any) -> str:
    """The message in an error of whatever shape."""
    if isinstance(data, str):
        return data
    if isinstance(data, list):
        return _words(data[0]) if data else ""
    if not isinstance(data, dict):
        return ""
    inner = data.get("metadata")
    raw = inner.get("raw") if isinstance(inner, dict) else None
    for name in ("error", "message", "detail", "errors", "msg", "error_msg", "reason", "code"):
        if words := _words(data.get(name)):
            # What a server in between was told by the one behind it.
            return f"{words}: {raw}" if isinstance(raw, str) and raw else words
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return _words(first.get("error")) if isinstance(first, dict) else ""


def _code(data: Any) -> str:
    error = data.get("error") if isinstance(data, dict) else None
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    return f" {code}" if isinstance(code, str) else ""
