"""The plan of a run, counted in a process of its own: counting needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
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

_SECONDS = 75
"""Below what proxies wait for."""
_KEPT = 64
_ASKED = (
    *("batch", "rank", "steps", "targets", "precision", "resolutions", "text", "compile"),
    *("recipe", "micro_batch", "micro_tokens", "gradient_checkpointing", "recompute"),
    *("conditional", "isolate_given", "preview_every", "preview_resolution"),
)
"""Settings of a run that its memory and time depend on."""

_one_at_a_time = threading.Lock()
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
    """What a run takes. Raises: Refused if it cannot be counted, or takes too long."""
    told = {name: getattr(query, name) for name in query.model_fields_set}
    told = {name: value for name, value in told.items() if value is not None}
    told["vram"] = query.vram
    if query.data is not None:
        told["data"] = str(catalog.dataset(query.data))
    if query.recipe is not None:
        told["recipe"] = catalog.recipe(query.recipe)[1]
    told = {"data": "DATA", **told, "base": base, "out": "RUN"}
    key = json.dumps(told, default=list, sort_keys=True)
    if key in _known:
        return _known[key]
    if not _one_at_a_time.acquire(timeout=1):
        raise Refused(
            429, "another plan is counted just now", "Ask again.", headers={"Retry-After": "10"}
        )
    try:
        found = _counted(told)
    finally:
        _one_at_a_time.release()
    while len(_known) >= _KEPT:
        _known.pop(next(iter(_known)))
    _known[key] = found
    return found


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
