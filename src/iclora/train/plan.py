"""Which settings make a run fit a card, and how long it will take.

Memory and FLOPs are counted (`iclora.train.costs`); speed is measured on the device that is
here, or not predicted at all.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli_w
import torch

from iclora.errors import SettingsError
from iclora.models import load_model
from iclora.models.base import DiffusionModel
from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.models.registry import pick_device, pick_dtype
from iclora.sets.check import check_dataset, training_layouts
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import load_recipe
from iclora.settings import Precision, TrainSettings
from iclora.train.costs import Costs, Kernels

__all__ = ["Canvases", "Card", "Plan", "choose", "find_canvases", "find_card", "plan_run"]

GB = 10**9

# Not counted: the CUDA context and its libraries' workspaces, and what lies unused between blocks
# of memory. Assumed, not measured.
_CONTEXT, _UNUSED = 0.6 * GB, 0.03

# How much of the speed of a large matrix product a training step reaches. Assumed: public FLUX.1
# trainers reach 26% (torchtitan, all weights, not compiled); nothing here was measured on a GPU.
_EFFICIENCY = (0.25, 0.6)

_ORDER: tuple[Precision, ...] = ("full", "int8", "nf4")
"""From the most exact to the smallest; fp8 needs a card that has it, so only who asks gets it."""


@dataclass(frozen=True)
class Card:
    """Where a run is to take place.

    Attributes:
        memory: bytes it has.
        device: None for a card that is not in this machine.
    """

    memory: int
    kernels: Kernels
    dtype: torch.dtype
    device: torch.device | None = None

    @property
    def usable(self) -> int:
        """Bytes that tensors may fill."""
        return int(self.memory * (1 - _UNUSED) - _CONTEXT)


@dataclass(frozen=True)
class Canvases:
    """The canvases a run trains at.

    Attributes:
        sets: of each set its sizes in px. source: where they are from, in words.
    """

    sets: tuple[tuple[tuple[int, int], ...], ...]
    source: str

    @property
    def distinct(self) -> list[tuple[int, int]]:
        """By area, the largest last."""
        return sorted({size for sizes in self.sets for size in sizes}, key=lambda s: s[0] * s[1])


@dataclass(frozen=True)
class Plan:
    """Settings that fit, and what they are predicted to take.

    Attributes:
        config: the run's settings, the chosen ones among them.
        phases: bytes at the peak of each part of the run.
        recomputed: blocks that are, of `blocks`.
        seconds: a step takes, least and most; None for a card that is not here.
    """

    config: TrainSettings
    card: Card
    canvases: Canvases
    phases: dict[str, int]
    recomputed: int
    blocks: int
    groups: str
    seconds: tuple[float, float] | None
    built_in: bool = False

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    def __str__(self) -> str:
        config, card, sizes = self.config, self.card, self.canvases.distinct
        where = f"on {card.device}" if card.device else "for a CUDA card that is not here"
        outline = " (its architecture as it ships with iclora)" if self.built_in else ""
        phases = ", ".join(f"{name} {_gb(size)}" for name, size in self.phases.items())
        return "\n".join(
            (
                f"plan         {_gb(card.memory)} GB {where}, {str(card.dtype)[6:]}",
                f"base         {config.base}{outline}",
                f"canvases     {_span(sizes)}: {self.canvases.source}",
                f"precision    {config.precision}",
                f"recompute    {self.recomputed} of {self.blocks} blocks",
                f"micro_tokens {config.micro_tokens} ({self.groups})",
                f"peak memory  {_gb(self.peak)} GB of {_gb(card.usable)} that can be filled: "
                f"{phases}",
                f"time         {self._time()}",
            )
        )

    def _time(self) -> str:
        if self.seconds is None:
            return "not predicted: --vram names no device whose speed can be measured"
        low, high = self.seconds
        hours = [self.config.steps * s / 3600 for s in self.seconds]
        return (
            f"{low:.2g} to {high:.2g} s a step, {hours[0]:.2g} to {hours[1]:.2g} h for "
            f"{self.config.steps} steps, if they reach {_EFFICIENCY[1]:.0%} to "
            f"{_EFFICIENCY[0]:.0%} of this device's matrix products"
        )

    def run_file(self) -> str:
        """A run file with the chosen settings and all that are not the defaults."""
        own = self.config.table(exclude_defaults=True)
        chosen = self.config.table(include={"resolutions", "precision", "micro_tokens"})
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


def plan_run(config: TrainSettings, *, here: bool) -> Plan:
    """Choose what the run file leaves open.

    Args:
        config: the settings; `vram` says how much there is, auto or None asks the device.
        here: whether the run is to take place on this machine; otherwise a `vram` in GB may stand
            for a card that this machine has not.
    Raises: SettingsError if nothing fits, saying by how much; ModelError, DatasetError.
    """
    card = find_card(config, here)
    outline = shipped_outline(config.base)
    dtype = {torch.bfloat16: "bf16", torch.float32: "fp32"}[card.dtype]
    model = load_model(str(outline or config.base), "cpu", dtype, weights=False)
    found = choose(config, model, card, lambda c: find_canvases(c, model.grid))
    return replace(found, built_in=outline is not None)


def find_card(config: TrainSettings, here: bool) -> Card:
    """The card of `config.vram` and `config.device`. Raises: SettingsError."""
    vram = None if config.vram == "auto" else config.vram
    if vram is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(
            "several processes could find different memory and plan differently",
            "Give --vram in GB, that of the smallest card.",
        )
    away = vram is not None and not here and config.device in ("auto", "cuda")
    device = torch.device("cuda") if away else pick_device(config.device)
    if away and torch.cuda.is_available():
        away = False
    if device.type == "mps":
        raise SettingsError(
            "what a run takes on MPS cannot be counted yet",
            "Leave --vram away and choose --precision and --recompute yourself.",
        )
    dtype = pick_dtype(config.dtype, device)
    memory = round(vram * GB) if vram is not None else _memory(device)
    kernels: Kernels = "cuda" if device.type == "cuda" else "cpu"
    return Card(memory, kernels, dtype, None if away else device)


def _memory(device: torch.device) -> int:
    """Bytes that are free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError) as error:
        raise SettingsError(
            "this machine does not say how much memory is free", "Give --vram in GB."
        ) from error


def find_canvases(config: TrainSettings, grid: int) -> Canvases:
    """Those of the dataset; before it is there those of the recipe, or squares.

    Raises: DatasetError, RecipeError.
    """
    wanted = config.resolutions
    if Path(config.data).exists():
        dataset = open_dataset(config.data, config.recipe)
        canvas, upscale = dataset.recipe.canvas, config.upscale
        sizes = [report.sizes for report in check_dataset(dataset, grid=grid) if report.sizes]
        source = f"{len(sizes)} sets of {config.data}"
    elif config.recipe:
        canvas, upscale = load_recipe(config.recipe).canvas, True
        sizes, source = [canvas.sizes], f"of {config.recipe}, for {config.data} is not there yet"
    else:
        squares = tuple((round(r / grid) * grid,) * 2 for r in sorted(set(wanted)))
        return Canvases((squares,), f"squares, for {config.data} is not there yet")
    layouts = (training_layouts(canvas, panels, wanted, grid, upscale) for panels in sizes)
    found = tuple(tuple(each.size for each in own) for own in layouts)
    if not found:
        raise SettingsError(f"{config.data} holds no set that can be read", "`iclora check` it.")
    return Canvases(found, source)


# -- the choice ---------------------------------------------------------------------------------


def choose(
    config: TrainSettings,
    model: DiffusionModel,
    card: Card,
    canvases_of: Callable[[TrainSettings], Canvases],
) -> Plan:
    """The most exact precision that fits, then the fewest recomputed blocks, then the largest
    micro-batches. What the user set is left as it is.

    Args:
        model: the base, opened without its weights.
        canvases_of: the canvases of a run with these settings.
    Raises: SettingsError if nothing fits.
    """
    canvases = canvases_of(config)
    kinds = (config.precision,) if "precision" in config.model_fields_set else _ORDER
    for kind in kinds:
        trial = _Trial(config, model, card, canvases, kind)
        if trial.fits:
            return trial.plan()
    raise _nothing_fits(trial, canvases_of)


class _Trial:
    """A run in one precision."""

    def __init__(
        self,
        config: TrainSettings,
        model: DiffusionModel,
        card: Card,
        canvases: Canvases,
        precision: Precision,
    ) -> None:
        self.config, self.model, self.card, self.canvases = config, model, card, canvases
        self.precision = precision
        self.costs = Costs(outline_of(model, card.dtype, precision), config, card.kernels)
        self.text_tokens = self.costs.outline.text_tokens
        self.micro_tokens = config.micro_tokens

    @property
    def fits(self) -> bool:
        room = self.card.usable
        # The cheapest answer first: where the weights alone are too large, no block is counted.
        return self.costs.held <= room and max(*self.beside.values(), self.peak()) <= room

    @cached_property
    def beside(self) -> dict[str, int]:
        """Bytes of all that is not a step."""
        width, height = self.canvases.distinct[-1]
        costs, side = self.costs, round(self.config.preview_resolution / 16) * 16
        found = {
            "captions": costs.text(),
            "pictures": costs.images(width, height),
            "loading": costs.loading(),
            "optimizer": costs.optimizer(),
        }
        if self.config.preview_every:
            found["previews"] = costs.preview(side, side)
        return found

    @cached_property
    def recompute(self) -> int:
        """The fewest blocks with which it fits; as many as may be where it does not."""
        if {"recompute", "gradient_checkpointing"} & self.config.model_fields_set:
            return self.config.recomputed(self.model.blocks)
        every = range(self.model.blocks + 1)
        return next((r for r in every if self.peak(r) <= self.card.usable), every[-1])

    def peak(self, recompute: int | None = None, micro_tokens: int | None = None) -> int:
        """Bytes at the peak of a step."""
        blocks = self.recompute if recompute is None else recompute
        most = self.micro_tokens if micro_tokens is None else micro_tokens
        loads = sorted(map(self._load(most), self.canvases.distinct), key=self._tokens)
        # Of as many sets at a time the largest canvas takes the most.
        heaviest = {load.count: load for load in loads}.values()
        return max(self.costs.step(load, blocks) for load in heaviest)

    def _load(self, micro_tokens: int) -> Callable[[tuple[int, int]], Batch]:
        """How sets of a canvas are computed together."""

        def load(size: tuple[int, int]) -> Batch:
            one = self._tokens(Batch(1, *size))
            many = max(self.config.micro_batch, micro_tokens // one)
            return Batch(
                min(many, self.config.batch),
                *size,
                self.config.conditional > 0,
                self.config.isolate_given,
            )

        return load

    def _tokens(self, load: Batch) -> int:
        return load.count * (load.width * load.height // self.model.grid**2 + self.text_tokens)

    def _largest_groups(self) -> int:
        """The most micro_tokens that fit; 0 where no two sets do."""
        if "micro_tokens" in self.config.model_fields_set:
            return self.config.micro_tokens
        ones = {self._tokens(Batch(1, *size)) for size in self.canvases.distinct}
        steps = sorted({one * n for one in ones for n in range(2, self.config.batch + 1)})
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
        config = self.config.model_copy(update={**update, "vram": None})
        sizes = self.canvases.distinct
        ends = dict.fromkeys((sizes[0], sizes[-1]))
        groups = ", ".join(
            f"{self._load(self.micro_tokens)(size).count} of {size[0]}x{size[1]}" for size in ends
        )
        return Plan(
            config,
            self.card,
            self.canvases,
            phases,
            self.recompute,
            self.model.blocks,
            f"at a time {groups}",
            self._seconds(),
        )

    def _seconds(self) -> tuple[float, float] | None:
        """Of a step: FLOPs over this device's speed."""
        if self.card.device is None:
            return None
        rate = matmul_rate(self.card.device, self.card.dtype)
        flops = _between({w * h for w, h in self.canvases.distinct}, self._flops)
        mean = sum(sum(flops(w * h) for w, h in own) / len(own) for own in self.canvases.sets)
        step = self.config.batch * mean / len(self.canvases.sets)
        low, high = _EFFICIENCY
        return step / rate / high, step / rate / low

    def _flops(self, area: int) -> int:
        width = self.model.grid
        return self.costs.flops(Batch(1, width, area // width), self.recompute)


def _between(areas: Iterable[int], count: Callable[[int], int]) -> Callable[[int], float]:
    """`count` at any area: counted at three, for between them FLOPs are a square of the tokens."""
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


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, measured in some tenths of a second."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


# -- where nothing fits -------------------------------------------------------------------------


def _nothing_fits(trial: _Trial, canvases_of: Callable[[TrainSettings], Canvases]) -> SettingsError:
    card, config = trial.card, trial.config
    have = f"the {_gb(card.usable)} GB that {card.memory / GB:.4g} GB leave for tensors"
    name, most = max(trial.beside.items(), key=lambda item: item[1])
    takes = trial.peak()
    if most > max(card.usable, takes):
        advice = {
            "captions": "The text encoders need that much whatever is trained: use a larger card.",
            "pictures": "Use smaller --resolutions.",
            "previews": "Use a smaller --preview-resolution, or --preview-every 0.",
        }
        return SettingsError(
            f"nothing fits: {name} alone take {_gb(most)} GB in {trial.precision}, "
            f"{_gb(most - card.usable)} GB more than {have}",
            advice.get(name, "Use a smaller --precision or --rank, or a larger card."),
        )
    width, height = trial.canvases.distinct[-1]
    return SettingsError(
        f"nothing fits: {trial.precision} with {trial.recompute} of {trial.model.blocks} blocks "
        f"recomputed takes {_gb(takes)} GB at {width}x{height}, "
        f"{_gb(takes - card.usable)} GB more than {have}",
        _smaller(trial, canvases_of, config),
    )


def _smaller(
    trial: _Trial, canvases_of: Callable[[TrainSettings], Canvases], config: TrainSettings
) -> str:
    """Resolutions that would fit; or which settings stand in the way."""
    own = {"precision", "recompute", "gradient_checkpointing", "micro_batch", "micro_tokens"}
    fixed = sorted(own & config.model_fields_set)
    free = f"Leave {', '.join(fixed)} open, or use" if fixed else "Use"
    for count in range(len(config.resolutions) - 1, 0, -1):
        less = config.model_copy(update={"resolutions": tuple(sorted(config.resolutions)[:count])})
        trial.canvases = canvases_of(less)
        if trial.peak() <= trial.card.usable:
            sides = " ".join(map(str, less.resolutions))
            return f"{free} smaller canvases: --resolutions {sides} fits."
    return f"{free} --resolutions below {min(config.resolutions)}, or a card with more memory."
