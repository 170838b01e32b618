"""The training run: check, encode once, tune a LoRA, checkpoint, go on where it stopped.

All randomness comes from (seed, number of the sample), never from hidden state, so a run that was
stopped and resumed computes the same as one that was not: on one CPU, to the byte. (CUDA's
attention may sum in another order each time, resumed or not.)
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iclora import flow
from iclora.adapter import AdapterInfo
from iclora.cache import Encoded, EncodedSet, Progress, encode_dataset
from iclora.checkpoint import RunFolder, TrainState
from iclora.config import TrainConfig, read_config
from iclora.dataset import Dataset, SetReport, check_dataset, open_dataset, typical_layout
from iclora.errors import DatasetError, RunError
from iclora.files import write_text
from iclora.layout import Layout
from iclora.models.base import DiffusionModel, Text
from iclora.recipe import Recipe, recipe_names

__all__ = ["RunResult", "Sample", "StepReport", "accumulate", "resume_config", "schedule", "train"]

# What a resumed run may change; the second kind ends its equality with an unstopped one.
_FREE = {"steps", "save_every", "keep", "preview_every", "preview_prompts", "preview_resolution"}
_TELLING = {"lr", "grad_clip", "micro_batch", "gradient_checkpointing", "device", "save_dtype"}


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

    @property
    def adapter(self) -> Path:
        """The adapter file; there once the run is finished."""
        return self.folder / "adapter.safetensors"


@dataclass(frozen=True)
class Sample:
    """One draw of the schedule: which set, at which of its canvases."""

    number: int
    """Counted over the whole run; with the seed it decides noise, sigma and dropout."""
    set: int
    size: int


def schedule(seed: int, number: int, sizes: Sequence[int]) -> Sample:
    """What sample `number` of a run is.

    Every set is drawn once in each pass over the dataset, in an order of that pass, and goes
    through all its canvases before one comes again: exposures of two sets differ by one at most.

    Args:
        sizes: how many canvases each set has.
    """
    turn, place = divmod(number, len(sizes))
    order = torch.randperm(len(sizes), generator=flow.generator(seed, "order", turn))
    chosen = int(order[place])
    cycle, nth = divmod(turn, sizes[chosen])
    canvases = torch.randperm(
        sizes[chosen], generator=flow.generator(seed, "canvas", chosen, cycle)
    )
    return Sample(number, chosen, int(canvases[nth]))


# -- the run ------------------------------------------------------------------------------------


def train(
    config: TrainConfig,
    model: DiffusionModel,
    *,
    resume: bool = False,
    on_encode: Progress | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    make_preview: Callable[[Recipe], Callable[[int], None]] | None = None,
    warn: Callable[[str], None] | None = None,
) -> RunResult:
    """Tune a LoRA on a dataset.

    Ctrl-C or SIGTERM ends it after the current step with a checkpoint; a second one at once.

    Args:
        config: the settings.
        model: the base, opened by `load_model(config.base, ...)`.
        resume: go on from the newest whole checkpoint in `config.out`.
        on_encode: called while the dataset is encoded.
        on_step: called after every optimizer step.
        make_preview: called once with the dataset's recipe, before the encoders are freed; what it
            returns is called with the step every `config.preview_every` steps, while the base
            carries the adapter's averaged weights.
        warn: called with anything the user should know that does not stop the run.
    Returns: how it ended.
    Raises: DatasetError with every problem `check` finds, before anything is encoded; RunError if
        the folder holds another run, there is nothing to resume, or the loss is not finite;
        StorageError.
    """
    warn = warn or (lambda _: None)
    if not resume:
        _refuse_taken(Path(config.out))
    dataset = open_dataset(config.data, config.recipe)
    reports = _check(dataset, model, config, warn)
    wanted = make_preview if config.preview_every else None
    preview = wanted(dataset.recipe) if wanted else None
    about = _describe(config, model, dataset, reports)
    run = RunFolder(config, about, dataset.digest, model.identity())
    write_text(run.path / "config.toml", _anywhere(config, model).to_toml())
    encoded = encode_dataset(
        model,
        dataset,
        resolutions=config.resolutions,
        upscale=config.upscale,
        folder=Path(config.cache) if config.cache else run.path / "cache",
        progress=on_encode,
    )
    state = TrainState.fresh(model, config)
    if resume and not run.restore(state, warn):
        state = TrainState.fresh(model, config)
    model.recompute = model.blocks if config.gradient_checkpointing else 0
    with _interruptible() as interrupted:
        finished = _loop(run, model, encoded, state, interrupted, on_step, preview)
    if finished:
        run.plot()
        run.save_adapter(run.path / "adapter.safetensors", state)
    return RunResult(run.path, state.step, finished)


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
) -> TrainConfig:
    """The settings of the run in `folder`, with those changed that a resumed run may change.

    Args:
        warn: told of changes after which the run is no longer what it would have been unstopped.
    Raises: RunError for a setting that would make it another run; ConfigError.
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
    return read_config(path, {**overrides, "out": str(folder)})


def _check(
    dataset: Dataset, model: DiffusionModel, config: TrainConfig, warn: Callable[[str], None]
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


def _anywhere(config: TrainConfig, model: DiffusionModel) -> TrainConfig:
    """The settings with absolute paths, so that the run is resumed from any folder."""
    # A recipe's name stays a name, even where a folder is called like it.
    own = config.recipe is not None and config.recipe not in recipe_names()
    paths = {"data": config.data, "cache": config.cache, "recipe": config.recipe if own else None}
    found = {key: str(Path(path).resolve()) for key, path in paths.items() if path}
    return config.model_copy(update={**found, "base": model.name})


def _describe(
    config: TrainConfig, model: DiffusionModel, dataset: Dataset, reports: Sequence[SetReport]
) -> AdapterInfo:
    layout = typical_layout(dataset.recipe.canvas, [r.sizes for r in reports], model.grid)
    return AdapterInfo(
        base=model.name,
        family=model.family,
        rank=config.rank,
        alpha=config.alpha,
        targets=config.targets,
        steps=0,
        recipe=dataset.recipe,
        layout=layout.to_json(),
    )


def _loop(
    run: RunFolder,
    model: DiffusionModel,
    encoded: Encoded,
    state: TrainState,
    interrupted: threading.Event,
    on_step: Callable[[StepReport], None] | None,
    preview: Callable[[int], None] | None,
) -> bool:
    """Steps until the last one (True) or an interrupt (False); both leave a checkpoint."""
    config = run.config
    sizes = [len(s.layouts) for s in encoded.sets]
    rate = 0.0
    while state.step < config.steps:
        began = time.monotonic()
        first = state.step * config.batch
        samples = [schedule(config.seed, first + i, sizes) for i in range(config.batch)]
        names = [encoded.sets[sample.set].name for sample in samples]
        loss = train_step(model, encoded, samples, state, config)
        if not math.isfinite(loss):
            raise RunError(
                f"the loss or its gradient became {loss} at step {state.step + 1}, on sets "
                + ", ".join(names),
                "Look at these sets, and go on from the last checkpoint with a lower rate: "
                f"`iclora train --resume {run.path} --lr {config.lr / 3:.1e}`.",
            )
        run.log(state, loss, names)
        latest = 1 / max(time.monotonic() - began, 1e-9)
        rate = rate + (latest - rate) * 0.1 if rate else latest
        if on_step:
            on_step(StepReport(state.step, config.steps, loss, rate))
        last, stopping = state.step == config.steps, interrupted.is_set()
        if last or stopping or state.step % config.save_every == 0:
            run.checkpoint(state)
        if stopping and not last:
            return False
        if preview and (last or state.step % config.preview_every == 0):
            with state.averaged(), torch.no_grad():
                preview(state.step)
    return True


def train_step(
    model: DiffusionModel,
    encoded: Encoded,
    samples: Sequence[Sample],
    state: TrainState,
    config: TrainConfig,
) -> float:
    """One optimizer step: the gradient of the samples' mean loss, clipped, applied.

    Returns: the mean loss, or the norm of the gradient if that is not finite; no weight has been
    changed then.
    """
    loss = accumulate(model, encoded, samples, config)
    norm = float(nn.utils.clip_grad_norm_(state.live.values(), config.grad_clip))
    loss = loss if math.isfinite(norm) else norm
    if math.isfinite(loss):
        state.optimizer.step()
        state.step += 1
        state.average(config.ema)
    state.optimizer.zero_grad(set_to_none=True)
    return loss


def accumulate(
    model: DiffusionModel, encoded: Encoded, samples: Sequence[Sample], config: TrainConfig
) -> float:
    """Add the gradient of the samples' mean loss to the LoRA parameters. Returns: the loss.

    Samples are computed in groups of one canvas size, at most `config.micro_batch` at a time;
    every sample weighs the same however it is grouped, and nothing is padded.
    """
    groups: dict[Layout, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[encoded.sets[sample.set].layouts[sample.size]].append(sample)
    total = 0.0
    for layout, members in groups.items():
        for start in range(0, len(members), config.micro_batch):
            part = members[start : start + config.micro_batch]
            losses = _losses(model, encoded, part, layout, config)
            torch.autograd.backward(losses.sum() / len(samples))
            total += float(losses.detach().sum())
    return total / len(samples)


def _losses(
    model: DiffusionModel,
    encoded: Encoded,
    samples: Sequence[Sample],
    layout: Layout,
    config: TrainConfig,
) -> Tensor:
    """Loss of each sample, (B,); all on one canvas."""
    latents, noises, levels, texts = [], [], [], []
    for sample in samples:
        entry = encoded.sets[sample.set]
        x0 = entry.latents(sample.size)
        latents.append(x0)
        key = (config.seed, sample.number)
        noises.append(torch.randn(x0.shape, generator=flow.generator("noise", *key)))
        levels.append(_draw_level(model, config, len(x0), flow.generator("sigma", *key)))
        texts.append(_draw_text(entry, encoded, config, flow.generator("dropout", *key)))
    x0 = torch.stack(latents).to(model.device)
    eps = torch.stack(noises).to(model.device)
    # The model sees sigma in its own precision; noise with the same number, or the two disagree.
    sigma = torch.cat(levels).to(model.device, model.dtype).float()
    z = flow.add_noise(x0, eps, sigma)
    v = model.velocity(z, sigma, texts, (layout.width, layout.height), config.guidance)
    return flow.loss(v, x0, eps)


def _draw_level(
    model: DiffusionModel, config: TrainConfig, tokens: int, rng: torch.Generator
) -> Tensor:
    sigma = flow.draw_sigma(rng, config.sigma_mean, config.sigma_std)
    return flow.shift(sigma, model.shift_mu(tokens)) if config.shift == "resolution" else sigma


def _draw_text(
    entry: EncodedSet, encoded: Encoded, config: TrainConfig, rng: torch.Generator
) -> Text:
    dropped = float(torch.rand(1, generator=rng)) < config.caption_dropout
    return encoded.empty if dropped else entry.text()


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
