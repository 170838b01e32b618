"""A captioner by its name: KIND:MODEL, or the name of one that ships with iclora."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from iclora.errors import CaptionerError
from iclora.vlm.base import Captioner

__all__ = ["load_captioner"]


def load_captioner(
    name: str,
    *,
    url: str | None = None,
    together: int | None = None,
    device: str = "auto",
    schema: bool = True,
) -> Captioner:
    """Open a captioner.

    Args:
        name: "openai:MODEL" for a server, "local:PATH_OR_HUB_ID" for a transformers model,
            "toyland" for the small one that ships with iclora and knows toyland's pictures alone.
        url: the server's base URL.
        together: requests or sets at the same time.
        schema: whether a server is asked to hold its answers to a JSON schema.
        device: where a local model runs: auto, cuda, cuda:N, mps or cpu.
    Raises: CaptionerError.
    """
    kind, _, model = name.partition(":")
    count: dict[str, Any] = {"together": together} if together else {}
    if kind == "openai" and model:
        from iclora.vlm.openai import OpenAICaptioner

        return OpenAICaptioner(model, url, schema=schema, **count)
    if kind == "local" and model:
        from iclora.vlm.local import LocalCaptioner

        return LocalCaptioner(model, device=device, **count)
    if name == "toyland":
        from iclora.vlm.local import LocalCaptioner

        folder = str(files("iclora") / "weights" / "toyland-captioner")
        return LocalCaptioner(folder, name=name, device=device, **count)
    raise CaptionerError(
        f'there is no captioner "{name}"',
        "Use openai:MODEL for a server, local:PATH for a model in transformers' layout, or "
        "toyland.",
    )
