"""OpenAI's image endpoints, as far as they can be kept: what cannot is refused by name.

A model is the base or an adapter. `generations` makes sets; `edits` completes one, its images being
given panels. Both wait for the job up to 80 s, less than proxies do; then the job goes on, and the
answer says where. What `iclora` beside OpenAI's own fields may hold are the settings of `generate`.
"""

from __future__ import annotations

import base64
import io
import json
import re
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import BaseModel, Field, ValidationError, create_model
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from iclora.serve.assets import MOST_BYTES
from iclora.serve.inputs import INPUTS, Ask
from iclora.serve.jobs import ENDED, Job
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import PROBLEMS, Strict
from iclora.serve.routes.jobs import submit, wait_for
from iclora.serve.server import Here, Server, Who

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["openai"], responses=PROBLEMS)

_WAIT = 80.0
_LOOK = 2.0
"""Seconds between two looks whether the client is still there."""
_NOT_EXTRA = frozenset(
    {"prompt", "count", "size", "seed", "adapter", "request", "given", "idea", "captioner"}
)


def _extras() -> Any:
    fields: dict[str, Any] = {
        "output": (
            Literal["set", "panels"],
            Field("set", description="one picture a set, or one a panel"),
        )
    }
    for name, field in INPUTS["complete"].model_fields.items():
        if name not in _NOT_EXTRA:
            default = field.get_default(call_default_factory=True)
            fields[name] = (
                field.rebuild_annotation(),
                Field(default, description=field.description),
            )
    return create_model("Extras", __base__=Strict, **fields)


Extras: Any = _extras()
"""What `iclora` may hold."""


class _Images(Strict):
    model: Annotated[str, Field(min_length=1, max_length=201)]
    """the base or an adapter, as /v1/models lists them"""
    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    """a joint prompt in the recipe's form"""
    n: Annotated[int, Field(ge=1, le=8)] = 1
    """sets, with seeds one apart"""
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] = "auto"
    """of the whole canvas; auto is the adapter's"""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """by default the server draws one, and tells it"""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """a url needs the token in its header, as every path here"""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = 95
    """quality of jpeg and webp"""
    user: Annotated[str, Field(max_length=200)] = ""
    """becomes the job's tag"""
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto"] = "auto"
    stream: Literal[False] = False
    """the job's events can be followed instead"""


class Generations(_Images):
    iclora: Extras = Extras()


class Edits(_Images):
    known: Annotated[tuple[Annotated[int, Field(ge=1, le=99)], ...], Field(max_length=9)] = ()
    """the panel that each image is, from 1; else names such as 3.png say, else their order"""
    iclora: Extras = Extras()


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Made(BaseModel):
    """A picture, and what made it."""

    b64_json: str | None = None
    url: str | None = None
    iclora: dict[str, Any]
    """job, set, panel (null for a whole set) and seeds of its panels"""


class Images(BaseModel):
    created: int
    data: list[Made]
    output_format: str
    size: str


@router.get("/models", response_model=Models)
def list_models(server: Here) -> dict[str, Any]:
    """The base and every adapter."""
    return {"object": "list", "data": list(_models(server).values())}


@router.get("/models/{model:path}", response_model=Model)
def get_model(server: Here, model: str) -> dict[str, Any]:
    """One of them."""
    found = _models(server)
    if model not in found:
        raise Refused(404, f'no model is called "{model[:80]}"', "See /v1/models.", "model")
    return found[model]


@router.post("/images/generations", response_model=Images, response_model_exclude_none=True)
async def generations(
    server: Here,
    client: Who,
    request: Request,
    told: Generations,
    idempotency_key: Annotated[str | None, Header(max_length=1000)] = None,
) -> dict[str, Any]:
    """Make sets of panels from a joint prompt."""
    return await _answer(server, client, request, "generate", told, {}, idempotency_key)


def _form_schema() -> dict[str, Any]:
    schema = Edits.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    properties = {n: s for n, s in schema["properties"].items() if n not in ("iclora", "known")}
    image = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": 9}
    known = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 99}}
    properties |= {"image[]": image, "known[]": known, "iclora": {"type": "string"}}
    body = {
        "type": "object",
        "properties": properties,
        "required": ["model", "prompt", "image[]"],
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}


@router.post(
    "/images/edits",
    response_model=Images,
    response_model_exclude_none=True,
    openapi_extra=_form_schema(),
)
async def edits(
    server: Here,
    client: Who,
    request: Request,
    idempotency_key: Annotated[str | None, Header(max_length=1000)] = None,
) -> dict[str, Any]:
    """Complete a set: the images are given panels, the others are made around them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refused(415, "images come as multipart/form-data", "Send `image[]` parts.")
    async with request.form(max_files=10, max_fields=100) as form:
        told, files = _read_form(form)
        given = await run_in_threadpool(_given, server, told, files)
    return await _answer(server, client, request, "complete", told, given, idempotency_key)


# -- forms ----------------------------------------------------------------------------------------


def _read_form(form: FormData) -> tuple[Edits, list[UploadFile]]:
    """Fields as the openai client flattens them: image[], known[], iclora[mode]."""
    files: list[UploadFile] = []
    values: dict[str, Any] = {"iclora": {}}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        inner = re.fullmatch(r"iclora\[(\w{1,40})\](?:\[(\d{1,2})\])?(\[\])?", key)
        if isinstance(value, UploadFile):
            if name != "image":
                raise Refused(
                    422,
                    f'a file for "{key[:80]}": only images of given panels are read',
                    "A mask is not needed: every panel that is not given is made.",
                    name[:80],
                )
            files.append(value)
        elif name == "image":
            raise Refused(422, "`image[]` is no file", "Send pictures as files.", "image")
        elif name == "known":
            values.setdefault("known", []).append(value)
        elif inner and inner[2]:
            values["iclora"].setdefault(inner[1], {})[inner[2]] = value
        elif inner and inner[3]:
            values["iclora"].setdefault(inner[1], []).append(value)
        elif inner:
            values["iclora"][inner[1]] = value
        elif key == "iclora":
            values["iclora"] |= _object(value)
        else:
            values[key] = value
    try:
        return Edits.model_validate(values), files
    except ValidationError as error:
        found = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(found) from error


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(422, "`iclora` is no JSON object", 'Send {"mode": "clean"}.', "iclora")
    return found


def _given(server: Server, told: Edits, files: list[UploadFile]) -> dict[str, Any]:
    """Hashes of the given panels by number."""
    if not files:
        raise Refused(422, "there is no image", "Send the panels that are given.", "image")
    numbers = _slots([file.filename or "" for file in files], told.known)
    given = {}
    for number, file in zip(numbers, files, strict=True):
        data = file.file.read(MOST_BYTES + 1)
        given[number] = server.assets.put(data, file.filename or f"image {number}")[0]
    return {"given": given}


def _slots(names: list[str], known: tuple[int, ...]) -> list[int]:
    """The panel of each image: by `known`, else by names such as 3.png, else in order."""
    if known:
        numbers = list(known)
    else:
        named = [re.fullmatch(r"([1-9][0-9]?)\.\w{1,5}", name) for name in names]
        numbers = [int(m[1]) for m in named if m]
        if len(numbers) < len(names):
            numbers = list(range(1, len(names) + 1))
    if len(numbers) != len(names) or len(set(numbers)) != len(numbers):
        raise Refused(
            422,
            f"{len(names)} images, and `known` names panels {numbers}",
            "Name one panel for each image, each once.",
            "known",
        )
    return numbers


# -- jobs -----------------------------------------------------------------------------------------


async def _answer(
    server: Server,
    client: str,
    request: Request,
    kind: str,
    told: Any,
    more: dict[str, Any],
    key: str | None,
) -> dict[str, Any]:
    job, _ = await run_in_threadpool(_submit, server, client, kind, told, more, key)
    end = time.monotonic() + _WAIT
    while job.status not in ENDED and (left := end - time.monotonic()) > 0:
        job = await wait_for(server, job, client, min(_LOOK, left))
        if job.status not in ENDED and await request.is_disconnected():
            if key is None:  # With a key it may come back for it.
                await run_in_threadpool(_cancel, server, job, client)
            raise Refused(503, "the client is gone", "Ask again.")
    if job.status == "succeeded":
        return await run_in_threadpool(_pictures, server, client, request, job, told)
    if job.status in ENDED:
        error = job.error or {}
        raise Refused(
            500 if error.get("code") in ("InternalError", "WorkerDied") else 422,
            error.get("problem") or f"job {job.id} was cancelled",
            error.get("advice") or "Send it again.",
            error.get("setting"),
            headers={"Location": f"../../api/v1/jobs/{job.id}", "x-should-retry": "false"},
        )
    raise Refused(
        504,
        f"job {job.id} is not done after {_WAIT:.0f} s; it goes on",
        f"Look at /api/v1/jobs/{job.id}, or post jobs there instead.",
        # A client that repeats it by itself would queue it twice.
        headers={"Location": f"../../api/v1/jobs/{job.id}", "x-should-retry": "false"},
    )


def _submit(
    server: Server, client: str, kind: str, told: Any, more: dict[str, Any], key: str | None
) -> tuple[Job, bool]:
    values = {n: v for n, v in _set_of(told.iclora).items() if n != "output"}
    values |= {"prompt": (told.prompt,), "count": told.n, **more}
    if told.size != "auto":
        values["size"] = told.size
    if told.seed is not None:
        values["seed"] = told.seed
    if told.model not in _models(server):
        raise Refused(404, f'no model is called "{told.model[:80]}"', "See /v1/models.", "model")
    if told.model != _base_id(server):
        values["adapter"] = (told.model,)
    try:
        asked = INPUTS[kind].model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    return submit(server, Ask(kind=kind, input=asked, tag=told.user), client, key)


def _set_of(extras: Any) -> dict[str, Any]:
    return {name: getattr(extras, name) for name in extras.model_fields_set}


def _cancel(server: Server, job: Job, client: str) -> None:
    if server.queue.cancel(job.id, client).status == "cancelling":
        server.dispatcher.cancel(job.id)


def _base_id(server: Server) -> str:
    path = Path(server.base)
    return path.name if path.is_absolute() else server.base


def _models(server: Server) -> dict[str, dict[str, Any]]:
    names = [_base_id(server), *server.catalog.adapters()]
    about = {"object": "model", "created": 0, "owned_by": "iclora"}
    return {name: {"id": name, **about} for name in names}


def _pictures(server: Server, client: str, request: Request, job: Job, told: Any) -> dict[str, Any]:
    data, size = [], ""
    here = (server.settings.public_url or str(request.base_url)).rstrip("/")
    for name in (job.result or {}).get("sets", ()):
        found = server.sets.get(name, client)
        panels: list[int | None] = [None]
        if told.iclora.output == "panels":
            panels = list(range(1, found.panels + 1))
        seeds = json.loads((found.path / "request.json").read_text(encoding="utf-8"))["seeds"]
        for panel in panels:
            file = "composite.png" if panel is None else f"panel-{panel}.png"
            below = "composite.png" if panel is None else f"panels/{panel}.png"
            with Image.open(found.path / file, formats=("PNG",)) as picture:
                size = size or "{}x{}".format(*picture.size)
                made: dict[str, Any] = {
                    "iclora": {"job": job.id, "set": name, "panel": panel, "seeds": seeds}
                }
                if told.response_format == "url":
                    made["url"] = f"{here}/api/v1/sets/{name}/{below}"
                else:
                    made["b64_json"] = _encoded(picture, found.path / file, told)
            data.append(made)
    output = "png" if told.response_format == "url" else told.output_format
    return {"created": int(job.created), "data": data, "output_format": output, "size": size}


def _encoded(picture: Image.Image, path: Path, told: Any) -> str:
    if told.output_format == "png":
        return base64.b64encode(path.read_bytes()).decode()
    held = io.BytesIO()
    picture.convert("RGB").save(held, told.output_format, quality=told.output_compression)
    return base64.b64encode(held.getvalue()).decode()
