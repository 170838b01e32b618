"""All that changes during a run, and the folder it is written to.

RUN/config.toml                    the settings; `iclora train --resume RUN` reads them
RUN/log.jsonl, RUN/loss.png        loss of every step, and its plot
RUN/validation.jsonl, .png         loss on held-out sets at every checkpoint, and its plot
RUN/previews/step-000250.png       what the preview callback draws
RUN/checkpoints/step-000250/       adapter.safetensors, and state.safetensors to resume from
RUN/cache/                         latents and prompt embeddings
RUN/adapter.safetensors            the result
RUN/adapter-best.safetensors       the one that is best on held-out sets, where that is another
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from iclora.adapter import Adapter, AdapterInfo, attach, fold
from iclora.errors import RunError
from iclora.files import append_line, replacing, storage_error, write_bytes, write_text
from iclora.models.base import DiffusionModel
from iclora.settings import TrainSettings
from iclora.train.cache import EncodedSet
from iclora.train.validation import Validation, best_step, plot_validation

__all__ = ["RunFolder", "TrainState", "plot_loss"]

_STATE = "state.safetensors"
_LOG = "log.jsonl"
_VALIDATION = "validation.jsonl"
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class TrainState:
    """All that changes during a run: live weights, averaged weights, optimizer, position."""

    live: dict[str, nn.Parameter]
    ema: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    step: int = 0

    @classmethod
    def fresh(cls, model: DiffusionModel, config: TrainSettings) -> TrainState:
        """A new LoRA on the base, at step 0."""
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
        """Everything to resume from, on the CPU."""
        found = {f"live/{k}": v.detach() for k, v in self.live.items()}
        found |= {f"ema/{k}": v for k, v in self.ema.items()}
        for key, parameter in self.live.items():
            for name, value in self.optimizer.state[parameter].items():
                found[f"adamw/{name}/{key}"] = value
        return {k: v.to("cpu").contiguous() for k, v in found.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take up what `tensors` gave.

        Raises: KeyError if a tensor is missing; RuntimeError if one has another shape.
        """
        for key, parameter in self.live.items():
            parameter.copy_(tensors[f"live/{key}"])
            self.ema[key].copy_(tensors[f"ema/{key}"])
            moments = {n: tensors[f"adamw/{n}/{key}"] for n in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                "step": tensors[f"adamw/step/{key}"],
                **{name: value.to(parameter.device) for name, value in moments.items()},
            }
        self.step = step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the base computes with the averaged weights."""
        kept = {k: v.detach().clone() for k, v in self.live.items()}
        try:
            for key, parameter in self.live.items():
                parameter.data.copy_(self.ema[key])
            yield
        finally:
            for key, parameter in self.live.items():
                parameter.data.copy_(kept[key])


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    Attributes:
        data: content hash of the dataset.
        base: fingerprint of the base.
    """

    config: TrainSettings
    info: AdapterInfo
    data: str
    base: str

    @property
    def path(self) -> Path:
        return Path(self.config.out)

    def validation(
        self, held: Sequence[EncodedSet], trained: Sequence[EncodedSet]
    ) -> Validation | None:
        """How held-out sets are measured; None where there are none."""
        if not held:
            return None
        config = self.config
        some = tuple(trained[: len(held)])
        path = self.path / _VALIDATION
        return Validation(path, tuple(held), some, config.seed, config.guidance)

    def save_adapter(self, path: Path, state: TrainState) -> None:
        """Write the averaged weights as an adapter. Raises: StorageError."""
        weights = fold(state.ema, self.config.alpha / self.config.rank)
        info = self.info.model_copy(update={"steps": state.step})
        Adapter(weights, info).save(path, _DTYPES[self.config.save_dtype])

    def checkpoint(self, state: TrainState) -> None:
        """Write a checkpoint, complete or not at all, and remove the oldest beyond `keep`.

        Raises: StorageError; the checkpoints there were remain.
        """
        folder = self.path / "checkpoints" / f"step-{state.step:06d}"
        work = folder.with_name(f".{folder.name}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            self.save_adapter(work / "adapter.safetensors", state)
            about = json.dumps({"step": state.step, "data": self.data, "base": self.base})
            write_bytes(work / _STATE, save(state.tensors(), {"iclora": about}))
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        except OSError as error:
            raise storage_error(folder, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        best = self.best()
        for old in self.checkpoints()[self.config.keep :]:
            if old != best:
                shutil.rmtree(old, ignore_errors=True)
        self.plot()

    def best_step(self) -> int | None:
        """The step with the least loss on held-out sets; None where none are measured."""
        return best_step(_read_rows(self.path / _VALIDATION))

    def best(self) -> Path | None:
        """The checkpoint of that step, as far as it is still there."""
        folder = self.path / "checkpoints" / f"step-{self.best_step() or 0:06d}"
        return folder if folder.is_dir() else None

    def finish(self, state: TrainState) -> None:
        """Write the result, and the best of the checkpoints where that is another."""
        self.plot()
        self.save_adapter(self.path / "adapter.safetensors", state)
        best = self.best()
        if best and self.best_step() != state.step:
            data = (best / "adapter.safetensors").read_bytes()
            write_bytes(self.path / "adapter-best.safetensors", data)

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, the newest first."""
        found = (self.path / "checkpoints").glob("step-*")
        return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)

    def restore(self, state: TrainState, warn: Callable[[str], None], *, cut: bool = True) -> bool:
        """Take up the newest whole checkpoint, and set damaged ones aside.

        Args:
            cut: whether to take the steps behind it out of the log.
        Returns: False if there is none; `state` may then hold anything.
        Raises: RunError if the checkpoint was made with another base.
        """
        for folder in self.checkpoints():
            try:
                with safe_open(folder / _STATE, "pt") as file:
                    about = json.loads(file.metadata()["iclora"])
                    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                state.restore(tensors, int(about["step"]))
            except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as bad:
                warn(f"checkpoint {folder} is damaged ({bad}); going back to the one before it")
                # Out of the way of `keep`, which would rather remove whole ones.
                folder.rename(folder.with_name(f"damaged-{folder.name}"))
                continue
            if about.get("base") != self.base:
                raise RunError(
                    f"the weights of {self.config.base} are not those this run was started with",
                    "Restore the base, or start a new run with another --out.",
                )
            if about["data"] != self.data:
                warn(
                    "the dataset or its recipe has changed since this checkpoint; the run goes on "
                    "with the new one"
                )
            if cut:
                self._cut_log(state.step)
            return True
        warn(f"{self.path} holds no whole checkpoint; starting from step 0")
        if cut:
            self._cut_log(0)
        return False

    def log(self, state: TrainState, loss: float, names: list[str]) -> None:
        """Add a step to the log. Raises: StorageError."""
        row = {"step": state.step, "loss": round(loss, 6), "sets": names}
        append_line(self.path / _LOG, json.dumps(row))

    def _cut_log(self, last: int) -> None:
        """Steps after the checkpoint are taken again, and logged again."""
        for name in (_LOG, _VALIDATION):
            rows = _read_rows(self.path / name)
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= last]
            if kept or rows:
                write_text(self.path / name, "".join(kept))

    def plot(self) -> None:
        """Draw the losses so far."""
        rows = _read_rows(self.path / _LOG)
        if rows:
            plot_loss(self.path / "loss.png", [r["step"] for r in rows], [r["loss"] for r in rows])
        measured = _read_rows(self.path / _VALIDATION)
        if len(measured) > 1:
            plot_validation(self.path / "validation.png", measured)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the line a killed run was writing
    return rows


def plot_loss(path: Path, steps: list[int], losses: list[float]) -> None:
    """A PNG of the loss per step and its running mean. Raises: StorageError."""
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
