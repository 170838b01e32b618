"""The folder of a run, and what is written to it.

RUN/config.toml                    the settings; `iclora train --resume RUN` reads them
RUN/log.jsonl, RUN/loss.png        loss of every step, and its plot
RUN/validation.jsonl, .png         loss on held-out sets at every checkpoint, and its plot
RUN/previews/step-000250.png       what the preview callback draws
RUN/stop.now, save.now, preview.now  what the run is asked for; see `asked`
RUN/checkpoints/step-000250/       adapter.safetensors, and state.safetensors to resume from
RUN/cache/                         latents and prompt embeddings
RUN/adapter.safetensors            the result
RUN/README.md                      its model card, written by `model_card`
RUN/adapter-best.safetensors       the best on held-out sets, if that is another one
RUN/base/, RUN/base-best/          the same of a run that trains every weight; its checkpoints hold
                                   the state alone

What was damaged is renamed to damaged-NAME, and the run goes on without it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclora.adapter import Adapter, AdapterInfo, fold
from iclora.errors import RunError
from iclora.files import append_line, clear_leftovers, set_aside, work_folder
from iclora.models.stored import Damaged, read_stored, store
from iclora.settings import TrainSettings
from iclora.train.asked import forget
from iclora.train.model_card import base_card
from iclora.train.plots import plot_loss, plot_validation
from iclora.train.records import cut, read_losses, read_measures
from iclora.train.state import Mismatch, TrainState
from iclora.train.validation import best_step
from iclora.train.whole import save_base

__all__ = ["RunFolder"]

_STATE = "state.safetensors"
_ADAPTER = "adapter.safetensors"
_BEST = "adapter-best.safetensors"
_ABOUT = ("step", "data", "base")
"""What a checkpoint says of itself."""
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
    source: Path | None = None
    """The base's folder, if every weight is trained; then the result is such a folder."""

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

    def save_adapter(self, path: Path, averaged: Mapping[str, Tensor], step: int) -> None:
        """Write the averaged weights of a step as an adapter. Raises: StorageError."""
        weights = fold(averaged, self.settings.alpha / self.settings.rank)
        info = self.info.model_copy(update={"steps": step})
        Adapter(weights, info).save(path, _DTYPES[self.settings.save_dtype])

    def checkpoint(self, state: TrainState) -> None:
        """Write a checkpoint, complete or not at all, and remove the oldest beyond `keep`.

        Raises: StorageError; the earlier checkpoints remain.
        """
        folder = self._of_step(state.step)
        shutil.rmtree(folder, ignore_errors=True)
        with work_folder(folder) as work:
            if self.source is None:
                self.save_adapter(work / _ADAPTER, state.ema, state.step)
            about = {"step": state.step, "data": self.data, "base": self.base}
            store(work / _STATE, state.tensors(), about)
        best = self.best()
        for old in self.checkpoints()[self.settings.keep :]:
            if old != best:
                shutil.rmtree(old, ignore_errors=True)
        self.plot()

    def checkpoints(self) -> list[Path]:
        """Return the checkpoint folders, the newest first."""
        found = (_step_of(path) for path in (self.path / "checkpoints").glob("step-*"))
        steps = sorted((step for step in found if step is not None), reverse=True)
        return [self._of_step(step) for step in steps]

    def _strays(self) -> list[str]:
        """Names beside the checkpoints that this program does not write."""
        folder = self.path / "checkpoints"
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        ours = re.compile(r"\..*|damaged-.*", re.DOTALL)
        return [n for n in names if _step_of(Path(n)) is None and not ours.fullmatch(n)]

    def _of_step(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    def best_step(self) -> int | None:
        """Return the step with the lowest loss on held-out sets; None if none are measured."""
        return best_step(read_measures(self.measures))

    def best(self) -> Path | None:
        """Return the checkpoint of that step, if it is still there."""
        folder = self._of_step(self.best_step() or 0)
        return folder if folder.is_dir() else None

    def finish(self, state: TrainState, warn: Callable[[str], None]) -> None:
        """Write the result and, if another checkpoint is better on held-out sets, that one too.

        The result comes last: a run that has one is finished.

        Args:
            warn: told if the better checkpoint is damaged or gone.
        Raises: StorageError.
        """
        best, other = self.best(), self.path / ("base-best" if self.source else _BEST)
        if self.best_step() in (None, 0, state.step):
            # What is there is of a run that was made longer. (Step 0 is the base itself.)
            shutil.rmtree(other, ignore_errors=True)
            other.unlink(missing_ok=True)
        elif best is None:
            warn(
                f"checkpoint {self.best_step()}, the best, is gone, so {other.name} is not written"
            )
        else:
            try:
                step, _, tensors = _read_checkpoint(best)
            except Damaged as bad:
                warn(f"checkpoint {best} is damaged ({bad}), so {other.name} is not written")
            else:
                # From the tensors that have a checksum, and not from the adapter beside them.
                averaged = {
                    k.removeprefix("ema/"): v for k, v in tensors.items() if k[:4] == "ema/"
                }
                self._save(other, averaged, step)
        self._save(self.result, state.ema, state.step)

    @property
    def result(self) -> Path:
        """What the run makes: the adapter's file, or the folder of the tuned base."""
        return self.path / ("base" if self.source else _ADAPTER)

    def _save(self, path: Path, averaged: Mapping[str, Tensor], step: int) -> None:
        if self.source is None:
            self.save_adapter(path, averaged, step)
        else:
            card = base_card(self.info.model_copy(update={"steps": step}), self.settings)
            save_base(path, self.source, averaged, _DTYPES[self.settings.save_dtype], card)

    # -- resuming -------------------------------------------------------------------------------

    def clear(self) -> None:
        """Remove what a killed process left half-written, and what nobody was there to do.

        No other process may be at this run.
        """
        for folder in (self.path, *(self.path / n for n in ("checkpoints", "previews", "cache"))):
            clear_leftovers(folder, alone=True)
        forget(self.path)
        for work in (self.path / "checkpoints").glob(".step-*"):  # As they were called before.
            shutil.rmtree(work, ignore_errors=True)

    def restore(self, state: TrainState, warn: Callable[[str], None], *, main: bool = True) -> bool:
        """Take over the newest whole checkpoint, and set damaged ones aside.

        Only what is wrong with a file counts as damage: running out of memory, for instance, is
        the machine's trouble, and no reason to give up a checkpoint.

        Args:
            main: True removes later steps from the log, and names files that are not the run's.
        Returns: False if there is none; `state` is then as it was.
        Raises: RunError if the checkpoint was made with another base; `state` is then as it was;
            StorageError.
        """
        strays = self._strays() if main else []
        if strays:
            where = self.path / "checkpoints"
            warn(f"in {where} these are no checkpoints, and are left alone: {', '.join(strays)}")
        for folder in self.checkpoints():
            try:
                step, about, tensors = _read_checkpoint(folder)
                self._take_over(state, folder, step, about, tensors)
            except Damaged as bad:
                warn(
                    f"checkpoint {folder} is damaged ({bad}), and set aside as "
                    f"{set_aside(folder).name}; going back to the one before it"
                )
                continue
            if about["data"] != self.data:
                warn(
                    "the dataset or its recipe has changed since this checkpoint; the run goes on "
                    "with the new one"
                )
            if main:
                self._cut(state.step, warn)
                self.plot()  # The kill may have come just before.
            return True
        warn(f"{self.path} holds no whole checkpoint; starting from step 0")
        if main:
            self._cut(-1, warn)  # The base alone is measured again, too.
        return False

    def _take_over(
        self,
        state: TrainState,
        folder: Path,
        step: int,
        about: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Raises: RunError for a checkpoint of another base or LoRA; Damaged."""
        if about["base"] != self.base:
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
                "Restore the base and the run's config.toml, or start a new run in another folder.",
            ) from error

    # -- log and plots --------------------------------------------------------------------------

    def log(self, state: TrainState, loss: float, names: list[str]) -> None:
        """Add a step to the log. Raises: StorageError."""
        row = {"step": state.step, "loss": round(loss, 6), "sets": names}
        append_line(self._log, json.dumps(row))

    def _cut(self, last: int, warn: Callable[[str], None]) -> None:
        """Remove the steps after the checkpoint, which are taken and logged again."""
        for path in (self._log, self.measures):
            cut(path, last, warn)

    def preview(self, step: int) -> Path:
        """The place of a step's previews."""
        return self.path / "previews" / f"step-{step:06d}.png"

    def plot(self) -> None:
        """Draw the losses so far. Raises: StorageError."""
        rows = read_losses(self._log)
        if rows:
            plot_loss(self.path / "loss.png", [r["step"] for r in rows], [r["loss"] for r in rows])
        measured = read_measures(self.measures)
        if len(measured) > 1:
            plot_validation(self.path / "validation.png", measured)


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint by its name; None for names that `checkpoint` does not give."""
    found = re.fullmatch(r"step-([0-9]{6,12})", path.name)
    step = int(found[1]) if found else -1
    return step if path.name == f"step-{step:06d}" else None


def _read_checkpoint(folder: Path) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """Raises: Damaged; StorageError."""
    tensors, about = read_stored(folder / _STATE, before=_ABOUT)
    known = {name: type(about.get(name)) for name in _ABOUT}
    if known != {"step": int, "data": str, "base": str}:
        raise Damaged("its header lacks the step, the data or the base")
    step: int = about["step"]
    if step != _step_of(folder):
        raise Damaged(f"it is of step {step}")
    return step, about, tensors
