"""The training run: check, encode once, tune a LoRA, checkpoint, go on where it stopped.

All randomness comes from (seed, number of the sample), never from hidden state, so a run that was
stopped and resumed computes the same as one that was not: on one CPU, to the byte. (CUDA's
attention may sum in another order each time, resumed or not.)
"""

from __future__ import annotations

import importlib.util
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iclora.adapter import AdapterInfo
from iclora.errors import DatasetError, RunError, SettingsError
from iclora.files import write_text
from iclora.models.base import DiffusionModel, Sampling
from iclora.models.passes import COMPILED_SHAPES
from iclora.sets.check import SetReport, check_dataset, typical_layout
from iclora.sets.dataset import Dataset, open_dataset
from iclora.sets.recipe import Recipe, recipe_names
from iclora.settings import TrainSettings, read_settings
from iclora.train.cache import Encoded, EncodedSet, Progress, encode_dataset
from iclora.train.folder import RunFolder, TrainState
from iclora.train.objective import Sample, accumulate, schedule
from iclora.train.validation import Validation, hold_out
from iclora.train.workers import Workers

__all__ = ["RunResult", "StepReport", "resume_config", "train"]

# What a resumed run may change; the second kind ends its equality with an unstopped one.
_FREE = {
    "steps",
    "save_every",
    "keep",
    "preview_every",
    "preview_prompts",
    "preview_resolution",
    "trackers",
}
_TELLING = {
    "lr",
    "grad_clip",
    "micro_batch",
    "micro_tokens",
    "gradient_checkpointing",
    "recompute",
    "compile",
    "precision",
    "shard",
    "device",
    "save_dtype",
}


@dataclass(frozen=True)
class StepReport:
    """One finished optimizer step."""

    step: int
    steps: int
    loss: float
    """Mean squared error of the velocity over the step's samples."""
    rate: float
    """Steps per second of late."""

    @property
    def seconds_left(self) -> float:
        return (self.steps - self.step) / self.rate if self.rate else math.inf


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: Path
    step: int
    finished: bool
    """False if it was interrupted; its checkpoint is in the folder."""
    best: int | None = None
    """The step that is best on held-out sets; None where there are none."""

    @property
    def adapter(self) -> Path:
        """The adapter file; there once the run is finished."""
        return self.folder / "adapter.safetensors"


# -- the run ------------------------------------------------------------------------------------


def train(
    config: TrainSettings,
    model: DiffusionModel,
    *,
    resume: bool = False,
    on_encode: Progress | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    make_preview: Callable[[Recipe], Callable[[int, bool], None]] | None = None,
    warn: Callable[[str], None] | None = None,
) -> RunResult:
    """Tune a LoRA on a dataset.

    Ctrl-C or SIGTERM ends it after the current step with a checkpoint; a second one at once.
    Started by `accelerate launch`, several processes share every step; the first one writes.

    Args:
        config: the settings.
        model: the base, opened by `load_model(config.base, ...)`.
        resume: go on from the newest whole checkpoint in `config.out`.
        on_encode: called while the dataset is encoded.
        on_step: called after every optimizer step.
        make_preview: called once with the dataset's recipe, before the encoders are freed; what it
            returns is called with the step every `config.preview_every` steps, while the base
            carries the adapter's averaged weights, and told whether to write. (Processes that
            share a base must all draw; one of them writes.)
        warn: called with anything the user should know that does not stop the run.
    Returns: how it ended.
    Raises: SettingsError for `config.vram`, which `iclora.train.plan` turns into settings;
        DatasetError with every problem `check` finds, before anything is encoded; RunError if
        the folder holds another run, there is nothing to resume, or the loss is not finite;
        StorageError.
    """
    if config.vram is not None:
        raise SettingsError(
            "vram is a wish, and the settings that meet it are still to be chosen",
            "Train with the config of `iclora.train.plan.plan_run(config, here=True)`.",
        )
    warn = warn or (lambda _: None)
    workers = Workers(model.device)
    _check_shares(config, workers, model)
    if not workers.main:
        # What one process says and draws is enough.
        warn, on_encode, on_step = (lambda _: None), None, None
        make_preview = make_preview if config.shard else None
    if not resume and workers.main:
        _refuse_taken(Path(config.out))
    dataset = open_dataset(config.data, config.recipe)
    reports = _check(dataset, model, config, warn)
    further = _further(config, dataset, model, warn)
    wanted = make_preview if config.preview_every else None
    preview = wanted(dataset.recipe) if wanted else None
    about = _describe(config, model, dataset, reports)
    run = RunFolder(config, about, dataset.digest, model.identity())
    if workers.main:
        write_text(run.path / "config.toml", _anywhere(config, model).to_toml())
    else:
        # The cache is filled once; then there is nothing left to encode.
        workers.wait()
    encoded, held = _encode(config, model, dataset, further, run.path, on_encode)
    if workers.main:
        workers.wait()
    if config.compile:
        _tell_shapes(encoded, warn)
    if config.shard:
        model.mesh = workers.mesh()
        # In turn: each reads the whole base into the machine's memory before it keeps its part.
        with workers.in_turn():
            model.denoiser  # noqa: B018
    state = TrainState.fresh(model, config)
    if resume:
        state = _restore(run, state, model, workers, warn)
    model.recompute = config.recomputed(model.blocks)
    model.compiled = config.compile
    with (
        _interruptible() as interrupted,
        _tracking(config, run.path, state.step, workers.main) as track,
    ):
        loop = _Loop(
            run,
            model,
            encoded,
            state,
            workers,
            run.validation(held, encoded.sets),
            interrupted,
            on_step,
            preview,
            track,
        )
        finished = loop.run_to_end()
    if finished and workers.main:
        run.finish(state)
    workers.wait()
    return RunResult(run.path, state.step, finished, run.best_step())


def _check_shares(config: TrainSettings, workers: Workers, model: DiffusionModel) -> None:
    """Raises: RunError if a base cannot be spread as it is asked for."""
    if not config.shard:
        return
    if workers.count == 1:
        raise RunError(
            "shard spreads the base over several processes, and this is the only one",
            "Start it by `accelerate launch --num_processes 2 -m iclora train ...`.",
        )
    if config.batch % workers.count:
        raise RunError(
            f"{workers.count} processes cannot share a batch of {config.batch} evenly, and those "
            "that share a base must make as many passes each",
            f"Choose a --batch that {workers.count} divides.",
        )
    model.release("denoiser")


def _further(
    config: TrainSettings, dataset: Dataset, model: DiffusionModel, warn: Callable[[str], None]
) -> Dataset | None:
    """The sets of `config.validation`, checked as those that are trained on."""
    if config.validation is None:
        return None
    further = open_dataset(config.validation, config.recipe)
    if further.recipe.markers != dataset.recipe.markers:
        raise DatasetError(
            f"{config.validation} holds sets of {further.recipe.name}, {config.data} of "
            f"{dataset.recipe.name}",
            "Measure on sets of the same recipe.",
        )
    _check(further, model, config, warn)
    return further


def _encode(
    config: TrainSettings,
    model: DiffusionModel,
    dataset: Dataset,
    further: Dataset | None,
    folder: Path,
    progress: Progress | None,
) -> tuple[Encoded, list[EncodedSet]]:
    """The sets to train on and those to measure on; encoders are freed behind the last."""
    cache = Path(config.cache) if config.cache else folder / "cache"

    def encode(data: Dataset) -> Encoded:
        return encode_dataset(
            model,
            data,
            resolutions=config.resolutions,
            upscale=config.upscale,
            folder=cache,
            progress=progress,
        )

    found = encode(dataset)
    if further:
        return found, list(encode(further).sets)
    kept, held = hold_out(found.sets, config.held_out, config.seed)
    if not kept:
        raise DatasetError(
            f"{config.data} has {len(found.sets)} sets and all of them would be held out",
            "Add sets, or leave --held-out away.",
        )
    sets = tuple(found.sets[i] for i in kept)
    return Encoded(sets, found.empty, found.usual), [found.sets[i] for i in held]


def _tell_shapes(encoded: Encoded, warn: Callable[[str], None]) -> None:
    shapes = {layout.size for entry in encoded.sets for layout in entry.layouts}
    if len(shapes) > COMPILED_SHAPES:
        warn(
            f"the sets have {len(shapes)} canvas sizes; blocks are compiled for the first "
            f"{COMPILED_SHAPES} that come up, and the others run uncompiled. Fewer --resolutions "
            "make fewer"
        )


def _restore(
    run: RunFolder,
    state: TrainState,
    model: DiffusionModel,
    workers: Workers,
    warn: Callable[[str], None],
) -> TrainState:
    """Take up the newest whole checkpoint, the main process first: it sets damaged ones aside."""
    if not workers.main:
        workers.wait()
    if not run.restore(state, warn, cut=workers.main):
        state = TrainState.fresh(model, run.config)
    if workers.main:
        workers.wait()
    return state


def _refuse_taken(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if (folder / "config.toml").is_file():
        raise RunError(
            f"{folder} already holds a run",
            f"Go on with it by `iclora train --resume {folder}`, or choose another --out.",
        )
    raise RunError(f"{folder} is not an empty folder", "Choose another --out.")


def resume_config(
    folder: str | Path, overrides: dict[str, Any], warn: Callable[[str], None] | None = None
) -> TrainSettings:
    """The settings of the run in `folder`, with those changed that a resumed run may change.

    Args:
        warn: told of changes after which the run is no longer what it would have been unstopped.
    Raises: RunError for a setting that would make it another run; SettingsError.
    """
    path = Path(folder, "config.toml")
    if not path.is_file():
        raise RunError(f"{folder} holds no run (no config.toml)", "Check the path.")
    fixed = sorted(set(overrides) - _FREE - _TELLING)
    if fixed:
        raise RunError(
            f"a resumed run cannot change {', '.join(fixed)}",
            "Start a new run with another --out for that.",
        )
    telling = sorted(set(overrides) & _TELLING)
    if telling and warn:
        warn(f"with another {', '.join(telling)} the result differs from an unstopped run's")
    return read_settings(TrainSettings, path, {**overrides, "out": str(folder)})


def _check(
    dataset: Dataset, model: DiffusionModel, config: TrainSettings, warn: Callable[[str], None]
) -> list[SetReport]:
    found = check_dataset(
        dataset,
        count_tokens=model.count_tokens,
        limit=model.max_text_tokens,
        resolutions=config.resolutions,
        upscale=config.upscale,
        grid=model.grid,
    )
    reports = list(found)
    problems = [*dataset.problems, *(p for report in reports for p in report.problems)]
    errors = [p for p in problems if p.severity == "error"]
    if errors:
        raise DatasetError(
            f"{len(errors)} problem{'s' * (len(errors) > 1)} in {dataset.path}:\n"
            + "\n".join(f"  {p}" for p in errors),
            "Nothing was trained. Mend these; `iclora check` shows them again.",
        )
    for problem in problems:
        warn(str(problem))
    return reports


def _anywhere(config: TrainSettings, model: DiffusionModel) -> TrainSettings:
    """The settings with absolute paths, so that the run is resumed from any folder."""
    # A recipe's name stays a name, even where a folder is called like it.
    own = config.recipe is not None and config.recipe not in recipe_names()
    paths = {
        "data": config.data,
        "validation": config.validation,
        "cache": config.cache,
        "recipe": config.recipe if own else None,
    }
    found = {key: str(Path(path).resolve()) for key, path in paths.items() if path}
    return config.model_copy(update={**found, "base": model.name})


def _describe(
    config: TrainSettings, model: DiffusionModel, dataset: Dataset, reports: Sequence[SetReport]
) -> AdapterInfo:
    # A base with a fixed number of steps says nothing about others, which may use the adapter too.
    usual = Sampling() if model.sampling.fixed_steps else model.sampling
    layout = typical_layout(dataset.recipe.canvas, [r.sizes for r in reports], model.grid)
    return AdapterInfo(
        base=model.name,
        family=model.family,
        rank=config.rank,
        alpha=config.alpha,
        targets=config.targets,
        steps=0,
        recipe=dataset.recipe.sampled(usual.steps, usual.guidance or 0.0),
        layout=layout,
        conditional=config.conditional,
        isolate_given=config.isolate_given,
    )


@dataclass
class _Loop:
    """Steps until the last one or an interrupt; both leave a checkpoint."""

    run: RunFolder
    model: DiffusionModel
    encoded: Encoded
    state: TrainState
    workers: Workers
    validation: Validation | None
    interrupted: threading.Event
    on_step: Callable[[StepReport], None] | None
    preview: Callable[[int, bool], None] | None
    track: Track
    watch: _Watch = field(default_factory=lambda: _Watch())
    rate: float = 0.0

    def run_to_end(self) -> bool:
        """Returns: False if it was interrupted. Raises: RunError if the loss runs away."""
        config, state = self.run.config, self.state
        sizes = [len(s.layouts) for s in self.encoded.sets]
        if state.step == 0:
            self._measure()
        while state.step < config.steps:
            began = time.monotonic()
            first = state.step * config.batch
            samples = [schedule(config.seed, first + i, sizes) for i in range(config.batch)]
            loss, stopping = self._step(samples)
            latest = 1 / max(time.monotonic() - began, 1e-9)
            self.rate = self.rate + (latest - self.rate) * 0.1 if self.rate else latest
            if self.on_step:
                self.on_step(StepReport(state.step, config.steps, loss, self.rate))
            # Several processes stop together, at the step that all of them heard of.
            stopping |= self.workers.count == 1 and self.interrupted.is_set()
            last = state.step == config.steps
            if last or stopping or state.step % config.save_every == 0:
                self._keep()
            if stopping and not last:
                return False
            if self.preview and (last or state.step % config.preview_every == 0):
                with state.averaged(), torch.no_grad():
                    self.preview(state.step, self.workers.main)
        return True

    def _step(self, samples: Sequence[Sample]) -> tuple[float, bool]:
        """One optimizer step of all processes. Returns: its loss, and whether to stop."""
        config, state = self.run.config, self.state
        names = [self.encoded.sets[sample.set].name for sample in samples]
        mine = self.workers.share(samples)
        loss = accumulate(self.model, self.encoded, mine, config, len(samples))
        loss, stop = self.workers.sum(state.live.values(), loss, float(self.interrupted.is_set()))
        loss = apply_step(state, config, loss)
        self.watch.see(loss, state.step, names, self.run)
        if self.workers.main:
            self.run.log(state, loss, names)
            self.track({"loss": loss}, state.step)
        return loss, stop > 0

    def _keep(self) -> None:
        """Measure, then write a checkpoint; the main process alone writes."""
        self._measure()
        if self.workers.main:
            self.run.checkpoint(self.state)
        self.workers.wait()

    def _measure(self) -> None:
        # Processes that share a base must measure together.
        main, shared = self.workers.main, self.run.config.shard
        if self.validation is None or not (main or shared):
            return
        with self.state.averaged():
            found = self.validation.take(self.model, self.state.step, write=main)
        self.track({"held out": found.loss}, self.state.step)


def apply_step(state: TrainState, config: TrainSettings, loss: float) -> float:
    """Clip the gradient and apply it.

    Returns: the loss, or the norm of the gradient if that is not finite; no weight has been
    changed then.
    """
    norm = float(nn.utils.clip_grad_norm_(state.live.values(), config.grad_clip))
    loss = loss if math.isfinite(norm) else norm
    if math.isfinite(loss):
        state.optimizer.step()
        state.step += 1
        state.average(config.ema)
    state.optimizer.zero_grad(set_to_none=True)
    return loss


@dataclass
class _Watch:
    """Ends a run whose loss is no number, or has left what it had reached for good."""

    mean: float = 0.0
    least: float = math.inf
    seen: int = 0

    def see(self, loss: float, step: int, names: Sequence[str], run: RunFolder) -> None:
        """Raises: RunError naming the step and its sets."""
        back = (
            "Look at these sets, and go on from the last checkpoint with a lower rate: "
            f"`iclora train --resume {run.path} --lr {run.config.lr / 3:.1e}`."
        )
        if not math.isfinite(loss):
            raise RunError(
                f"the loss or its gradient became {loss} at step {step + 1}, on sets "
                + ", ".join(names),
                back,
            )
        self.seen += 1
        # A mean over some 20 steps: single losses differ tenfold with their noise levels.
        self.mean += (loss - self.mean) * max(0.05, 1 / self.seen)
        if self.seen >= 40:
            self.least = min(self.least, self.mean)
        if self.mean > 3 * self.least:
            raise RunError(
                f"the loss has risen from {self.least:.3f} to {self.mean:.3f} (means of some 20 "
                f"steps) by step {step}, last on sets {', '.join(names)}",
                back,
            )


Track = Callable[[dict[str, float], int], None]
"""Tells trackers some numbers of a step."""


@contextmanager
def _tracking(config: TrainSettings, folder: Path, step: int, main: bool) -> Iterator[Track]:
    """TensorBoard, W&B or trackio, through accelerate, as far as they are wanted and installed.

    Args:
        step: of the run so far; what TensorBoard holds behind it is taken again.
    """
    names = [
        name
        for name in config.trackers
        if name != "tensorboard" or importlib.util.find_spec("tensorboard")
    ]
    if not names or not main:
        yield lambda _values, _step: None
        return
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if missing:
        raise RunError(
            f"{', '.join(missing)} is not installed", f"pip install {' '.join(missing)}."
        )
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    trackers: list[Any] = [
        LOGGER_TYPE_TO_CLASS[name]("tensorboard", logging_dir=folder, purge_step=step + 1)
        if name == "tensorboard"
        else LOGGER_TYPE_TO_CLASS[name]("iclora", name=folder.name)
        for name in names
    ]
    for tracker in trackers:
        tracker.start()

    def track(values: dict[str, float], step: int) -> None:
        for tracker in trackers:
            tracker.log(values, step=step)

    try:
        yield track
    finally:
        for tracker in trackers:
            tracker.finish()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    kept = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in kept.items():
            signal.signal(number, handler)

    def flag(*_: object) -> None:
        event.set()
        restore()

    for number in kept:
        signal.signal(number, flag)
    try:
        yield event
    finally:
        restore()
