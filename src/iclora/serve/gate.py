"""What every request passes before its route: an id, the checks of `access`, a line in the log."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iclora.serve.access import Access
from iclora.serve.problems import Refused, problem_of
from iclora.serve.server import Server

__all__ = ["MOST_BYTES", "Gate"]

MOST_BYTES = 64 * 10**6
"""Of one request."""

_log = logging.getLogger("iclora.serve.access")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_TOO_LONG = Refused(413, "the request has more than 64 MB", "Send pictures one by one.")


class Gate:
    """ASGI middleware; the app's `state.server` says who may call."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # No route speaks websocket.
            await send({"type": "websocket.close", "code": 1008})
            return
        server: Server = scope["app"].state.server
        start, request_id = time.monotonic(), _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        cross = _cross_origin(scope, server.access)
        status, length, over = 500, 0, _length(scope) > MOST_BYTES

        async def counted() -> Message:
            nonlocal length, over
            message = await receive()
            length += len(message.get("body", b""))
            if length > MOST_BYTES:
                over = True
                raise _TOO_LONG
            return message

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, **cross, "X-Request-Id": request_id}.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        async def answered(message: Message) -> None:
            if not over:  # Else the app's own answer is about a body that was cut.
                await marked(message)

        try:
            if scope["method"] == "OPTIONS" and cross:
                await Response(status_code=204)(scope, receive, marked)
                return
            state["client"] = server.access.check(scope).name
            if server.closing and scope["path"] not in server.access.open:
                raise Refused(
                    503, "the server goes down", "Ask again soon.", headers={"Retry-After": "10"}
                )
            if not over:
                await self._app(scope, counted, answered)
            if over:
                raise _TOO_LONG
        except Refused as refused:
            await problem_of(refused, request_id)(scope, receive, marked)
        finally:
            seconds = time.monotonic() - start
            route = getattr(scope.get("route"), "path", "none")
            server.metrics.http.labels(route, status).observe(seconds)
            line = {
                "id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 1),
            }
            _log.info("%s", json.dumps(line))


def _cross_origin(scope: Scope, access: Access) -> dict[str, str]:
    """Headers for a page of another origin that may call."""
    origin = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"origin"), "")
    if not origin or not access.allows(origin):
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, If-Match"
        ", If-None-Match, Last-Event-ID, Prefer",
        "Access-Control-Expose-Headers": "ETag, Location, Retry-After, X-Request-Id",
        "Access-Control-Max-Age": "600",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Vary": "Origin",
    }


def _length(scope: Scope) -> int:
    """What a request says of its length; 0 if it says nothing, and its bytes are counted."""
    length = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
    return int(length[:20]) if length.isdigit() else 0


def _request_id(scope: Scope) -> str:
    """The id that a proxy in front has given, if it is a plain word; else a new one."""
    given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
    return given if re.fullmatch(r"[A-Za-z0-9_-]{8,64}", given) else secrets.token_hex(8)
