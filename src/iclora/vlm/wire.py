"""Requests to a server that is not trusted.

What comes back is read to a bound, no redirect is followed, since pictures must not travel on, and
everything the server says is freed of the key and of what an address may hide, before anybody else
sees it.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import socket
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from iclora.errors import VisionModelError
from iclora.files.documents import parse_json
from iclora.vlm.events import are_events, events_of, from_events

__all__ = ["Broken", "Late", "Reply", "Unreadable", "Wire", "shown"]

_LARGEST = 16 << 20
"""Bytes of a body, packed or not; an answer has some thousands."""
_LONGEST = 100_000
"""Characters in which escaped secrets are looked for, 1 s a million; no longer text is shown."""
_CONNECT = 20.0
"""Seconds until there is a connection."""
_USUAL = re.compile(
    r"(?:api|openai|compat(?:ible)?(?:-mode)?|inference|serve|engines?|models?|chat|completions"
    r"|llm|proxy|gateway|paas|deployments|v\d{1,2}(?:beta\d?|alpha)?)?",
    re.IGNORECASE,
)
"""Parts of a path that are surely no key."""
_SECRET_NAME = re.compile("key|token|secret|auth|sig|pass", re.IGNORECASE)


class Late(Exception):
    """No answer within the time allowed."""


class Broken(Exception):
    """There is no connection, or it broke off."""


class Unreadable(Exception):
    """A body that is too large, too deep or packed in a way nobody asked for."""


@dataclass(frozen=True)
class Reply:
    """A server's answer, freed of secrets."""

    status: int
    data: Any
    """Its body as JSON; None if it is none."""
    text: str
    """The beginning of its body."""
    pause: float | None = None
    """Seconds it asks to wait before the next request."""
    elsewhere: str = ""
    """The address it redirects to, as it may be shown."""


class Wire:
    """A client of one server.

    Args:
        url: its base URL.
        key: sent as a bearer token; may be empty.
        timeout: seconds for one answer, whole.
    Raises: VisionModelError for anything but a base URL.
    """

    def __init__(self, url: str, key: str, timeout: float) -> None:
        url = url.strip()
        _refuse_odd(url)
        self.shown = shown(url)
        self._timeout = timeout
        parts = urlsplit(url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        host = parts.netloc.rpartition("@")[2]
        self._url = urlunsplit((parts.scheme, host, path + "/{}", parts.query, ""))
        self._secrets = _patterns([key, *_secrets_of(url)])
        self._headers = {
            "Authorization": _basic(url) or f"Bearer {key or 'none'}",
            "Content-Type": "application/json",
            # Nothing to unpack, where a server heeds it.
            "Accept-Encoding": "identity",
            "User-Agent": "iclora",
        }
        for name, variable in (
            ("OpenAI-Organization", "OPENAI_ORG_ID"),
            ("OpenAI-Project", "OPENAI_PROJECT_ID"),
        ):
            value = os.environ.get(variable, "").strip()
            if value and value.isascii() and value.isprintable():
                self._headers[name] = value
        # The usual opener less its redirects, and less its view that a status is an exception.
        self._opener = OpenerDirector()
        for handler in (ProxyHandler(), _Http(), _Https()):
            self._opener.add_handler(handler)

    def free(self, text: str) -> str:
        """A text without the key and without what the address hides."""
        for pattern in self._secrets if len(text) <= _LONGEST else self._secrets[:1]:
            text = pattern.sub("***", text)
        return text

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        """Send a JSON body. Raises: Late, Broken, Unreadable."""
        late = time.monotonic() + self._timeout
        url = self._url.replace("{}", path, 1)
        try:
            request = Request(url, json.dumps(body).encode(), self._headers)  # noqa: S310
            with self._opener.open(request, timeout=self._timeout) as response:
                raw = bytearray()
                while chunk := response.read1(1 << 16):
                    raw += chunk
                    if len(raw) > _LARGEST:
                        raise Unreadable(f"it is larger than {_LARGEST >> 20} MB")
                    if time.monotonic() > late:
                        raise Late
                if time.monotonic() > late:
                    raise Late
                if response.length:
                    raise Broken("it broke off")
        except TimeoutError:
            raise Late from None
        except (OSError, HTTPException, ValueError) as error:
            if time.monotonic() > late:  # Cut off by us.
                raise Late from None
            reason = getattr(error, "reason", None) or error
            raise Broken(self.free(str(reason))[:200] or type(error).__name__) from None
        headers = response.headers
        text = _unpacked(bytes(raw), headers.get("Content-Encoding", "")).decode("utf-8", "replace")
        elsewhere = headers.get("Location", "")
        return Reply(
            response.status,
            self._freed(_parsed(text)),
            self.free(text[:2000]),
            _pause(headers.get("Retry-After", "")),
            self.free(shown(elsewhere)) if elsewhere else "",
        )

    def _freed(self, value: Any) -> Any:
        """A JSON value with every string free of secrets, also those that were escaped."""
        if isinstance(value, str):
            return self.free(value)
        if isinstance(value, list):
            return [self._freed(item) for item in value]
        if isinstance(value, dict):
            return {self.free(key): self._freed(item) for key, item in value.items()}
        return value


class _Prompt:
    """A connection that is made soon or not at all; what comes over it may take longer."""

    def connect(self: Any) -> None:
        self.patience, self.timeout = self.timeout, min(self.timeout, _CONNECT)
        super().connect()  # type: ignore[misc]
        self.sock.settimeout(self.patience)

    def getresponse(self: Any) -> HTTPResponse:
        # A socket's patience begins again with every byte, and headers may come one by one.
        cut = threading.Timer(self.patience, _cut_off, [self.sock])
        cut.daemon = True
        cut.start()
        try:
            found: HTTPResponse = super().getresponse()  # type: ignore[misc]
            return found
        finally:
            cut.cancel()


def _cut_off(connection: socket.socket) -> None:
    with suppress(OSError, ValueError):
        connection.shutdown(socket.SHUT_RDWR)


class _HttpConnection(_Prompt, HTTPConnection):
    pass


class _HttpsConnection(_Prompt, HTTPSConnection):
    pass


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_HttpsConnection, req)


def shown(url: str) -> str:
    """A URL as it may be shown: no user, no query, and of its path what is surely no key."""
    scheme, mark, rest = url.rpartition("://")
    scheme = scheme.rpartition("@")[2][-10:]
    host, slash, path = re.split(r"[?#]", rest.strip())[0].partition("/")
    host = host.rpartition("@")[2]
    if "@" in path:  # A password with a slash.
        host, slash, path = path.rpartition("@")[2].partition("/")
    parts = [p if _USUAL.fullmatch(p) else "..." for p in path.split("/")]
    text = f"{scheme}{mark}{host}{slash}{'/'.join(parts)}"
    return "".join(sign for sign in text if sign.isprintable())[:200]


def _refuse_odd(url: str) -> None:
    """Raises: VisionModelError for anything but a base URL."""
    advice = "It looks like http://localhost:8000/v1."
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    why = ""
    if "://" not in url:
        why = ": it does not begin with http:// or https://"
        if re.fullmatch(r"[\w.:@-]+(?:/.*)?", url):
            here = re.match(r"(?:.*@)?(?:localhost|127\.|10\.|192\.168\.|\[)", url)
            advice = f"Write {'http' if here else 'https'}://{shown(url)}."
    elif not url.isprintable() or " " in url:
        good = False
    if not good or why:
        raise VisionModelError(
            f'"{shown(url)}" is not the base URL of a server{why}', advice, setting="api"
        )


def _secrets_of(url: str) -> list[str]:
    """What an address holds that is not shown."""
    parts = urlsplit(url)
    hidden = [parts.password or "", parts.fragment]
    if parts.username:
        hidden += [_basic(url).partition(" ")[2], "" if parts.password else parts.username]
    for pair in parts.query.split("&"):
        name, mark, value = pair.partition("=")
        if _looks_secret(value if mark else name) or _SECRET_NAME.search(name):
            hidden.append(value if mark else name)
    return hidden + [p for p in parts.path.split("/") if _looks_secret(p)]


def _looks_secret(part: str) -> bool:
    """True for what no plain word is, as a word would go missing in captions."""
    return len(part) >= 20 or bool(re.search(r"\d", part))


def _basic(url: str) -> str:
    """The header for a user and password in an address; nothing without."""
    parts = urlsplit(url)
    if not parts.username:
        return ""
    both = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(both.encode()).decode()}"


def _patterns(secrets: list[str]) -> list[re.Pattern[str]]:
    """Find secrets as they are, then in any spelling; "none" or "ollama" are too short for one."""
    found = set()
    for secret in secrets:
        if len(secret) >= 8 or secret.startswith("sk-"):
            found |= {secret, unquote(secret), json.dumps(secret)[1:-1]}
            found.add(base64.b64encode(secret.encode()).decode().rstrip("="))
    ordered = sorted(found, key=len, reverse=True)
    spelt = ["".join(map(_spellings, secret)) for secret in ordered]
    both = (map(re.escape, ordered), spelt) if ordered else ()
    return [re.compile("|".join(forms), re.IGNORECASE) for forms in both]


def _spellings(sign: str) -> str:
    """A pattern of a sign as itself and escaped: of JSON, HTML, an address, a program's text."""
    code = ord(sign)
    named = [html.escape(sign), quote(sign, safe=""), sign]
    coded = rf"\\+(?:u{code:04x}|u\{{{code:x}\}}|x{code:02x})|&#(?:0*{code}|x0*{code:x});?"
    return rf"(?:{'|'.join(map(re.escape, dict.fromkeys(named)))}|{coded}|%{code:02x})"


def _unpacked(raw: bytes, how: str) -> bytes:
    """A body as it was before it was packed. Raises: Unreadable, also above the bound."""
    if how.strip().lower() in ("", "identity"):
        return raw
    if how.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        raise Unreadable("it is packed in a way that was not asked for")
    try:
        unpacker = zlib.decompressobj(47)
        data = unpacker.decompress(raw, _LARGEST + 1)
    except zlib.error:
        raise Unreadable("it cannot be unpacked") from None
    if len(data) > _LARGEST:
        raise Unreadable(f"it is larger than {_LARGEST >> 20} MB once unpacked")
    return data


def _parsed(text: str) -> Any:
    """A body as JSON; None if it is none. Raises: Unreadable for what no answer holds, as nests."""
    if are_events(text):
        return from_events([_parsed(data) for data in events_of(text)])
    try:
        return parse_json(text, "it", VisionModelError, foreign=True)
    except VisionModelError as error:
        if isinstance(error.__cause__, ValueError):
            return None
        raise Unreadable(error.problem) from None


def _pause(value: str) -> float | None:
    """Seconds of a Retry-After, which is a number or a date."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, OSError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
