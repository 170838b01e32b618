"""The plan of a run, counted in a process of its own: counting needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, create_model

from iclora.serve.catalog import Catalog
from iclora.serve.inputs import NAMED
from iclora.serve.problems import Refused
from iclora.serve.routes.answers import Strict
from iclora.settings import TrainSettings

__all__ = ["PlanQuery", "plan"]

_PATIENCE = 20.0
"""Seconds that a request waits for a plan: less than proxies do."""
_SECONDS = 600
"""Most that counting takes."""
_KEPT = 64
_ASKED = (
    *("batch", "rank", "steps", "targets", "precision", "resolutions", "text", "compile"),
    *("recipe", "micro_batch", "micro_tokens", "gradient_checkpointing", "recompute"),
    *("conditional", "isolate_given", "preview_every", "preview_resolution"),
)
"""Settings of a run that its memory and time depend on."""

_lock = threading.Lock()
_counting: dict[str, Future[dict[str, Any]]] = {}
"""What is counted just now, one at a time."""
_known: dict[str, dict[str, Any]] = {}


def _fields() -> dict[str, Any]:
    found: dict[str, Any] = {
        "vram": (Annotated[float, Field(gt=0, le=10_000)] | Literal["auto"], 24.0),
        "data": (Annotated[str | None, Field(max_length=201)], None),
    }
    for name in _ASKED:
        field = TrainSettings.model_fields[name]
        annotation, said = field.rebuild_annotation(), field.description
        if name in NAMED:
            annotation, said = NAMED[name]
        found[name] = annotation, Field(field.default, description=said)
    return found


PlanQuery: Any = create_model("PlanQuery", __base__=Strict, **_fields())
"""What a plan depends on; the base is the server's."""


def plan(catalog: Catalog, base: str, query: Any) -> dict[str, Any]:
    """What a run takes. Raises: Refused if it cannot be counted, or is not yet."""
    told = {name: getattr(query, name) for name in query.model_fields_set}
    told = {name: value for name, value in told.items() if value is not None}
    told["vram"] = query.vram
    if query.data is not None:
        told["data"] = str(catalog.dataset(query.data))
    if query.recipe is not None:
        told["recipe"] = catalog.recipe(query.recipe)[1]
    told = {"data": "DATA", **told, "base": base, "out": "RUN"}
    key = json.dumps(told, default=list, sort_keys=True)
    with _lock:
        if key in _known:
            return _known[key]
        future = _counting.get(key)
        if future is None:
            if _counting:
                raise _not_yet("another plan is counted just now")
            future = _counting[key] = Future()
            threading.Thread(target=_count, args=(key, told, future), daemon=True).start()
    try:
        return future.result(_PATIENCE)
    except TimeoutError as error:
        raise _not_yet("this is still being counted") from error


def _not_yet(problem: str) -> Refused:
    return Refused(429, problem, "Ask again.", headers={"Retry-After": "5"})


def _count(key: str, told: dict[str, Any], future: Future[dict[str, Any]]) -> None:
    """Count a plan, however long it takes: whoever asks again finds it."""
    try:
        found = _counted(told)
    except Exception as error:
        with _lock:
            del _counting[key]
        future.set_exception(error)
        return
    with _lock:
        del _counting[key]
        while len(_known) >= _KEPT:
            _known.pop(next(iter(_known)))
        _known[key] = found
    future.set_result(found)


def _counted(told: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "asked.toml")
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in told.items()}
        asked.write_text(tomli_w.dumps({"train": plain}), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "iclora.serve.counting", str(asked)]
        try:
            done = subprocess.run(  # noqa: S603 (its arguments are ours)
                command, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired as error:
            raise Refused(
                504, f"counting took more than {_SECONDS} s", "Use `iclora plan` there."
            ) from error
        except (ValueError, IndexError) as error:
            raise Refused(
                422, f"counting failed: {done.stderr.strip()[-500:]}", "Look at the settings."
            ) from error
        if "problem" in found:
            raise Refused(422, found["problem"], found["advice"] or "Change it.", found["setting"])
        return found
