"""Steps until the end, an interrupt, or a loss that runs away."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import nn

from iclora.errors import RunError
from iclora.models.base import DiffusionModel
from iclora.progress import Cancelled, Progress
from iclora.settings import TrainSettings
from iclora.train.asked import NAMES, Asked, asked_of, forget
from iclora.train.cache import Encoded
from iclora.train.folder import RunFolder
from iclora.train.objective import Sample, accumulate, schedule
from iclora.train.state import TrainState
from iclora.train.trackers import Tracking
from iclora.train.validation import Validation
from iclora.train.workers import Workers

__all__ = ["Loop", "Preview", "Watch", "apply_step", "interruptible"]

Preview = Callable[[int, bool], Image.Image | None]
"""Draws previews at a step; the bool tells whether to write them. Returns a picture to be shown."""


@dataclass
class Loop:
    """Steps until the last one or an interrupt; both leave a checkpoint."""

    run: RunFolder
    model: DiffusionModel
    encoded: Encoded
    state: TrainState
    workers: Workers
    validation: Validation | None
    preview: Preview | None
    track: Tracking
    interrupted: threading.Event
    """Set to end the run after the current step."""
    progress: Progress
    warn: Callable[[str], None] = lambda _: None
    watch: Watch = field(default_factory=lambda: Watch())

    def run_to_end(self) -> bool:
        """Train until the last step.

        Returns: False if it was interrupted or cancelled before.
        Raises: RunError if the loss runs away; StorageError.
        """
        settings, state = self.run.settings, self.state
        sizes = [len(s.layouts) for s in self.encoded.sets]
        if state.step == 0:
            self._measure()
        self._draw_late()
        while state.step < settings.steps:
            first = state.step * settings.batch
            samples = [schedule(settings.seed, first + i, sizes) for i in range(settings.batch)]
            loss, asked = self._step(samples)
            self._report(loss)
            # Several processes stop together, at the step that all of them heard of.
            stopping = "stop" in asked or (self.workers.count == 1 and self.interrupted.is_set())
            last = state.step == settings.steps
            if last or stopping or "save" in asked or state.step % settings.save_every == 0:
                self._keep()
            self._done(asked & {"stop", "save"})
            if stopping and not last:
                return False
            if self.preview and ("preview" in asked or self._is_shown()):
                self._draw(self.preview)
            elif "preview" in asked:
                self.warn("no previews are drawn, since `preview_every` is 0")
            self._done(asked & {"preview"})
        return True

    def _is_shown(self) -> bool:
        settings, step = self.run.settings, self.state.step
        return step == settings.steps or step % settings.preview_every == 0

    def _draw_late(self) -> None:
        """Draw the previews of the checkpoint that a stopped run did not come to draw."""
        if self.preview and self.state.step and self._is_shown():
            there = self.run.preview(self.state.step).exists()
            if self.run.settings.shard:
                self.workers.wait()  # Until all have seen the same, for all draw together.
            if not there:
                self._draw(self.preview)

    def _done(self, asked: Set[Asked]) -> None:
        """Take away what was asked for and is done."""
        if asked and self.workers.main:
            forget(self.run.path, asked)

    def _step(self, samples: Sequence[Sample]) -> tuple[float, Set[Asked]]:
        """Take one optimizer step of all processes.

        Returns: its loss, and what is asked for after it.
        """
        settings, state = self.run.settings, self.state
        names = [self.encoded.sets[sample.set].name for sample in samples]
        mine = self.workers.share(samples)
        loss = accumulate(self.model, self.encoded, mine, settings, len(samples))
        # The main process alone looks into the folder, so that all do the same after a step.
        asked = asked_of(self.run.path) if self.workers.main else frozenset()
        told = [float(name in asked) for name in NAMES]
        told[NAMES.index("stop")] += self.interrupted.is_set()
        loss, *told = self.workers.sum(state.live.values(), loss, *told)
        loss = apply_step(state, settings, loss)
        self.watch.see(loss, state.step, names, self.run)
        if self.workers.main:
            self.run.log(state, loss, names)
            rate = state.optimizer.param_groups[0]["lr"]
            self.track.numbers({"loss": loss, "learning rate": rate}, state.step)
        return loss, {name for name, count in zip(NAMES, told, strict=True) if count}

    def _report(self, loss: float) -> None:
        """Report a step. To be cancelled is to be interrupted: the work is kept."""
        steps = self.run.settings.steps
        try:
            self.progress("training", self.state.step, steps, f"loss {loss:.4f}", loss=loss)
        except Cancelled:
            self.interrupted.set()

    def _draw(self, preview: Preview) -> None:
        try:
            with self.state.averaged(), torch.no_grad():
                drawn = preview(self.state.step, self.workers.main)
        except Cancelled:
            self.interrupted.set()
            return
        if drawn is not None:
            self.track.picture("previews", drawn, self.state.step)

    def _keep(self) -> None:
        """Measure, then write a checkpoint; the main process alone writes."""
        self._measure()
        if self.workers.main:
            self.run.checkpoint(self.state)
        self.workers.wait()

    def _measure(self) -> None:
        # Processes that share a base must measure together.
        main, shared = self.workers.main, self.run.settings.shard
        if self.validation is None or not (main or shared):
            return
        with self.state.averaged():
            found = self.validation.take(self.model, self.state.step, write=main)
        self.track.numbers({"held out": found.loss}, self.state.step)


def apply_step(state: TrainState, settings: TrainSettings, loss: float) -> float:
    """Clip the gradient and apply it.

    Returns: the loss; or the norm of the gradient if that is not finite, and then no weight has
        been changed.
    """
    norm = float(nn.utils.clip_grad_norm_(state.live.values(), settings.grad_clip))
    loss = loss if math.isfinite(norm) else norm
    if math.isfinite(loss):
        state.optimizer.step()
        state.step += 1
        state.average(settings.ema)
    state.optimizer.zero_grad(set_to_none=True)
    return loss


@dataclass
class Watch:
    """Ends a run whose loss is not a number, or has risen for good."""

    mean: float = 0.0
    """Running mean over some 20 steps: single losses differ tenfold with their noise levels."""
    lowest: float = math.inf
    """The lowest mean so far, the first 40 steps left out."""
    seen: int = 0
    """Steps so far."""

    def see(self, loss: float, step: int, names: Sequence[str], run: RunFolder) -> None:
        """Take in the loss of a step.

        Args:
            step: steps taken, this one included if its loss is finite.
            names: of the step's sets.
        Raises: RunError naming the step and its sets.
        """
        advice = (
            f"Look at these sets, and resume {run.path} from its last checkpoint with a lower "
            f"learning rate: `lr` {run.settings.lr / 3:.1e}."
        )
        if not math.isfinite(loss):
            raise RunError(
                f"the loss or its gradient became {loss} at step {step + 1}, on sets "
                + ", ".join(names),
                advice,
                setting="lr",
            )
        self.seen += 1
        self.mean += (loss - self.mean) * max(0.05, 1 / self.seen)
        if self.seen >= 40:
            self.lowest = min(self.lowest, self.mean)
        if self.mean > 3 * self.lowest:
            raise RunError(
                f"the loss has risen from {self.lowest:.3f} to {self.mean:.3f} (means of some 20 "
                f"steps) by step {step}, last on sets {', '.join(names)}",
                advice,
                setting="lr",
            )


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one acts as usual.

    Signals reach the main thread only: in another one the flag is set by nobody.
    """
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
