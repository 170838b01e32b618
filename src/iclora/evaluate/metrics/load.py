"""A metric by its name: KIND:MODEL."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from iclora.errors import SettingsError
from iclora.evaluate.metrics.base import Metric

__all__ = ["METRICS", "Maker", "load_metric"]

Maker = Callable[[str, str, str | None], Metric]
"""Opens a metric: what stands behind the colon, the device, the server's URL."""


def _dino(model: str, device: str, url: str | None) -> Metric:
    del url
    from iclora.evaluate.metrics.likeness import Dino
    from iclora.models.registry import pick_device

    return Dino(model, pick_device(device))


def _clip(model: str, device: str, url: str | None) -> Metric:
    del url
    from iclora.evaluate.metrics.likeness import Clip
    from iclora.models.registry import pick_device

    return Clip(model, pick_device(device))


def _judge(kind: str) -> Maker:
    def make(model: str, device: str, url: str | None) -> Metric:
        from iclora.evaluate.metrics.judge import Judge
        from iclora.vlm import load_captioner

        return Judge(load_captioner(f"{kind}:{model}", url=url, device=device))

    return make


METRICS: dict[str, Maker] = {
    "dino": _dino,
    "clip": _clip,
    "openai": _judge("openai"),
    "local": _judge("local"),
}
"""What opens each kind of metric."""


def load_metric(
    name: str,
    *,
    device: str = "auto",
    url: str | None = None,
    more: Mapping[str, Maker] | None = None,
) -> Metric:
    """Open a metric.

    Args:
        name: "dino:PATH_OR_HUB_ID", "clip:PATH_OR_HUB_ID", or a judge: "openai:MODEL",
            "local:PATH_OR_HUB_ID".
        device: where a model runs: auto, cuda, cuda:N, mps or cpu.
        url: a judging server's base URL.
        more: further kinds, from floors above.
    Raises: SettingsError, ModelError, CaptionerError.
    """
    kind, _, model = name.partition(":")
    kinds = {**METRICS, **(more or {})}
    if kind not in kinds or (kind in METRICS and not model):
        known = [f"{k}:MODEL" if k in METRICS else k for k in kinds]
        raise SettingsError(f'there is no metric "{name}"', f"Use {', '.join(known)}.")
    return kinds[kind](model, device, url)
