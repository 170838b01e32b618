"""Datasets that clients send."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Path, Query, Response, UploadFile
from pydantic import BaseModel, Field

from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.server import Here

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["datasets"], responses=PROBLEMS)

_Id = Annotated[str, Path(pattern=r"^[0-9a-z]{8,64}$")]


class Upload(BaseModel):
    """A dataset that is on its way."""

    id: str


class Taken(BaseModel):
    """What was taken of a request."""

    files: int
    size: int
    """bytes of the last file so far"""


class NewDataset(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """what it is called"""
    recipe: Annotated[str | None, Field(max_length=100)] = None
    """which its sets follow; by default the one that its iclora.toml names"""


class Sent(BaseModel):
    id: str
    """of the new dataset"""


@router.post("/uploads", status_code=201, response_model=Upload)
def begin_upload(server: Here) -> dict[str, str]:
    """Begin to send a dataset; send its files, then finish it."""
    server.check_room()
    return {"id": server.uploads.begin()}


@router.post("/uploads/{upload}/files", response_model=Taken)
def add_files(
    server: Here,
    upload: _Id,
    files: Annotated[list[UploadFile], File(max_length=500)],
    offset: Annotated[int | None, Query(ge=0, le=2**32)] = None,
) -> dict[str, int]:
    """Send files, each called by its path in the dataset; or a piece of one, such as of a zip."""
    size = 0
    for file in files:
        size = server.uploads.add(upload, file.filename or "", file.file.read(), offset)
    return {"files": len(files), "size": size}


@router.post("/uploads/{upload}/finish", status_code=201, response_model=Sent)
def finish_upload(server: Here, upload: _Id, told: NewDataset) -> dict[str, str]:
    """Make a dataset of what was sent. After a refusal it can be finished another way."""
    return {"id": server.uploads.finish(upload, told.name, told.recipe)}


@router.delete("/uploads/{upload}", status_code=204, response_class=Response)
def drop_upload(server: Here, upload: _Id) -> Response:
    """Forget what was sent."""
    server.uploads.drop(upload)
    return Response(status_code=204)
