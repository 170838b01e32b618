"""What an answer says that is none: application/problem+json (RFC 9457) with what to do next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from iclora.errors import IcloraError, StorageError
from iclora.serve.inputs import SETTINGS
from iclora.serve.jobs import Busy, Full, NoSuchJob
from iclora.settings.findings import plain

__all__ = ["Refused", "problem_of", "say_problems"]

_log = logging.getLogger("iclora.serve")


class Refused(IcloraError):
    """A request that is refused with a status of its own."""

    def __init__(
        self,
        status: int,
        problem: str,
        advice: str,
        setting: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(problem, advice, setting)
        self.status = status
        self.headers = dict(headers or {})


def problem_of(
    error: IcloraError, request_id: str, hide: Callable[[str], str] = str
) -> JSONResponse:
    """The answer for an error that its reader can fix.

    Args:
        hide: takes the places on this machine out of a text.
    """
    status, headers = 422, dict(getattr(error, "headers", {}))
    if isinstance(error, Refused):
        status = error.status
    elif isinstance(error, NoSuchJob):
        status = 404
    elif isinstance(error, Busy):
        status = 409
    elif isinstance(error, Full):
        status, headers = 429, {"Retry-After": str(error.retry_after)}
    elif isinstance(error, StorageError):
        status = 507
    code = type(error).__name__
    problem, advice = hide(error.problem), hide(error.advice)
    return _answer(status, code, problem, advice, error.setting, request_id, headers)


def _answer(
    status: int,
    code: str,
    problem: str,
    advice: str,
    setting: str | None,
    request_id: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": problem,
        "code": code,
        "problem": problem,
        "advice": advice,
        "setting": setting,
        "request_id": request_id,
        # As clients of OpenAI's API read it.
        "error": {"message": f"{problem}\n{advice}", "type": code, "param": setting, "code": code},
    }
    return JSONResponse(
        content, status, headers=dict(headers or {}), media_type="application/problem+json"
    )


def say_problems(app: FastAPI) -> None:
    """Answer every error of an app as a problem, also what nobody expected."""

    async def fixable(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, IcloraError)
        return problem_of(error, _id(request), request.app.state.server.catalog.hide)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        problem, setting = _findings(error.errors())
        return _answer(
            422,
            "SettingsError",
            problem,
            "Fix this and send it again; /openapi.json tells what there is.",
            setting,
            _id(request),
        )

    async def spoken(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _answer(
            error.status_code,
            "HTTPError",
            f"{request.method} {request.url.path[:200]}: {error.detail}",
            _ADVICE.get(error.status_code, "See /openapi.json."),
            None,
            _id(request),
            error.headers,
        )

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("request %s failed", _id(request), exc_info=error)
        return _answer(
            500,
            "InternalError",
            "something went wrong that should not",
            "Look for the request's id in the server's log, and report it.",
            None,
            _id(request),
        )

    app.add_exception_handler(IcloraError, fixable)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, spoken)
    app.add_exception_handler(Exception, unexpected)


_ADVICE = {
    400: "Send well-formed JSON, or a well-formed form with its files.",
    404: "See /openapi.json for the paths that there are.",
    405: "See /openapi.json for the methods that there are.",
    413: "Send at most 64 MB at once, and pictures of at most 20 MB.",
}


def _id(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def _findings(errors: Sequence[Any]) -> tuple[str, str | None]:
    """What is wrong with a request, in one line, and the first setting that it concerns."""
    found: dict[str, list[str]] = {}
    for item in errors:
        names = [str(part) for part in item["loc"][1:]]
        if item["type"] == "json_invalid":
            return f"the body is not JSON: {item['ctx']['error']}", None
        if names[:1] and names[0] in SETTINGS:  # "generate", "input", "steps"
            names = names[2:] or names[1:] if names[1:2] == ["input"] else names[1:]
        place = f"`{names[0]}`: " if names else ""
        unknown = item["type"] == "extra_forbidden"
        said = "there is no such setting" if unknown else plain(item)
        found.setdefault(place, []).append(said)
    listed = [f"{place[:200]}{' or '.join(dict.fromkeys(said))}" for place, said in found.items()]
    first = next((place.strip("`: ") for place in found if place), None)
    return f"invalid setting{'s' * (len(listed) > 1)}: {'; '.join(listed[:10])}", first
