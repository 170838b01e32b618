"""The training run: check, encode once, tune a LoRA, checkpoint, go on where it stopped.

All randomness comes from (seed, number of the sample), never from hidden state, so a run that was
stopped and resumed gives the same bytes as one that was not.

    RUN/config.toml                    the settings; `iclora train --resume RUN` reads them
    RUN/log.jsonl, RUN/loss.png        loss of every step, and its plot
    RUN/previews/step-000250.png       what the callback draws
    RUN/checkpoints/step-000250/       adapter.safetensors, and state.safetensors to resume from
    RUN/cache/                         latents and prompt embeddings
    RUN/adapter.safetensors            the result
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from iclora import flow
from iclora.adapter import Adapter, AdapterInfo, attach, fold
from iclora.cache import Encoded, EncodedSet, Progress, encode_dataset
from iclora.config import TrainConfig, read_config
from iclora.dataset import Dataset, check_dataset, open_dataset
from iclora.errors import DatasetError, RunError, StorageError
from iclora.files import append_line, replacing, write_bytes, write_text
from iclora.layout import Layout
from iclora.models.base import DiffusionModel, Text
from iclora.recipe import Recipe

__all__ = ["RunResult", "Sample", "StepReport", "accumulate", "resume_config", "schedule", "train"]

_STATE = "state.safetensors"
_RESUMABLE = {
    "steps", "save_every", "keep", "preview_every", "preview_prompts", "preview_resolution",
    "device", "out", "gradient_checkpointing", "micro_batch", "save_dtype",
}  # fmt: skip


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


# -- state --------------------------------------------------------------------------------------


@dataclass
class _State:
    """All that changes during a run."""

    live: dict[str, nn.Parameter]
    ema: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    step: int = 0

    @classmethod
    def fresh(cls, model: DiffusionModel, config: TrainConfig) -> _State:
        live = attach(
            model, rank=config.rank, alpha=config.alpha, targets=config.targets, seed=config.seed
        )
        optimizer = torch.optim.AdamW(live.values(), lr=config.lr, weight_decay=config.weight_decay)
        return cls(live, {k: v.detach().clone() for k, v in live.items()}, optimizer)

    def average(self, decay: float) -> None:
        """Move the averaged weights towards the live ones.

        The decay grows from 0.1 to its value over the first steps: a plain average would stay
        close to the zeros that B starts from for hundreds of them.
        """
        current = min(decay, self.step / (9 + self.step))
        for key, value in self.live.items():
            self.ema[key].lerp_(value.detach(), 1 - current)

    def tensors(self) -> dict[str, Tensor]:
        found = {f"live/{k}": v.detach() for k, v in self.live.items()}
        found |= {f"ema/{k}": v for k, v in self.ema.items()}
        for key, parameter in self.live.items():
            for name, value in self.optimizer.state[parameter].items():
                found[f"adamw/{name}/{key}"] = value
        return {k: v.to("cpu").contiguous() for k, v in found.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Raises: KeyError if a tensor is missing; RuntimeError if one has another shape."""
        for key, parameter in self.live.items():
            parameter.copy_(tensors[f"live/{key}"])
            self.ema[key].copy_(tensors[f"ema/{key}"])
            self.optimizer.state[parameter] = {
                name: tensors[f"adamw/{name}/{key}"].to(
                    "cpu" if name == "step" else parameter.device
                )
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
        self.step = step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the model computes with the averaged weights."""
        kept = {k: v.detach().clone() for k, v in self.live.items()}
        try:
            for key, parameter in self.live.items():
                parameter.data.copy_(self.ema[key])
            yield
        finally:
            for key, parameter in self.live.items():
                parameter.data.copy_(kept[key])


@dataclass
class _Run:
    """A run's folder and everything written into it."""

    config: TrainConfig
    info: AdapterInfo
    data: str
    """Content hash of the dataset."""
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.config.out)

    def adapter(self, state: _State) -> Adapter:
        scale = self.config.alpha / self.config.rank
        return Adapter(fold(state.ema, scale), self.info.model_copy(update={"steps": state.step}))

    def save_adapter(self, path: Path, state: _State) -> None:
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
        self.adapter(state).save(path, kinds[self.config.save_dtype])

    def checkpoint(self, state: _State) -> None:
        """Write a checkpoint, complete or not at all, and remove the oldest beyond `keep`."""
        folder = self.folder / "checkpoints" / f"step-{state.step:06d}"
        work = folder.with_name(f".{folder.name}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            self.save_adapter(work / "adapter.safetensors", state)
            about = json.dumps({"step": state.step, "data": self.data})
            write_bytes(work / _STATE, save(state.tensors(), {"iclora": about}))
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        except OSError as error:
            raise StorageError(
                f"cannot write {folder}: {error.strerror}", "Free some space."
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for old in _checkpoints(self.folder)[self.config.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        self.plot()

    def log(self, state: _State, loss: float, names: list[str]) -> None:
        row = {"step": state.step, "loss": round(loss, 6), "sets": names}
        append_line(self.folder / "log.jsonl", json.dumps(row))

    def read_log(self, last: int | None = None) -> list[dict[str, Any]]:
        """The log's rows up to step `last`; a torn last line is left out."""
        rows = []
        path = self.folder / "log.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if last is None or row["step"] <= last:
                rows.append(row)
        return rows

    def plot(self) -> None:
        rows = self.read_log()
        if rows:
            plot_loss(
                self.folder / "loss.png", [r["step"] for r in rows], [r["loss"] for r in rows]
            )


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    return sorted((folder / "checkpoints").glob("step-*"), reverse=True)


def plot_loss(path: Path, steps: list[int], losses: list[float]) -> None:
    """A PNG of the loss per step and its running mean."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    smooth, mean = [], losses[0]
    for loss in losses:
        mean += (loss - mean) * 0.05
        smooth.append(mean)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#c9d3e3", linewidth=0.8, label="each step")
    axes.plot(steps, smooth, color="#27548a", linewidth=1.6, label="running mean")
    axes.set(xlabel="step", ylabel="loss (MSE of the velocity)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


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
    _check(dataset, model, config, warn)
    wanted = make_preview if config.preview_every else None
    preview = wanted(dataset.recipe) if wanted else None
    run = _Run(config, _describe(config, model, dataset), dataset.digest)
    write_text(run.folder / "config.toml", config.to_toml())
    encoded = encode_dataset(
        model, dataset, resolutions=config.resolutions, upscale=config.upscale,
        folder=Path(config.cache) if config.cache else run.folder / "cache", progress=on_encode,
    )  # fmt: skip
    state = _State.fresh(model, config)
    if resume and not _restore(run, state, warn):
        state = _State.fresh(model, config)
    if config.gradient_checkpointing:
        denoiser: Any = model.denoiser
        denoiser.enable_gradient_checkpointing()
    with _interruptible() as interrupted:
        finished = _loop(run, model, encoded, state, interrupted, on_step, preview)
    if finished:
        run.plot()
        run.save_adapter(run.folder / "adapter.safetensors", state)
    return RunResult(run.folder, state.step, finished)


def resume_config(folder: str | Path, overrides: dict[str, Any]) -> TrainConfig:
    """The settings of the run in `folder`, with those changed that a resumed run may change.

    Raises: RunError for a setting that would make it another run; ConfigError.
    """
    path = Path(folder, "config.toml")
    if not path.is_file():
        raise RunError(f"{folder} holds no run (no config.toml)", "Check the path.")
    fixed = sorted(set(overrides) - _RESUMABLE)
    if fixed:
        raise RunError(
            f"a resumed run cannot change {', '.join(fixed)}",
            "Start a new run with another --out for that.",
        )
    return read_config(path, {**overrides, "out": str(folder)})


def _check(
    dataset: Dataset, model: DiffusionModel, config: TrainConfig, warn: Callable[[str], None]
) -> None:
    reports = check_dataset(
        dataset, count_tokens=model.count_tokens, limit=model.max_text_tokens,
        resolutions=config.resolutions, grid=model.grid,
    )  # fmt: skip
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


def _describe(config: TrainConfig, model: DiffusionModel, dataset: Dataset) -> AdapterInfo:
    return AdapterInfo(
        base=model.name, family=model.family, rank=config.rank, alpha=config.alpha,
        targets=config.targets, steps=0, recipe=dataset.recipe,
        layout=dataset.recipe.canvas.to_json(),
    )  # fmt: skip


def _refuse_taken(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if (folder / "config.toml").is_file():
        raise RunError(
            f"{folder} already holds a run",
            f"Go on with it by `iclora train --resume {folder}`, or choose another --out.",
        )
    raise RunError(f"{folder} is not an empty folder", "Choose another --out.")


def _restore(run: _Run, state: _State, warn: Callable[[str], None]) -> bool:
    """Take up the newest whole checkpoint. Returns: False if there is none."""
    found = False
    for folder in _checkpoints(run.folder):
        try:
            with safe_open(folder / _STATE, "pt") as file:
                about = json.loads(file.metadata()["iclora"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            state.restore(tensors, int(about["step"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            warn(f"checkpoint {folder} is damaged ({error}); trying the one before it")
            continue
        if about["data"] != run.data:
            warn("the dataset has changed since this checkpoint; the run goes on with the new one")
        found = True
        break
    if not found:
        warn(f"{run.folder} holds no whole checkpoint; starting from step 0")
    # Steps after the checkpoint are taken again, and logged again.
    rows = run.read_log(last=state.step if found else 0)
    write_text(run.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return found


def _loop(
    run: _Run,
    model: DiffusionModel,
    encoded: Encoded,
    state: _State,
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
                f"the loss became {loss} at step {state.step + 1}, on sets {', '.join(names)}",
                "Look at these sets and lower --lr; `iclora train --resume "
                f"{run.folder}` goes on from the last checkpoint.",
            )
        run.log(state, loss, names)
        latest = 1 / max(time.monotonic() - began, 1e-9)
        rate = rate + (latest - rate) * 0.1 if rate else latest
        if on_step:
            on_step(StepReport(state.step, config.steps, loss, rate))
        last = state.step == config.steps
        if last or interrupted.is_set() or state.step % config.save_every == 0:
            run.checkpoint(state)
        if interrupted.is_set() and not last:
            return False
        if preview and (last or state.step % config.preview_every == 0):
            with state.averaged(), torch.no_grad():
                preview(state.step)
    return True


def train_step(
    model: DiffusionModel,
    encoded: Encoded,
    samples: Sequence[Sample],
    state: _State,
    config: TrainConfig,
) -> float:
    """One optimizer step: the gradient of the samples' mean loss, clipped, applied.

    Returns: the mean loss; where it is not finite no weight has been changed.
    """
    loss = accumulate(model, encoded, samples, config)
    if math.isfinite(loss):
        nn.utils.clip_grad_norm_(state.live.values(), config.grad_clip)
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
