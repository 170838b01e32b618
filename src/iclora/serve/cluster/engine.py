"""The engine whose workers are replicas of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from iclora.errors import RunError, SettingsError
from iclora.progress import Console
from iclora.serve.cluster.front import Cluster, Kind
from iclora.serve.local import LocalEngine
from iclora.settings import ServeSettings

__all__ = ["engine_on", "on_cluster"]

Make = Callable[..., LocalEngine]
"""Makes an engine of names of workers; what they hold is decided."""


def on_cluster(settings: ServeSettings, console: Console, logs: Path, make: Make) -> LocalEngine:
    """The engine of a server.

    Args:
        logs: folder for what the workers print, which all machines see.
    Raises: SettingsError.
    """
    console.say(
        f"joining the Ray cluster at {settings.cluster}"
        if settings.cluster
        else "starting a Ray cluster on this machine, which ends with the server"
    )
    cluster = Cluster(settings.cluster, logs)
    try:
        kind = cluster.kind(settings.device)
        wrong, other = ("cpus", "GPUs") if kind == "gpu" else ("gpus", "CPUs")
        if getattr(settings, wrong) not in (1, "all"):
            raise SettingsError(
                f"`{wrong}` is given, and the replicas compute on {other}",
                "Leave it out, or set `device`.",
                setting=wrong,
            )
        count = settings.gpus if kind == "gpu" else settings.cpus
        workers = cluster.workers(kind, cluster.gpus if count == "all" else count, f"{kind}s")
    except BaseException:
        cluster.close()
        raise
    console.say(
        f"{len(workers)} replicas, a {kind.upper()} each, of {cluster.gpus} GPUs and "
        f"{cluster.cpus} CPUs of the Ray cluster at {cluster.found}"
    )
    return engine_on(cluster, kind, workers, make)


def engine_on(cluster: Cluster, kind: Kind, workers: list[str], make: Make) -> LocalEngine:
    """An engine over replicas of an open cluster, which is closed when the engine stops.

    Args:
        workers: their names, of `Cluster.workers`.
    """
    return make(
        workers,
        start=partial(cluster.start, kind),
        start_training=_refuse_training,
        close=cluster.close,
    )


def _refuse_training(*_: object) -> int:
    """A run outlives its server, and a replica does not."""
    raise RunError(
        "replicas of a Ray cluster make sets, and train nothing",
        "Start the run by `iclora train` on a machine with a GPU; the server shows it.",
    )
