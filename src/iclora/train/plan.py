"""Choose settings with which a run fits a card, and predict how long it will take.

Memory and FLOPs are counted (`iclora.train.costs`); speed is measured on the device that is
here, or not predicted at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import tomli_w
import torch

from iclora.errors import SettingsError
from iclora.models import load_model
from iclora.models.base import DiffusionModel
from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.settings import Offload, Precision, TrainSettings
from iclora.train.canvases import Canvases, CanvasesOf, canvases_of_sets, find_canvases, texts_of
from iclora.train.card import GB, Card, find_card, speed_of
from iclora.train.costs import Costs
from iclora.train.data import RunData, check_base, find_data, unread_by_base
from iclora.train.whole import check_dtype, too_large

__all__ = ["Plan", "choose", "plan_run"]

# How much of the speed of a large matrix product a training step reaches. Assumed: public FLUX.1
# trainers reach 26% (torchtitan, all weights, not compiled); nothing here was measured on a GPU.
_EFFICIENCY = (0.25, 0.6)

_ORDER: tuple[Precision, ...] = ("full", "int8", "nf4")
"""From the most exact to the smallest; fp8 needs a card that has it, so only who asks gets it."""


@dataclass(frozen=True)
class Plan:
    """Settings that fit, and what they are predicted to take."""

    settings: TrainSettings
    """The run's settings, the chosen ones among them."""
    card: Card
    canvases: Canvases
    phases: dict[str, int]
    """Bytes at the peak of each part of the run."""
    recomputed: int
    """Blocks that keep only their input for the backward pass."""
    blocks: int
    """Blocks of the base."""
    groups: str
    """How many sets are computed together, in words."""
    seconds: tuple[float, float] | None
    """Least and most that a step takes; None for a card that is not here."""
    built_in: bool = False
    """True if the base's architecture is the one that ships with iclora."""
    data: RunData | None = None
    """The checked sets of a run on this machine, for `train`."""

    @property
    def peak(self) -> int:
        """Bytes at the peak of the run."""
        return max(self.phases.values())

    def __str__(self) -> str:
        settings, card, sizes = self.settings, self.card, self.canvases.distinct
        where = f"on {card.device}" if card.device else "for a CUDA card that is not here"
        outline = " (its architecture as it ships with iclora)" if self.built_in else ""
        phases = ", ".join(f"{name} {_gb(size)}" for name, size in self.phases.items())
        return "\n".join(
            (
                f"plan         {_gb(card.memory)} GB {where}, {str(card.dtype)[6:]}",
                f"base         {settings.base}{outline}",
                f"canvases     {_span(sizes)}: {self.canvases.source}",
                f"precision    {settings.precision}",
                f"recompute    {self.recomputed} of {self.blocks} blocks",
                f"micro_tokens {settings.micro_tokens} ({self.groups})",
                f"peak memory  {_gb(self.peak)} GB of {_gb(card.usable)} that can be filled: "
                f"{phases}",
                f"time         {self._time()}",
            )
        )

    def _time(self) -> str:
        if self.seconds is None:
            return "not predicted: speed is measured on the card itself, and " + (
                "another process measures it" if self.card.device else "it is not here"
            )
        low, high = self.seconds
        hours = [self.settings.steps * s / 3600 for s in self.seconds]
        return (
            f"{low:.2g} to {high:.2g} s a step, {hours[0]:.2g} to {hours[1]:.2g} h for "
            f"{self.settings.steps} steps, if they reach {_EFFICIENCY[1]:.0%} to "
            f"{_EFFICIENCY[0]:.0%} of this device's matrix products"
        )

    def run_file(self) -> str:
        """Write a run file with the chosen settings and all that are not the defaults."""
        own = self.settings.table(exclude_defaults=True)
        chosen = self.settings.table(include={"resolutions", "precision", "micro_tokens"})
        about = (
            f"# Chosen by `iclora plan` for {self.card.memory / GB:g} GB, "
            f"{_span(self.canvases.distinct)}: predicted peak {_gb(self.peak)} GB.\n"
            "# Counted, not measured on a GPU: see docs/plan.md.\n"
        )
        return about + tomli_w.dumps({"train": own | chosen | {"recompute": self.recomputed}})


def _gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= GB else f"{size / GB:.2g}"


def _span(sizes: Sequence[tuple[int, int]]) -> str:
    first, last = ("x".join(map(str, size)) for size in (sizes[0], sizes[-1]))
    return first if first == last else f"{first} to {last} px"


# -- what a run is ------------------------------------------------------------------------------


def plan_run(
    settings: TrainSettings, *, here: bool, warn: Callable[[str], None] | None = None
) -> Plan:
    """Choose the settings that the run file leaves open.

    Args:
        settings: `vram` says how much memory there is; auto or None asks the device.
        here: True if the run is to take place on this machine: then its sets are checked, and
            handed on in the plan. Otherwise a `vram` in GB may stand for a card that this machine
            does not have, and the dataset and the base may still be missing.
        warn: told of everything that is odd about the sets, and of settings that the base does not
            read.
    Raises: SettingsError if nothing fits, saying by how much, or for a base that training spoils;
        ModelError, DatasetError.
    """
    card = find_card(settings, here)
    outline = None if here else shipped_outline(settings.base)
    dtype = {torch.bfloat16: "bf16", torch.float32: "fp32"}[card.dtype]
    model = load_model(str(outline or settings.base), "cpu", dtype, weights=False)
    check_base(settings, model)
    if settings.targets == "full":
        check_dtype(card.dtype)
    data = find_data(settings, model, warn) if here else None
    if data:
        canvases = canvases_of_sets(data.sets, data.dataset, model.grid)
    else:
        for note in unread_by_base(settings, model):
            if warn:
                warn(note)
        canvases = find_canvases(settings, model.grid)
    found = choose(settings, model, card, canvases)
    return replace(found, built_in=outline is not None, data=data)


# -- the choice ---------------------------------------------------------------------------------


def choose(
    settings: TrainSettings, model: DiffusionModel, card: Card, canvases_of: CanvasesOf
) -> Plan:
    """Choose the most exact precision that fits, then the fewest recomputed blocks, then the
    largest micro-batches. Settings that the user set are left as they are.

    Args:
        model: the base, opened without its weights.
        canvases_of: finds the canvases of a run with some settings.
    Raises: SettingsError if nothing fits.
    """
    canvases = canvases_of(settings)
    # What is quantised is not trained.
    fixed = "precision" in settings.model_fields_set or settings.targets == "full"
    kinds = (settings.precision,) if fixed else _ORDER
    for kind in kinds:
        trial = _Trial(settings, model, card, canvases, kind)
        if trial.fits:
            return trial.plan()
    raise _nothing_fits(trial, canvases_of)


class _Trial:
    """A run in one precision."""

    def __init__(
        self,
        settings: TrainSettings,
        model: DiffusionModel,
        card: Card,
        canvases: Canvases,
        precision: Precision,
    ) -> None:
        self.settings, self.model, self.card, self.canvases = settings, model, card, canvases
        self.precision = precision
        self.costs = Costs(outline_of(model, card.dtype, precision), settings, card.kernels)
        self.texts = texts_of(settings, canvases)
        self.text_tokens = self.texts * self.costs.outline.text_tokens
        self.micro_tokens = settings.micro_tokens

    @property
    def fits(self) -> bool:
        room = self.card.usable
        # The cheapest answer first: if the weights alone are too large, no block is counted.
        return self.costs.held <= room and max(*self.beside.values(), self.peak()) <= room

    @cached_property
    def beside(self) -> dict[str, int]:
        """Bytes at the peaks of everything that is not a step."""
        width, height = self.canvases.distinct[-1]
        costs, side = self.costs, round(self.settings.preview_resolution / 16) * 16
        found = {
            "captions": costs.text(),
            "pictures": costs.images(width, height),
            "loading": costs.loading(),
            "optimizer": costs.optimizer(),
        }
        if self.settings.preview_every:
            found["previews"] = costs.preview(side, side, self.texts)
        return found

    @cached_property
    def recompute(self) -> int:
        """The fewest blocks with which it fits; all blocks if it does not."""
        own = {"recompute", "gradient_checkpointing"} & self.settings.model_fields_set
        if own or self.settings.offload == "blocks":
            return self.settings.recomputed(self.model.blocks)
        every = range(self.model.blocks + 1)
        return next((r for r in every if self.peak(r) <= self.card.usable), every[-1])

    def peak(self, recompute: int | None = None, micro_tokens: int | None = None) -> int:
        """Bytes at the peak of a step."""
        blocks = self.recompute if recompute is None else recompute
        most = self.micro_tokens if micro_tokens is None else micro_tokens
        loads = sorted(map(self._load(most), self.canvases.distinct), key=self._tokens)
        # With as many sets at a time the largest canvas takes the most.
        heaviest = {load.count: load for load in loads}.values()
        return max(self.costs.step(load, blocks) for load in heaviest)

    def _load(self, micro_tokens: int) -> Callable[[tuple[int, int]], Batch]:
        """Return a function from a canvas to the sets of it that are computed together."""

        def load(size: tuple[int, int]) -> Batch:
            one = self._tokens(Batch(1, *size))
            many = max(self.settings.micro_batch, micro_tokens // one)
            return Batch(
                min(many, self.settings.batch),
                *size,
                self.settings.conditional > 0,
                self.settings.isolate_given,
                self.texts,
            )

        return load

    def _tokens(self, load: Batch) -> int:
        return load.count * (load.width * load.height // self.model.grid**2 + self.text_tokens)

    def _largest_groups(self) -> int:
        """Find the most `micro_tokens` that fit; 0 if no two sets do."""
        if "micro_tokens" in self.settings.model_fields_set:
            return self.settings.micro_tokens
        ones = {self._tokens(Batch(1, *size)) for size in self.canvases.distinct}
        steps = sorted({one * n for one in ones for n in range(2, self.settings.batch + 1)})
        low, high = 0, len(steps)
        while low < high:
            middle = (low + high) // 2
            if self.peak(micro_tokens=steps[middle]) <= self.card.usable:
                low = middle + 1
            else:
                high = middle
        return steps[low - 1] if low else 0

    def plan(self) -> Plan:
        self.micro_tokens = self._largest_groups()
        phases = {**self.beside, "training": self.peak()}
        update: dict[str, Any] = {
            "precision": self.precision,
            "recompute": self.recompute,
            "micro_tokens": self.micro_tokens,
        }
        settings = self.settings.model_copy(update={**update, "vram": None})
        sizes = self.canvases.distinct
        ends = dict.fromkeys((sizes[0], sizes[-1]))
        groups = ", ".join(
            f"{self._load(self.micro_tokens)(size).count} of {size[0]}x{size[1]}" for size in ends
        )
        return Plan(
            settings,
            self.card,
            self.canvases,
            phases,
            self.recompute,
            self.model.blocks,
            f"at a time {groups}",
            self._seconds(),
        )

    def _seconds(self) -> tuple[float, float] | None:
        """Predict the seconds of a step: FLOPs over this device's speed."""
        rate = speed_of(self.card)
        if rate is None:
            return None
        flops = _between({w * h for w, h in self.canvases.distinct}, self._flops)
        mean = sum(sum(flops(w * h) for w, h in own) / len(own) for own in self.canvases.sets)
        step = self.settings.batch * mean / len(self.canvases.sets)
        low, high = _EFFICIENCY
        return step / rate / high, step / rate / low

    def _flops(self, area: int) -> int:
        width = self.model.grid
        load = Batch(1, width, area // width, texts=self.texts)
        return self.costs.flops(load, self.recompute)


def _between(areas: Iterable[int], count: Callable[[int], int]) -> Callable[[int], float]:
    """Interpolate `count`: counted at three areas, since FLOPs are a quadratic of the tokens."""
    known = sorted(set(areas))
    picked = known if len(known) <= 3 else [known[0], known[len(known) // 2], known[-1]]
    values = {area: count(area) for area in picked}

    def at(area: int) -> float:
        # Lagrange's polynomial.
        return sum(
            value * math.prod((area - other) / (one - other) for other in values if other != one)
            for one, value in values.items()
        )

    return at


# -- if nothing fits -----------------------------------------------------------------------------


def _nothing_fits(trial: _Trial, canvases_of: CanvasesOf) -> SettingsError:
    card, costs = trial.card, trial.costs
    if trial.settings.targets == "full" and costs.held > card.usable:
        return too_large(trial.model.name, costs.lora, costs.held, card.usable)
    have = f"the {_gb(card.usable)} GB that {card.memory / GB:.4g} GB leave for tensors"
    name, most = max(trial.beside.items(), key=lambda item: item[1])
    takes = trial.peak()
    words = trial.beside["captions"]
    if words > card.usable:  # Smaller canvases would be of no use.
        name, most = "captions", words
    if most > card.usable and (name == "captions" or most > takes):
        advice = {
            "captions": "The text encoders need that much whatever is trained.",
            "pictures": "Use smaller `resolutions`.",
            "previews": "Use a smaller `preview_resolution`, or `preview_every` 0.",
        }.get(name, "Use a smaller `precision` or `rank`, or a larger card.")
        if name == "captions":
            least = math.ceil(card.memory_for(words) / GB)
            advice += _offloaded(trial, canvases_of, "text")
            advice += f" Or use a card of {least} GB or more."
        return SettingsError(
            f"nothing fits: {name} alone take {_gb(most)} GB in {trial.precision}, "
            f"{_gb(most - card.usable)} GB more than {have}",
            advice,
            setting="vram",
        )
    width, height = trial.canvases.distinct[-1]
    problem = (
        f"nothing fits: {trial.precision} with {trial.recompute} of {trial.model.blocks} blocks "
        f"recomputed takes {_gb(takes)} GB at {width}x{height}, "
        f"{_gb(takes - card.usable)} GB more than {have}"
    )
    advice = _smaller(trial, canvases_of, trial.settings)
    advice += _offloaded(trial, canvases_of, "blocks", advice)
    return SettingsError(problem, advice, setting="vram")


def _offloaded(trial: _Trial, canvases_of: CanvasesOf, place: Offload, said: str = "") -> str:
    """Say whether the run fits if this stays in the machine's memory, without what was `said`."""
    settings = trial.settings
    if settings.offload in (place, "blocks") or settings.targets == "full" or settings.shard:
        return ""
    try:
        less = settings.model_copy(update={"offload": place})
        found = choose(less, trial.model, trial.card, canvases_of).settings.precision
    except SettingsError as error:
        if place == "text":
            return _offloaded(trial, canvases_of, "blocks")
        further = f" Set `offload` to blocks, and then: {error.advice}"
        return further if error.advice != said else ""
    how = "the CPU runs them" if place == "text" else "its blocks come to the card one ahead"
    return f" Set `offload` to {place}: {how}, and the run fits in {found}."


def _smaller(trial: _Trial, canvases_of: CanvasesOf, settings: TrainSettings) -> str:
    """Name resolutions that would fit, or the settings that stand in the way."""
    own = {"precision", "recompute", "gradient_checkpointing", "micro_batch", "micro_tokens"}
    fixed = [f"`{name}`" for name in sorted(own & settings.model_fields_set)]
    free = f"Leave {', '.join(fixed)} open, or use" if fixed else "Use"
    for count in range(len(settings.resolutions) - 1, 0, -1):
        sides = tuple(sorted(settings.resolutions)[:count])
        less = settings.model_copy(update={"resolutions": sides})
        trial.canvases = canvases_of(less)
        if trial.peak() <= trial.card.usable:
            return f"{free} smaller canvases: `resolutions` {' '.join(map(str, sides))} fits."
    least = min(settings.resolutions)
    return f"{free} `resolutions` below {least}, or a card with more memory."
