"""How jobs come by bases, adapters and metrics."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from iclora.progress import Progress
from iclora.settings import Machine, MakingMachine

if TYPE_CHECKING:
    from iclora.adapter import Adapter
    from iclora.evaluate.metrics.base import Metric
    from iclora.making.session import Session
    from iclora.models import DiffusionModel
    from iclora.models.base import Compiling
    from iclora.sets.recipe import Recipe

__all__ = ["Opener", "compiled_by", "quiet_loading", "record_by"]

_log = logging.getLogger("iclora.models")


class Opener:
    """Opens everything where it is asked for, as a command does that ends afterwards."""

    def base(self, name: str, machine: Machine) -> DiffusionModel:
        """A base; its weights load when they are first used. Raises: ModelError, SettingsError."""
        from iclora.models import load_model

        quiet_loading()
        model = load_model(name, machine.device, machine.dtype, precision=machine.precision)
        model.compiled = compiled_by(machine)
        model.check_offload(machine.offload)
        model.offload = machine.offload
        if why := record_by(model, machine):
            _log.warning("`graphs` has no effect: %s", why)
        return model

    def rules(self, name: str) -> DiffusionModel:
        """A base without its weights: its tokenizer and its grid. Raises: ModelError."""
        from iclora.models import load_model

        quiet_loading()
        return load_model(name, "cpu", "fp32", weights=False)

    def adapter(self, source: str) -> Adapter:
        """An adapter, as `Adapter.load` reads it. Raises: AdapterError."""
        from iclora.adapter import Adapter

        return Adapter.load(source)

    def session(self, model: DiffusionModel, progress: Progress) -> Session:
        """What makes sets with a base."""
        from iclora.making.session import Session

        return Session(model, progress)

    def metric(self, name: str, device: str, url: str | None, recipe: Recipe) -> Metric:
        """A metric that can measure sets of this recipe. Raises: IcloraError."""
        from iclora.evaluate.metrics.registry import load_metric

        quiet_loading()
        metric = load_metric(name, device=device, url=url)
        metric.check(recipe)
        return metric


def compiled_by(machine: Machine) -> frozenset[Compiling]:
    """Which passes of a base that makes sets run compiled blocks."""
    return frozenset({"sampling"} if machine.compile else ())


def record_by(model: DiffusionModel, machine: Machine) -> str | None:
    """Record a base's passes, or do not.

    Returns: why they are not although they were to be.
    """
    from iclora.models.graphs import Graphs, prevented

    wanted = isinstance(machine, MakingMachine) and machine.graphs
    why = prevented(model) if wanted else None
    if not wanted or why is not None:
        if model.graphs is not None:
            model.graphs.clear()
        model.graphs = None
    elif model.graphs is None:
        model.graphs = Graphs.on(model.device)
    return why


def quiet_loading() -> None:
    """Keep the progress bars out that transformers draws for every file it loads."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
