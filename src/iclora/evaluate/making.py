"""Arms, what all of them are asked for, and the sets they make: kept on disk, never made twice.

OUT/ARM/0001/...       a set as `generate` writes it; numbers mean the same request in every arm
OUT/ARM/times.jsonl    what each cost
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iclora.adapter import Adapter
from iclora.errors import ConfigError
from iclora.evaluate.metric import Made
from iclora.files import append_line
from iclora.generate import run_together, use
from iclora.models.base import DiffusionModel
from iclora.recipe import Recipe
from iclora.request import GeneratedSet, Mode, Request, prepare

__all__ = ["Arm", "Cost", "Plan", "Wish", "make_sets", "plan", "read_sets"]

_TIMES = "times.jsonl"


@dataclass(frozen=True)
class Arm:
    """One way to make sets.

    Attributes:
        adapter: None for the base alone.
        mode: how panels are made around known ones; None for what `prepare` takes by itself.
    """

    name: str
    adapter: Adapter | None = None
    mode: Mode | None = None

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^\w.+-]+", "-", self.name).strip(".-") or "arm"


@dataclass(frozen=True)
class Wish:
    """One set that every arm is asked for.

    Attributes:
        asked: what makes it comparable to other seeds: the prompt's number or the set's name.
        known: given panels by number, counted from 1.
    """

    asked: str
    prompt: str
    seed: int
    known: Mapping[int, Image.Image] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.asked}, seed {self.seed}"


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


@dataclass(frozen=True)
class Plan:
    """Everything that will be made, checked in full."""

    recipe: Recipe
    arms: tuple[Arm, ...]
    wishes: tuple[Wish, ...]
    requests: Mapping[str, tuple[Request, ...]]
    """By arm, one per wish."""
    out: Path
    notes: tuple[str, ...]

    def folder(self, arm: Arm, number: int) -> Path:
        """Where wish `number`, from 0, of an arm lies."""
        return self.out / arm.folder / f"{number + 1:04d}"


def plan(
    model: DiffusionModel,
    recipe: Recipe,
    arms: Sequence[Arm],
    wishes: Sequence[Wish],
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    **how: Any,
) -> Plan:
    """Turn arms and wishes into requests; nothing is computed.

    All arms paint a wish on the same canvas from the same noise: the first adapter's canvas where
    there is one.

    Args:
        out: a new folder, or one that a stopped evaluation of the same plan left.
        how: steps, guidance, strength, boost, resample, resample_from; see `prepare`.
    Raises: ConfigError, CaptionError, LayoutError; ConfigError if `out` holds other sets.
    """
    folders = [arm.folder.lower() for arm in arms]
    for arm, folder in zip(arms, folders, strict=True):
        if folders.count(folder) > 1:
            raise ConfigError(
                f'two arms are called "{arm.name}"', "Name them: --adapter NAME=FILE."
            )
    shaping = next((a.adapter for a in arms if a.adapter and a.adapter.info), None)
    notes: list[str] = []
    requests: dict[str, list[Request]] = {arm.name: [] for arm in arms}
    for wish in wishes:
        first, _ = prepare(
            model, wish.prompt, recipe=recipe, adapter=shaping, size=size, known=wish.known
        )
        for arm in arms:
            request, said = prepare(
                model, wish.prompt, recipe=recipe, adapter=arm.adapter, layout=first.canvas,
                seed=wish.seed, known=wish.known, mode=arm.mode, **how,
            )  # fmt: skip
            requests[arm.name].append(request)
            about_arm = "the adapter was not trained"
            notes += [f"{arm.name}: {n}" if n.startswith(about_arm) else n for n in said]
    found = Plan(
        recipe, tuple(arms), tuple(wishes), {name: tuple(r) for name, r in requests.items()}, out,
        tuple(dict.fromkeys(notes)),
    )  # fmt: skip
    for arm in arms:
        for number in range(len(wishes)):
            _is_made(found, arm, number)
    return found


def _is_made(planned: Plan, arm: Arm, number: int) -> bool:
    """Whether a set is there. Raises: ConfigError if it is another one."""
    folder = planned.folder(arm, number)
    if not folder.exists():
        return False
    if Request.load(folder / "request.json")[0] != planned.requests[arm.name][number]:
        raise ConfigError(
            f"{folder} holds a set of another evaluation, or of this one with other settings",
            "Choose another --out, or remove it.",
        )
    return True


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
        arm.name: [n for n in range(len(planned.wishes)) if not _is_made(planned, arm, n)]
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
        return json.dumps([requests[number].layout, sorted(requests[number].known)])

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

    Raises: ConfigError, ImageError if a set is missing or damaged.
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
