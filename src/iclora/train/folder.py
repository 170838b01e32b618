"""The folder of a run, and what is written to it.

RUN/config.toml                    the settings; `iclora train --resume RUN` reads them
RUN/log.jsonl, RUN/loss.png        loss of every step, and its plot
RUN/validation.jsonl, .png         loss on held-out sets at every checkpoint, and its plot
RUN/previews/step-000250.png       what the preview callback draws
RUN/checkpoints/step-000250/       adapter.safetensors, and state.safetensors to resume from
RUN/cache/                         latents and prompt embeddings
RUN/adapter.safetensors            the result
RUN/README.md                      its model card, written by `model_card`
RUN/adapter-best.safetensors       the best on held-out sets, if that is another one
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iclora.adapter import Adapter, AdapterInfo, fold
from iclora.errors import RunError
from iclora.files import append_line, storage_error, write_bytes, write_text
from iclora.settings import TrainSettings
from iclora.train.plots import plot_loss, plot_validation
from iclora.train.state import Mismatch, TrainState
from iclora.train.validation import best_step

__all__ = ["RunFolder"]

_STATE = "state.safetensors"
_ADAPTER = "adapter.safetensors"
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class RunFolder:
    """A run's folder: its log, its checkpoints, its results."""

    settings: TrainSettings
    info: AdapterInfo
    """Metadata of the adapters; the steps are filled in when one is written."""
    data: str
    """Content hash of the dataset."""
    base: str
    """Fingerprint of the base."""

    @property
    def path(self) -> Path:
        return Path(self.settings.out)

    @property
    def measures(self) -> Path:
        """The file that measures on held-out sets are added to."""
        return self.path / "validation.jsonl"

    @property
    def _log(self) -> Path:
        return self.path / "log.jsonl"

    # -- adapters and checkpoints ---------------------------------------------------------------

    def save_adapter(self, path: Path, state: TrainState) -> None:
        """Write the averaged weights as an adapter. Raises: StorageError."""
        weights = fold(state.ema, self.settings.alpha / self.settings.rank)
        info = self.info.model_copy(update={"steps": state.step})
        Adapter(weights, info).save(path, _DTYPES[self.settings.save_dtype])

    def checkpoint(self, state: TrainState) -> None:
        """Write a checkpoint, complete or not at all, and remove the oldest beyond `keep`.

        Raises: StorageError; the earlier checkpoints remain.
        """
        folder = self._of_step(state.step)
        work = folder.with_name(f".{folder.name}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            self.save_adapter(work / _ADAPTER, state)
            about = json.dumps({"step": state.step, "data": self.data, "base": self.base})
            write_bytes(work / _STATE, save(state.tensors(), {"iclora": about}))
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        except OSError as error:
            raise storage_error(folder, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        best = self.best()
        for old in self.checkpoints()[self.settings.keep :]:
            if old != best:
                shutil.rmtree(old, ignore_errors=True)
        self.plot()

    def checkpoints(self) -> list[Path]:
        """Return the checkpoint folders, the newest first."""
        steps = [
            int(path.name.removeprefix("step-"))
            for path in (self.path / "checkpoints").glob("step-*")
            if re.fullmatch(r"step-[0-9]+", path.name)
        ]
        return [self._of_step(step) for step in sorted(steps, reverse=True)]

    def _of_step(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    def best_step(self) -> int | None:
        """Return the step with the lowest loss on held-out sets; None if none are measured."""
        return best_step(_read_rows(self.measures))

    def best(self) -> Path | None:
        """Return the checkpoint of that step, if it is still there."""
        folder = self._of_step(self.best_step() or 0)
        return folder if folder.is_dir() else None

    def finish(self, state: TrainState) -> None:
        """Write the result, and the best checkpoint's adapter if that is another one.

        Raises: StorageError.
        """
        self.save_adapter(self.path / _ADAPTER, state)
        best = self.best()
        if best and self.best_step() != state.step:
            write_bytes(self.path / "adapter-best.safetensors", (best / _ADAPTER).read_bytes())

    # -- resuming -------------------------------------------------------------------------------

    def restore(self, state: TrainState, warn: Callable[[str], None], *, cut: bool = True) -> bool:
        """Take over the newest whole checkpoint, and set damaged ones aside.

        Only a file that cannot be read counts as damaged: running out of memory, for instance, is
        the machine's trouble, and no reason to give up a checkpoint.

        Args:
            cut: True removes later steps from the log.
        Returns: False if there is none; `state` is then as it was.
        Raises: RunError if the checkpoint was made with another base; `state` is then as it was.
        """
        for folder in self.checkpoints():
            try:
                step, about, tensors = _read_checkpoint(folder / _STATE)
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as bad:
                warn(f"checkpoint {folder} is damaged ({bad}); going back to the one before it")
                _set_aside(folder)
                continue
            if about.get("base") != self.base:
                raise RunError(
                    f"the weights of {self.settings.base} are not those this run was started with",
                    "Restore the base, or start a new run in another folder.",
                    setting="base",
                )
            try:
                state.restore(tensors, step)
            except Mismatch as error:
                raise RunError(
                    f"checkpoint {folder} is of another base or another LoRA: {error}",
                    "Restore the base and the run's config.toml, or start a new run in another "
                    "folder.",
                ) from error
            if about.get("data") != self.data:
                warn(
                    "the dataset or its recipe has changed since this checkpoint; the run goes on "
                    "with the new one"
                )
            if cut:
                self._cut(state.step)
            return True
        warn(f"{self.path} holds no whole checkpoint; starting from step 0")
        if cut:
            self._cut(0)
        return False

    # -- log and plots --------------------------------------------------------------------------

    def log(self, state: TrainState, loss: float, names: list[str]) -> None:
        """Add a step to the log. Raises: StorageError."""
        row = {"step": state.step, "loss": round(loss, 6), "sets": names}
        append_line(self._log, json.dumps(row))

    def _cut(self, last: int) -> None:
        """Remove the steps after the checkpoint, which are taken and logged again."""
        for path in (self._log, self.measures):
            rows = _read_rows(path)
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= last]
            if kept or rows:
                write_text(path, "".join(kept))

    def plot(self) -> None:
        """Draw the losses so far. Raises: StorageError."""
        rows = _read_rows(self._log)
        if rows:
            plot_loss(self.path / "loss.png", [r["step"] for r in rows], [r["loss"] for r in rows])
        measured = _read_rows(self.measures)
        if len(measured) > 1:
            plot_validation(self.path / "validation.png", measured)


def _read_checkpoint(path: Path) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["iclora"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return int(about["step"]), about, tensors


def _set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint: `keep` counts folders, and would rather remove whole ones.

    Raises: StorageError.
    """
    names = (f"damaged-{folder.name}" + (f"-{n}" if n > 1 else "") for n in count(1))
    free = next(path for path in map(folder.with_name, names) if not path.exists())
    try:
        folder.rename(free)
    except OSError as error:
        raise storage_error(free, error) from error


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the line a killed run was writing
    return rows
