"""How the server is: alive, ready, its figures; the cookie of the printed link."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from iclora import __version__
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here

__all__ = ["router"]

router = APIRouter(tags=["server"], responses=PROBLEMS)


class About(BaseModel):
    """What this server is."""

    iclora: str
    base: str
    workers: list[str]
    kinds: list[str]
    captioners: list[str]
    metrics: list[str]


class State(BaseModel):
    state: str


class Code(Strict):
    code: Annotated[str, Field(max_length=200)]


@router.get("/healthz", response_model=State)
async def healthz() -> dict[str, str]:
    """The loop is alive."""
    return {"state": "alive"}


@router.get("/readyz", response_model=State)
def readyz(server: Here) -> dict[str, str]:
    """503 with the reason until every worker holds its base."""
    why = server.not_ready()
    if why is not None or server.closing:
        raise Refused(
            503, why or "the server goes down", "Ask again soon.", headers={"Retry-After": "5"}
        )
    return {"state": "ready"}


@router.get("/metrics", response_class=Response)
def metrics(server: Here) -> Response:
    """Figures for Prometheus."""
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/login", status_code=303, response_class=RedirectResponse)
def login(server: Here, query: Annotated[Code, Query()]) -> Response:
    """Exchange the code of the printed link, once, for a cookie that opens GETs."""
    value = server.access.redeem(query.code)
    answer = RedirectResponse("./", status_code=303)
    answer.set_cookie(server.access.cookie, value, httponly=True, samesite="strict", path="/")
    return answer


@router.get("/api/v1/about", response_model=About)
def about(server: Here) -> dict[str, Any]:
    """What this server is and offers."""
    from iclora.serve.inputs import SETTINGS

    return {
        "iclora": __version__,
        "base": server.base,
        "workers": list(server.engine.workers),
        "kinds": list(SETTINGS),
        "captioners": list(server.settings.captioner),
        "metrics": list(server.settings.metric),
    }
