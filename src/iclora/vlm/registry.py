"""A vision-language model by its name: KIND:MODEL, or the kind alone if it ships its model.

To add a kind: a subclass of `base.VisionModel`, and a function like `Maker` that is named here, or
by another package as an entry point of the group "iclora.captioners".
"""

from __future__ import annotations

from typing import Protocol

from iclora.errors import VisionModelError
from iclora.settings.registry import Registry
from iclora.vlm.base import VisionModel

__all__ = ["CAPTIONERS", "Maker", "check_captioner", "load_vision_model"]


class Maker(Protocol):
    """Opens a model of one kind."""

    def __call__(
        self, model: str, *, url: str | None, together: int | None, device: str, schema: bool
    ) -> VisionModel: ...


_SHIPPED = {"openai": "iclora.vlm.openai:open_openai", "local": "iclora.vlm.local:open_local"}
CAPTIONERS: Registry[Maker] = Registry("iclora.captioners", "captioner", _SHIPPED)


def load_vision_model(
    name: str,
    *,
    url: str | None = None,
    together: int | None = None,
    device: str = "auto",
    schema: bool = True,
) -> VisionModel:
    """Open a vision-language model.

    Args:
        name: "openai:MODEL" for a server, "local:PATH_OR_HUB_ID" for a transformers model; or a
            name that another package registered.
        url: the server's base URL.
        together: requests or sets at the same time.
        schema: ask a server to hold its answers to a JSON schema.
        device: where a local model runs: auto, cuda, cuda:N, mps or cpu.
    Raises: VisionModelError.
    """
    check_captioner(name)
    kind, _, model = name.partition(":")
    make = CAPTIONERS.load(kind)
    return make(model, url=url, together=together, device=device, schema=schema)


def check_captioner(name: str) -> None:
    """Raises: VisionModelError if there is no captioner of that name; nothing is opened."""
    kind, _, model = name.partition(":")
    if kind not in CAPTIONERS or bool(model) != (kind in _SHIPPED):
        others = sorted(set(CAPTIONERS) - set(_SHIPPED))
        raise VisionModelError(
            f'there is no captioner "{name}"',
            "Use openai:MODEL for a server, local:PATH for a model in transformers' layout"
            + (f", or {', '.join(others)}." if others else "."),
            setting="captioner",
        )
