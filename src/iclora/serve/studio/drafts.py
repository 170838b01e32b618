"""What somebody writes on the page and has not queued yet, kept with the served folder.

A browser's own storage is lost with its profile, and another machine does not have it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from iclora.errors import SettingsError
from iclora.files import write_text
from iclora.files.documents import read_json
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here, Who

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["studio"], responses=PROBLEMS)

_Name = Annotated[str, Path(pattern=r"^[a-z]{1,20}$")]


class Draft(Strict):
    version: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """counts what was written; of two tabs the last one to write stays"""
    values: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)


@router.get("/drafts/{name}", response_model=Draft)
def get_draft(server: Here, client: Who, name: _Name) -> dict[str, Any]:
    """A draft as it was last written; empty if there is none."""
    path = server.catalog.home / "drafts" / f"{client or 'own'}-{name}.json"
    if not path.is_file():
        return {}
    return Draft.model_validate(read_json(path, SettingsError, "draft")).model_dump()


@router.put("/drafts/{name}", response_model=Draft)
def put_draft(server: Here, client: Who, name: _Name, draft: Draft) -> dict[str, Any]:
    """Keep a draft."""
    if len(draft.model_dump_json()) > 400_000:
        raise SettingsError("this draft has more than 400 KB", "Shorten it.")
    path = server.catalog.home / "drafts" / f"{client or 'own'}-{name}.json"
    write_text(path, draft.model_dump_json())
    return draft.model_dump()
