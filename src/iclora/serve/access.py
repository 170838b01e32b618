"""Who may call: a token always, names of this server only, nothing that a foreign page can send.

A browser sends a user's cookies along with what any page asks for, and reaches servers on
localhost. So the cookie of the printed link opens GETs alone, every change needs the token in a
header, and Host and Origin must be names of this server (DNS rebinding passes a test that only
compares the two).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from starlette.types import Scope

from iclora.errors import SettingsError
from iclora.files import storage_error
from iclora.files.documents import read_words
from iclora.serve.problems import Refused
from iclora.settings import ServeSettings

__all__ = ["OPEN", "Access", "Client"]

OPEN = frozenset({"/healthz", "/readyz", "/login"})
"""Paths without a token: they tell nothing but that the server runs."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ANY = frozenset({"0.0.0.0", "[::]"})  # noqa: S104 (no name of this server)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class Client:
    """Who sent a request."""

    name: str = ""
    """Of its key; empty for the server's own token, which sees everything."""


class Access:
    """The checks of every request.

    Args:
        home: folder that keeps the token.
        port: that the server really listens on.
    Raises: SettingsError for a bind that others reach without a key of its own; StorageError.
    """

    def __init__(self, settings: ServeSettings, home: Path) -> None:
        self._keys = _read_keys(settings.keys) if settings.keys else {}
        if not (_is_loopback(settings.host) or self._keys or settings.tls_proxy):
            raise SettingsError(
                f"{settings.host} is reached by other machines, and nothing but the token on this "
                "disk would stand between them and the server, unencrypted",
                "Set `keys` to a file of your clients' keys, or `tls_proxy` behind a proxy that "
                "encrypts; else listen on 127.0.0.1.",
                setting="host",
            )
        self.token = _own_token(home / "token")
        """The server's own: who has it may do everything."""
        self.cookie = "iclora-" + hashlib.sha256(str(home).encode()).hexdigest()[:8]
        """Name of the cookie: those of two servers on one host do not replace each other."""
        self.cookie_value = hmac.new(self.token.encode(), b"cookie", "sha256").hexdigest()
        """Opens GETs; it does not tell the token."""
        self.open = set(OPEN)
        """Paths without a token; a page adds those of its files."""
        self._codes: set[str] = set()
        self._lock = threading.Lock()
        bind = f"[{settings.host}]" if ":" in settings.host else settings.host
        own = set() if bind in _ANY else {bind.lower()}
        self._hosts = _LOOPBACK | own | {name.lower() for name in settings.host_name}
        self._origins = {origin.lower().rstrip("/") for origin in settings.allow_origin}

    # -- the printed link -------------------------------------------------------------------------

    def new_code(self) -> str:
        """A code that `redeem` takes once."""
        code = secrets.token_urlsafe(32)
        with self._lock:
            self._codes.add(code)
        return code

    def redeem(self, code: str) -> str:
        """The cookie's value for a code that was not used before. Raises: Refused."""
        with self._lock:
            known = next((c for c in self._codes if _same(c, code)), None)
            if known is None:
                raise Refused(
                    401, "this link was used already, or is none of ours", "Start the server again."
                )
            self._codes.remove(known)
        return self.cookie_value

    # -- each request -----------------------------------------------------------------------------

    def check(self, scope: Scope) -> Client:
        """Who sends a request. Raises: Refused."""
        headers = _headers(scope)
        host = self._check_host(headers)
        self._check_origin(headers, host)
        if scope["method"] not in _SAFE:
            _check_kind(headers)
        if scope["path"] in self.open:
            return Client()
        client = self._by_token(headers)
        if client is None and scope["method"] in _SAFE:
            client = self._by_cookie(headers)
        if client is None:
            raise Refused(
                401,
                "no token, or not one of this server's",
                "Send `Authorization: Bearer TOKEN`; the server prints where its token lies. "
                "A cookie is enough to look, not to change anything.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return client

    def allows(self, origin: str) -> bool:
        """True for the origin of a page that may call from elsewhere."""
        return origin.lower() in self._origins

    def _check_host(self, headers: Mapping[str, str]) -> str:
        host = headers.get("host", "").lower()
        name = re.sub(r":[0-9]{1,5}$", "", host)
        if name not in self._hosts:
            raise Refused(
                421,
                f'this server is not called "{name[:100]}"',
                "Use localhost, or start it with that name as a `host_name`.",
            )
        return host

    def _check_origin(self, headers: Mapping[str, str], host: str) -> None:
        origin = headers.get("origin")
        if origin is None or self.allows(origin):
            return
        if re.sub(r"^https?://", "", origin.lower()) != host:
            raise Refused(
                403,
                f'pages of "{origin[:100]}" may not call this server',
                "Start it with that origin as an `allow_origin`, if they should.",
            )

    def _by_token(self, headers: Mapping[str, str]) -> Client | None:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            return None
        if _same(token, self.token):
            return Client()
        hashed = hashlib.sha256(token.encode()).hexdigest()
        # Every key is compared, so that the time tells nothing of which one is near.
        found = [name for name, known in self._keys.items() if _same(hashed, known)]
        return Client(found[0]) if found else None

    def _by_cookie(self, headers: Mapping[str, str]) -> Client | None:
        for part in headers.get("cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.cookie and _same(value, self.cookie_value):
                return Client()
        return None


def _headers(scope: Scope) -> dict[str, str]:
    """Headers by name. Raises: Refused for one that decides who may call and stands there twice."""
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in found and name in ("host", "origin", "authorization", "content-type"):
            raise Refused(400, f"the header {name} stands there twice", "Send it once.")
        found[name] = value.decode("latin-1")
    return found


def _check_kind(headers: Mapping[str, str]) -> None:
    """Refuse what a form of any page can send without being asked for leave by the browser."""
    kind = headers.get("content-type")
    if kind is not None and kind.split(";")[0].strip().lower() not in (
        "application/json",
        "multipart/form-data",
    ):
        raise Refused(
            415,
            f"a body of type {kind[:100]} is not read",
            "Send JSON, or multipart/form-data with files.",
        )


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _own_token(path: Path) -> str:
    """The server's token: 256 bits, made at the first start, readable by its owner alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}.tmp")
            held = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(held, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(held)
            temporary.replace(path)
        if os.name != "nt" and path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise storage_error(path, error) from error
    token = read_words(path, SettingsError, "token").strip()
    if not token.isascii() or not token.isprintable():
        raise SettingsError(f"the token in {path} is no text of ASCII", "Remove the file.")
    if len(token) < 32:
        raise SettingsError(
            f"the token in {path} is short enough to be guessed", "Remove the file."
        )
    return token


def _read_keys(path: str) -> dict[str, str]:
    """SHA-256 of each client's key by its name. Raises: SettingsError."""

    def refuse(problem: str, advice: str) -> SettingsError:
        return SettingsError(problem, advice, setting="keys")

    found: dict[str, str] = {}
    for number, line in enumerate(read_words(path, refuse, "file of keys").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*([\w.-]{1,64})\s+([0-9a-fA-F]{64})\s*", line)
        if not match or match[1] in found:
            raise refuse(
                f"line {number} of {path} is not a new name and a SHA-256 in hex",
                "Make one with: printf %s KEY | sha256sum",
            )
        found[match[1]] = match[2].lower()
    if not found:
        raise refuse(f"{path} holds no key", "Write a name and the SHA-256 of a key on a line.")
    return found
