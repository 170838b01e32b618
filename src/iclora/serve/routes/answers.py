"""What answers have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["PROBLEMS", "Problem", "Strict"]


class Strict(BaseModel):
    """What a client sends; a field that there is not is refused by name."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Problem(BaseModel):
    """What is wrong and what to do next (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

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
    "model": Problem,
    "content": {"application/problem+json": {}},
}
PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 403, 404, 405, 409, 412, 413, 415, 421, 422, 428, 429, 503, 504, 507), _PROBLEM
)
