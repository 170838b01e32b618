"""The sets of all arms: kept on disk, never made twice, with what each cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from PIL import Image

from iclora.evaluate.metrics.base import Made, Metric
from iclora.evaluate.setup import Arm, Plan, is_made
from iclora.files import append_line
from iclora.making.generate import run_together, use
from iclora.making.request import GeneratedSet, Request
from iclora.models.base import DiffusionModel
from iclora.sets.recipe import Recipe

__all__ = ["Cost", "make_sets", "read_sets", "scorer", "to_made"]

_TIMES = "times.jsonl"


@dataclass(frozen=True)
class Cost:
    """What a set cost.

    Attributes:
        seconds: without the texts' encoding and the loading of weights.
        memory: the most that was in use, bytes: of the GPU's memory where it was made on one, else
            of the whole process since it began.
    """

    seconds: float
    memory: int


def make_sets(
    model: DiffusionModel,
    planned: Plan,
    *,
    together: int = 1,
    on_set: Callable[[Arm, int, int], None] | None = None,
) -> None:
    """Make every set of the plan that is not there yet.

    Args:
        together: sets in one batch, where canvas and known panels are alike.
        on_set: called with the arm, how many sets of the plan are there, and of how many.
    """
    missing = {
        arm.name: [n for n in range(len(planned.wishes)) if not is_made(planned, arm, n)]
        for arm in planned.arms
    }
    total = len(planned.arms) * len(planned.wishes)
    done = total - sum(map(len, missing.values()))
    if done == total:
        return
    prompts = {planned.requests[a][n].prompt for a, numbers in missing.items() for n in numbers}
    texts = {prompt: model.encode_text(prompt) for prompt in sorted(prompts)}
    if model.device.type != "cpu":
        # Some 10 GB that nothing needs any more, before the denoiser is loaded.
        model.release("text")
    _load_vae(model, planned.requests[planned.arms[0].name][0])
    for arm in planned.arms:
        requests = planned.requests[arm.name]
        if not missing[arm.name]:
            continue
        use(model, arm.adapter, requests[0].strength)
        for batch in _batches(missing[arm.name], requests, together):
            known = [planned.wishes[n].known for n in batch]
            asked = [requests[n] for n in batch]
            words = [texts[request.prompt] for request in asked]
            with _Meter(model.device) as meter:
                sets = run_together(model, asked, known, [{}] * len(batch), words)
            for number, made in zip(batch, sets, strict=True):
                folder = made.save(planned.folder(arm, number))
                cost = {"set": folder.name, "seconds": meter.seconds / len(batch)}
                line = json.dumps({**cost, "memory": meter.memory})
                append_line(folder.parent / _TIMES, line)
                done += 1
                if on_set:
                    on_set(arm, done, total)


def _load_vae(model: DiffusionModel, request: Request) -> None:
    """Load it now, or the first set would seem slow."""
    canvas = request.canvas
    count = (canvas.width // model.grid) * (canvas.height // model.grid)
    with torch.no_grad():
        model.decode(torch.zeros(count, model.channels), canvas.width, canvas.height)


def _batches(
    numbers: Sequence[int], requests: Sequence[Request], together: int
) -> Iterator[list[int]]:
    """Neighbours that can be made in one batch."""

    def alike(number: int) -> str:
        return json.dumps([requests[number].layout.to_json(), sorted(requests[number].known)])

    for _, group in groupby(numbers, alike):
        part = list(group)
        yield from (part[at : at + together] for at in range(0, len(part), together))


class _Meter:
    """Seconds and peak memory of a block."""

    seconds = 0.0
    memory = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> _Meter:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.monotonic() - self._began
        if self._device.type == "cuda":
            self.memory = torch.cuda.max_memory_allocated(self._device)
        else:
            self.memory = _process_peak()


def _process_peak() -> int:
    """Most memory this process has had resident, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def read_sets(planned: Plan, arm: Arm) -> tuple[list[Made], dict[str, Cost]]:
    """The sets of an arm in the order of the wishes, and what each cost, by the wish's key.

    Sets whose cost was lost to a kill have none.

    Raises: SettingsError, ImageError if a set is missing or damaged.
    """
    found = []
    for number, wish in enumerate(planned.wishes):
        made = GeneratedSet.load(planned.folder(arm, number))
        found.append(to_made(made, planned.recipe, wish.known))
    return found, _costs(planned, arm)


def to_made(
    made: GeneratedSet, recipe: Recipe, known: Mapping[int, Image.Image] | None = None
) -> Made:
    """A set as metrics see it.

    Args:
        known: the pictures that were given; by default the panels the request says were.
    """
    if known is None:
        known = {n: made.panels[n - 1] for n in made.request.known}
    words: tuple[str, ...] = ()
    if all(marker in made.request.prompt for marker in recipe.markers):
        words = recipe.parse(made.request.prompt).words
    return Made(recipe, made.request.canvas, made.composite, made.panels, words, known)


def _costs(planned: Plan, arm: Arm) -> dict[str, Cost]:
    try:
        lines = (planned.out / arm.folder / _TIMES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    costs = {}
    for line in lines:
        try:
            row = json.loads(line)
            wish = planned.wishes[int(row["set"]) - 1]
            costs[wish.key] = Cost(float(row["seconds"]), int(row["memory"]))
        except (ValueError, KeyError, TypeError, IndexError):
            # Cut short by a kill, or of a longer list of wishes.
            continue
    return costs


def scorer(metric: Metric, recipe: Recipe) -> Callable[[GeneratedSet], float | None]:
    """The metric's main figure of one set; None where it has none. For `making.best.best_of`."""

    def score(made: GeneratedSet) -> float | None:
        (figures,) = metric.of_sets([to_made(made, recipe)])
        return figures.get(metric.main)

    return score
