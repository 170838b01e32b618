"""How a row says what it measured: every figure is on disk as soon as it is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from iclora.files import write_text
from iclora.settings.registry import Registry

__all__ = ["Bench", "Tell", "goal"]


class Tell(Protocol):
    """Takes one figure; see `Bench.tell`."""

    def __call__(
        self,
        what: str,
        value: float | str | None,
        unit: str = "",
        *,
        least: float | None = None,
        most: float | None = None,
        must: bool = False,
        note: str = "",
        all: Sequence[float] = (),
    ) -> None: ...


def goal(value: Any, least: float | None, most: float | None) -> dict[str, Any]:
    """A target in words, and whether it is met; empty without one. No number meets none."""
    if least is None and most is None:
        return {}
    number = isinstance(value, int | float) and math.isfinite(value)
    met = number and (least is None or value >= least) and (most is None or value <= most)
    bounds = {"at least": least, "at most": most}
    words = [f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None]
    return {"target": " and ".join(words), "met": bool(met)}


@dataclass
class Bench:
    """What a row's function is told, and whom it tells."""

    device: str
    """cuda, cuda:N or cpu; the only device that is visible here."""
    folder: Path
    """An empty folder of its own, gone afterwards."""
    result: Path
    """The file that takes what is told."""
    verbs: Callable[[], Registry[Any]] | None = None
    """Loads the command line's verbs, by name."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Facts about the device, which the row `card` finds."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What failed, or was not as it must be, while the rest went on."""
    stage: str = "opening the device"

    def tell(
        self,
        what: str,
        value: float | str | None,
        unit: str = "",
        *,
        least: float | None = None,
        most: float | None = None,
        must: bool = False,
        note: str = "",
        all: Sequence[float] = (),
    ) -> None:
        """Tell one figure.

        Args:
            what: was measured.
            value: as measured; None for what could not be, with a note.
            least, most: a target.
            must: the row has failed if the target is missed, or there is no value.
            note: what to know beside it.
            all: the single measurements behind a median.
        """
        met = goal(value, least, most)
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no such number.
        said: dict[str, Any] = {"what": what, "value": value, "unit": unit, **met}
        if note:
            said["note"] = note
        if all:
            said["all"] = [round(float(each), 5) for each in all]
        self.figures.append(said)
        if must and not met.get("met", value is not None):
            missed = f"{value} {unit}, {met['target']}" if met else note
            self.broken.append(f"{what}: {missed}")
        print(json.dumps(said), flush=True)
        self.write()

    def fail(self, what: str, why: str) -> None:
        """Tell that a part failed; the rest goes on, and the row has failed in the end."""
        self.broken.append(f"{what}: {why}")
        print(f"failed: {what}: {why}", flush=True)
        self.write()

    def write(self, **more: Any) -> None:
        """Bring all that was told to disk, whole."""
        said: Mapping[str, Any] = {
            "stage": self.stage,
            "figures": self.figures,
            "broken": self.broken,
            "machine": self.machine,
            **more,
        }
        write_text(self.result, json.dumps(said))
