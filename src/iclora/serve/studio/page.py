"""The files of the page, as they lie in static/; our own modules go out in one script (`join`).

Nothing is built and nothing comes from elsewhere. Scripts are ours or vendored ones; the only
inline script is the import map, which the policy lets through by a nonce of the answer.

Files lie below a name made of their contents, so that a browser asks for each once: a page that is
reloaded through a tunnel asks for nothing but itself.
"""

from __future__ import annotations

import gzip
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response

from iclora.files import digest_each
from iclora.serve.studio.join import join

__all__ = ["PATHS", "read_files", "router"]

router = APIRouter(include_in_schema=False)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)


_ENTRY = "main.js"
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _File:
    data: bytes
    packed: bytes
    """By gzip."""
    kind: str
    etag: str


def read_files() -> dict[str, _File]:
    """Every file of the page that a browser asks for, by its path below static/.

    The page's own modules are one of them, under the name of the one that a browser begins with.
    """
    found: dict[str, _File] = {}
    modules: dict[str, str] = {}

    def add(name: str, data: bytes, kind: str) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        found[name] = _File(data, gzip.compress(data, mtime=0), kind, etag)

    def walk(place: Traversable, prefix: str) -> None:
        for each in place.iterdir():
            name = f"{prefix}{each.name}"
            if each.is_dir():
                walk(each, f"{name}/")
            elif name.endswith(".js"):
                modules[name] = each.read_text(encoding="utf-8")
            elif kind := _TYPES.get(f".{name.rpartition('.')[2]}"):
                add(name, each.read_bytes(), kind)

    walk(files("iclora.serve.studio") / "static", "")
    add(_ENTRY, join(modules, _ENTRY).encode(), _TYPES[".js"])
    return found


_FILES = read_files()
_BELOW = f"page/{digest_each(file.data for _, file in sorted(_FILES.items()))[:16]}/"
PATHS = frozenset({"/"} | {f"/{_BELOW}{name}" for name in _FILES if name != "index.html"})
"""Paths that need no token: code that everybody may read, and nothing of the served folder."""


@router.get("/")
def index() -> Response:
    """The page."""
    nonce = secrets.token_urlsafe(16)
    text = _FILES["index.html"].data.decode().replace("{{nonce}}", nonce)
    text = text.replace('"page/', f'"{_BELOW}').replace('"./page/', f'"./{_BELOW}')
    headers = {"Content-Security-Policy": _POLICY.format(nonce=nonce), "Cache-Control": "no-cache"}
    return Response(text, media_type=_TYPES[".html"], headers=headers)


def _sender(file: _File) -> Callable[[Request], Response]:
    headers = {"ETag": file.etag, "Cache-Control": _FOREVER, "Vary": "Accept-Encoding"}

    def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(file.data, media_type=file.kind, headers=headers)
        packed = {**headers, "Content-Encoding": "gzip"}
        return Response(file.packed, media_type=file.kind, headers=packed)

    return send


for _name, _file in _FILES.items():
    if _name != "index.html":
        router.add_api_route(f"/{_BELOW}{_name}", _sender(_file), methods=["GET"])
