"""A metric by its name: KIND:MODEL, or the kind alone if it needs no model.

To add a metric: a subclass of `base.Metric`, and a function (model, device, url) -> Metric that is
named here, or by another package as an entry point of the group "iclora.metrics".
"""

from __future__ import annotations

from collections.abc import Callable

from iclora.errors import SettingsError
from iclora.evaluate.metrics.base import Metric
from iclora.settings.registry import Registry

__all__ = ["METRICS", "Maker", "check_metric", "load_metric"]

Maker = Callable[[str, str, str | None], Metric]
"""Opens a metric: the model behind the colon, the device it runs on, a server's URL."""

_SHIPPED = {
    "dino": "iclora.evaluate.metrics.likeness:open_dino",
    "clip": "iclora.evaluate.metrics.likeness:open_clip",
    "openai": "iclora.evaluate.metrics.judge:open_openai",
    "local": "iclora.evaluate.metrics.judge:open_local",
}
METRICS: Registry[Maker] = Registry("iclora.metrics", "metric", _SHIPPED)


def load_metric(name: str, *, device: str = "auto", url: str | None = None) -> Metric:
    """Open a metric.

    Args:
        name: "dino:PATH_OR_HUB_ID", "clip:PATH_OR_HUB_ID", or a judge: "openai:MODEL",
            "local:PATH_OR_HUB_ID"; or what another package registered.
        device: where a model runs: auto, cuda, cuda:N, mps or cpu.
        url: a judging server's base URL.
    Raises: SettingsError, ModelError, VisionModelError.
    """
    check_metric(name)
    kind, _, model = name.partition(":")
    return METRICS.load(kind)(model, device, url)


def check_metric(name: str) -> None:
    """Raises: SettingsError if there is no metric of that name; nothing is opened."""
    kind, _, model = name.partition(":")
    if kind not in METRICS or (kind in _SHIPPED and not model):
        known = [f"{each}:MODEL" if each in _SHIPPED else each for each in METRICS]
        raise SettingsError(f'there is no metric "{name}"', f"Use {', '.join(known)}.", "metric")
