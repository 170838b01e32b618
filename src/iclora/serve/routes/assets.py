"""Pictures that clients send, by the hash of their bytes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel

from iclora.serve.assets import MEDIA_TYPES, MOST_BYTES
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS
from iclora.serve.server import Here

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["assets"], responses=PROBLEMS)


class Asset(BaseModel):
    """A picture that jobs may name."""

    sha256: str
    width: int
    height: int


@router.post("/assets", status_code=201, response_model=Asset, responses={200: {"model": Asset}})
def post_asset(
    server: Here, file: Annotated[UploadFile, File()], response: Response
) -> dict[str, object]:
    """Send a picture; jobs name it by its hash. 200 if it was there."""
    server.check_room()
    # One byte more than may be tells that there are too many.
    data = file.file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise Refused(413, "this picture has more than 20 MB", "Scale it down.", "file")
    sha256, (width, height), fresh = server.assets.put(data, file.filename or "the picture")
    response.status_code = 201 if fresh else 200
    response.headers["Location"] = f"assets/{sha256}"
    return {"sha256": sha256, "width": width, "height": height}


@router.head("/assets/{sha256}", response_class=Response)
def head_asset(server: Here, sha256: str) -> Response:
    """Whether a picture is there."""
    path = server.assets.path(sha256)
    return Response(headers={"Content-Type": MEDIA_TYPES[path.suffix], "ETag": f'"{sha256}"'})


@router.get("/assets/{sha256}", response_class=FileResponse)
def get_asset(server: Here, sha256: str) -> FileResponse:
    """A picture as it was sent."""
    path = server.assets.path(sha256)
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=headers)
