"""A browser that has the token gets its cookie, which pictures and the stream of events need."""

from __future__ import annotations

from fastapi import APIRouter, Response

from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS
from iclora.serve.server import Here, Who

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["studio"], responses=PROBLEMS)


@router.post("/session", status_code=204, response_class=Response)
def open_session(server: Here, client: Who) -> Response:
    """Exchange the token for a cookie that opens GETs, as the printed link does."""
    if client:
        raise Refused(403, "the page is for the server's own token", "Use the API with a key.")
    answer = Response(status_code=204)
    access = server.access
    answer.set_cookie(
        access.cookie, access.cookie_value, httponly=True, samesite="strict", path="/"
    )
    return answer
