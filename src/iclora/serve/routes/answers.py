"""What answers have in common."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from iclora.settings import Described

__all__ = ["PROBLEMS", "Problem", "Strict"]


class Strict(Described):
    """What a client sends; a field that there is not is refused by name."""

    model_config = ConfigDict(extra="forbid", defer_build=False)  # FastAPI warns else

    @classmethod
    def __pydantic_init_subclass__(cls, **more: Any) -> None:
        super().__pydantic_init_subclass__(**more)
        cls.model_rebuild(force=True)  # with descriptions


class Problem(Described):
    """What is wrong and what to do next (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """the kind of error, such as SettingsError"""
    problem: str
    """what is wrong and why"""
    advice: str
    """what to do next"""
    setting: str | None
    """the field of the input that it concerns"""
    request_id: str


_PROBLEM: dict[str, Any] = {
    "description": "A problem: what is wrong, and what to do next",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    **dict.fromkeys((400, 401, 403, 404, 405, 409, 412, 413, 415, 421, 428, 429), _PROBLEM),
    # FastAPI builds a model for each status of each route that names one. One names it, so that
    # the schema has it; the others point there: a server starts a fifth sooner.
    422: {**_PROBLEM, "model": Problem, "content": {"application/problem+json": {}}},
    **dict.fromkeys((503, 504, 507), _PROBLEM),
}
