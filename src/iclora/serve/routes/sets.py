"""Made sets: pages of them, their pictures, stars, the trash, and making one again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field

from iclora.errors import SettingsError
from iclora.files.documents import read_json
from iclora.serve.assets import thumbnail
from iclora.serve.index import MadeSet, cursor_of
from iclora.serve.inputs import INPUTS, Ask
from iclora.serve.jobs import NoSuchJob
from iclora.serve.packing import packed
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.routes.jobs import ShownJob, show, submit
from iclora.serve.server import Here, Server, Who

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["sets"], responses=PROBLEMS)

_FOREVER = "private, max-age=31536000, immutable"
_Match = Annotated[str | None, Header(max_length=1000)]


class ShownSet(BaseModel):
    """A made set; its pictures are composite.png, panels/N.png and thumb.webp below it."""

    id: str
    made: float
    """seconds since 1970"""
    prompt: str
    recipe: str
    adapter: str
    """by its file's name, several joined by +; empty for the base alone"""
    seed: str
    """of the first panel, as text: it has 64 bits"""
    panels: int
    star: bool
    note: str
    trashed: bool


class SetPage(BaseModel):
    """Sets, the newest first."""

    sets: list[ShownSet]
    cursor: str | None
    """of the next page; null at the end"""


class SetQuery(Strict):
    q: Annotated[str, Field(max_length=500)] = ""
    """words that prompt, recipe, adapter, seed or note hold"""
    recipe: Annotated[str, Field(max_length=201)] = ""
    """name of the recipe"""
    adapter: Annotated[str, Field(max_length=201)] = ""
    """id of an adapter, alone or with others"""
    starred: bool = False
    trashed: bool = False
    cursor: Annotated[str | None, Field(max_length=60)] = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class PackQuery(Strict):
    id: Annotated[list[Annotated[str, Field(max_length=100)]], Field(min_length=1, max_length=200)]
    """of each set"""


class SetChange(Strict):
    star: bool | None = None
    note: Annotated[str | None, Field(max_length=2000)] = None


def _shown(found: MadeSet) -> dict[str, Any]:
    names = ("id", "prompt", "recipe", "adapter", "seed", "panels", "star", "note", "trashed")
    return {name: getattr(found, name) for name in names} | {"made": found.made / 1e9}


@router.get("/sets", response_model=SetPage)
def list_sets(server: Here, client: Who, query: Annotated[SetQuery, Query()]) -> dict[str, Any]:
    """Made sets, the newest first: those of jobs and of the command line."""
    if query.cursor is None:
        server.sets.look()
    found = server.sets.page(
        client,
        query.q,
        recipe=query.recipe,
        adapter=query.adapter,
        starred=query.starred,
        trashed=query.trashed,
        after=query.cursor,
        limit=query.limit,
    )
    return {
        "sets": [_shown(each) for each in found],
        "cursor": cursor_of(found[-1]) if len(found) == query.limit else None,
    }


@router.get("/sets.zip", response_class=StreamingResponse)
def get_sets_packed(
    server: Here, client: Who, query: Annotated[PackQuery, Query()]
) -> StreamingResponse:
    """Sets in one zip: composites, panels and requests, a folder each."""
    found = [server.sets.get(each, client) for each in dict.fromkeys(query.id)]
    sets = {
        f"{n:03d}-{each.id[:8]}": (each.path, _request(each)) for n, each in enumerate(found, 1)
    }
    name = f"set-{found[0].id[:8]}" if len(found) == 1 else f"{len(found)}-sets"
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(packed(sets), media_type="application/zip", headers=headers)


@router.get("/sets/{name}", response_model=ShownSet)
def get_set(server: Here, client: Who, name: str, response: Response) -> dict[str, Any]:
    """One made set."""
    found = server.sets.get(name, client)
    response.headers["ETag"] = found.etag
    return _shown(found)


@router.patch("/sets/{name}", response_model=ShownSet)
def change_set(
    server: Here,
    client: Who,
    name: str,
    change: SetChange,
    response: Response,
    if_match: _Match = None,
) -> dict[str, Any]:
    """Give a set a star or a note. 412 if it has changed since If-Match."""
    found = _matched(server, client, name, if_match)
    now = server.sets.mark(found, star=change.star, note=change.note)
    _tell(server, found)
    response.headers["ETag"] = now.etag
    return _shown(now)


@router.delete("/sets/{name}", response_model=ShownSet)
def trash_set(server: Here, client: Who, name: str, if_match: _Match = None) -> dict[str, Any]:
    """Move a set to the trash; `restore` brings it back."""
    found = _matched(server, client, name, if_match)
    now = server.sets.trash(found)
    _tell(server, found)
    return _shown(now)


@router.post("/sets/{name}/restore", response_model=ShownSet)
def restore_set(server: Here, client: Who, name: str) -> dict[str, Any]:
    """Bring a set back from the trash."""
    now = server.sets.restore(server.sets.get(name, client))
    _tell(server, now)
    return _shown(now)


@router.post("/sets/{name}/reproduce", status_code=202, response_model=ShownJob)
def reproduce_set(server: Here, client: Who, name: str, response: Response) -> dict[str, Any]:
    """Queue a job that makes the same set again, or says what has changed since."""
    found = server.sets.get(name, client)
    ask = Ask(
        kind="generate", input=INPUTS["generate"].model_validate({"request": found.id}), exact=True
    )
    job, _ = submit(server, ask, client)
    response.headers["Location"] = f"../../jobs/{job.id}"
    return show(server, job)


@router.get("/sets/{name}/request.json")
def get_request(server: Here, client: Who, name: str) -> dict[str, Any]:
    """Everything that decides the set's pixels, without this machine's folders."""
    return _request(server.sets.get(name, client))


def _request(made: MadeSet) -> dict[str, Any]:
    found: dict[str, Any] = read_json(made.path / "request.json", SettingsError, "request")
    for each in (found, *(found.get("beside") or ())):
        for key in ("base", "adapter", "file"):
            if each.get(key) and Path(str(each[key])).is_absolute():
                each[key] = Path(str(each[key])).name
    return found


@router.get("/sets/{name}/composite.png", response_class=FileResponse)
def get_composite(server: Here, client: Who, name: str, if_none_match: _Match = None) -> Response:
    """All panels in one picture."""
    return _picture(server, client, name, "composite", if_none_match)


@router.get("/sets/{name}/panels/{number}.png", response_class=FileResponse)
def get_panel(
    server: Here, client: Who, name: str, number: int, if_none_match: _Match = None
) -> Response:
    """One panel, counted from 1."""
    return _picture(server, client, name, f"panel-{number}", if_none_match)


@router.get("/sets/{name}/thumb.webp", response_class=FileResponse)
def get_thumb(server: Here, client: Who, name: str) -> Response:
    """A small picture of the whole set, made once."""
    found = server.sets.get(name, client)
    path = server.catalog.home / "thumbs" / f"{found.id}-{found.made}.webp"
    if not path.is_file():
        thumbnail(_inside(server, found, "composite"), path)
    headers = {"Cache-Control": _FOREVER, "ETag": f'"{found.made}"'}
    return FileResponse(path, media_type="image/webp", headers=headers)


def _tell(server: Server, found: MadeSet) -> None:
    """Say that a set was changed, to who made it: other tabs and machines show it, too."""
    try:
        owner = server.queue.get(found.path.parent.name).client
    except NoSuchJob:
        owner = ""
    server.bus.tell("set", {"id": found.id, "job": None}, owner)


def _matched(server: Server, client: str, name: str, if_match: str | None) -> MadeSet:
    found = server.sets.get(name, client)
    if if_match is not None and if_match not in ("*", found.etag):
        raise Refused(412, "the set was changed meanwhile", "Look at it again, then decide.")
    return found


def _inside(server: Server, found: MadeSet, picture: str) -> Path:
    path = found.path / f"{picture}.png"
    if not path.is_file() or not server.catalog.inside(path):
        raise Refused(404, f"set {found.id} has no {picture}.png", "Count panels from 1.")
    return path


def _picture(server: Server, client: str, name: str, picture: str, known: str | None) -> Response:
    found = server.sets.get(name, client)
    path = _inside(server, found, picture)
    headers = {"Cache-Control": _FOREVER, "ETag": f'"{picture}-{found.made}"'}
    if known == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type="image/png", headers=headers)
