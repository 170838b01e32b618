"""Passes of sampling recorded once and replayed: a CUDA graph launches a whole pass at once.

On a small canvas, or with a small base, a card computes a pass faster than Python can launch its
kernels, some 2,000. The first pass of a kind runs as it is, the second is recorded, and from then
on a pass copies its inputs to where the recorded one read them, and replays it.

Only kernels are replayed, no Python. So everything a pass reads is one of these:

- *inputs*: latents, texts, noise levels, modulation, guidance, position ids. They are copied.
- *part of the key*: shapes, numbers of tokens, and how given tokens and panels are read.
- *weights*, read where they lie, whatever numbers are there by then. Who changes which there are
  (an adapter that comes or goes) calls `Graphs.clear`. What moves at first use
  (`iclora.models.widened`) moves in a pass that runs as it is, and never in a recorded one.
- *keys and values of given tokens*: they do not change once they are there, and the key holds
  whose they are. The pass that makes them runs as it is, for it appends to a list.

Python's own state between passes must not reach a recording. What a sampling made of its levels
beforehand (`iclora.models.levels`) is an input, a step's rows of it, and the pass that makes it
runs as it is. What attention is wrapped in is made for every pass; that of the recorded one is
kept with it.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iclora.models.base import DiffusionModel, Given, Panels
from iclora.models.levels import Levels, Rows, Step
from iclora.models.recorder import CudaRecorder, Recorder, Recording
from iclora.models.widened import moves, still

__all__ = ["MOST", "Graphs", "Keyed", "graphs_for", "prevented"]

MOST = 8
"""Kinds of passes that one model keeps, each a recording; the one used longest ago goes first."""

_log = logging.getLogger("iclora.models")


class Graphs:
    """The recorded passes of one network.

    Args:
        recorder: None if the device has none; every pass then runs as it is.
        most: recordings that are kept.
    """

    def __init__(self, recorder: Recorder | None, most: int = MOST) -> None:
        self.recorder = recorder
        self._most = most
        self._kept: OrderedDict[Hashable, _Kind] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Kinds of passes that are known; each has a recording, or gets one next."""
        return len(self._kept)

    @classmethod
    def on(cls, device: torch.device) -> Graphs:
        """Those of a network on this device."""
        return cls(CudaRecorder(device) if device.type == "cuda" else None)

    def clear(self) -> None:
        """Free all recordings: what they read is no longer there, or no longer what counts."""
        self._drop(list(self._kept))

    @contextmanager
    def sampling(self, given: Given | None) -> Iterator[None]:
        """Free recordings that read keys and values of these given tokens when a sampling ends."""
        try:
            yield
        finally:
            self._drop([key for key, kind in self._kept.items() if given and kind.reads is given])

    def _drop(self, keys: Sequence[Hashable]) -> None:
        for key in keys:
            recording = self._kept.pop(key).recording
            if recording is not None:
                recording.free()

    def run(
        self,
        key: Hashable,
        function: Callable[[Sequence[Tensor]], Tensor],
        inputs: Sequence[Tensor],
        held: Any = None,
        reads: Given | None = None,
    ) -> Tensor:
        """A function of tensors, recorded or replayed if it can be.

        Args:
            key: of all that decides what the function computes, but for the inputs' numbers.
            held: what must live as long as a recording, for it is read.
            reads: see `sampling`.
        """
        # Two threads would share the places of the inputs.
        if self.recorder is None or not self._lock.acquire(blocking=False):
            return function(inputs)
        try:
            return self._run(self.recorder, key, function, inputs, held, reads)
        finally:
            self._lock.release()

    def _run(
        self,
        recorder: Recorder,
        key: Hashable,
        function: Callable[[Sequence[Tensor]], Tensor],
        inputs: Sequence[Tensor],
        held: Any,
        reads: Given | None,
    ) -> Tensor:
        kind = self._kept.get((moves(), key))
        if kind is None:
            kind = _Kind([x.clone() for x in inputs], reads)
            out = recorder.warm(lambda: function(kind.inputs))
            # Behind the pass, which may have moved weights.
            self._kept[moves(), key] = kind
            self._drop(list(self._kept)[: -self._most])
            return out
        self._kept.move_to_end((moves(), key))
        kind.take(inputs)
        if kind.recording is None:
            try:
                with still():
                    kind.recording = recorder.record(lambda: function(kind.inputs))
            except Exception as error:  # Whatever it is that cannot be recorded, it can be run.
                self._give_up(error)
                return function(inputs)
            kind.held = held
        # Another recording may use the same memory.
        return kind.recording.replay().clone()

    def _give_up(self, error: Exception) -> None:
        self.clear()
        self.recorder = None
        why = (str(error).splitlines() or [type(error).__name__])[0]
        _log.warning("passes are not replayed (`graphs`): recording one failed: %s", why)


@dataclass
class _Kind:
    """The passes of one key."""

    inputs: list[Tensor]
    """Where recorded passes read."""
    reads: Given | None
    recording: Recording | None = None
    """None until the second pass."""
    held: Any = None

    def take(self, inputs: Sequence[Tensor]) -> None:
        """Copy inputs to where recorded passes read: those of one type by one kernel."""
        pairs = list(zip(self.inputs, inputs, strict=True))
        for dtype in {x.dtype for x in inputs}:
            there, here = zip(*(pair for pair in pairs if pair[1].dtype == dtype), strict=True)
            torch._foreach_copy_(there, here)


class Keyed(NamedTuple):
    """Recordings of passes that read given tokens and panels in one way; see `graphs_for`."""

    graphs: Graphs
    how: Hashable = None
    held: Any = None
    reads: Given | None = None

    def run(self, whole: Callable[[Any], Tensor], inputs: Any, attention: Any) -> Tensor:
        """A whole pass.

        Args:
            whole: of the inputs, which are a family's.
            attention: what `whole` attends by.
        """
        if any(isinstance(x, Levels) and x.step and not x.step.schedule.kept() for x in inputs):
            return whole(inputs)
        tensors = list(_tensors(inputs))
        form = tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors)
        key = (self.how, type(inputs), tuple(map(_rest, inputs)), form)

        def function(tensors: Sequence[Tensor]) -> Tensor:
            return whole(_with(inputs, iter(tensors)))

        return self.graphs.run(key, function, tensors, (self.held, attention), self.reads)


def _tensors(inputs: Any) -> Iterator[Tensor]:
    for each in inputs:
        if isinstance(each, Levels):
            yield each.sigma
            for rows in _rows(each).values():
                yield from rows
        elif isinstance(each, Tensor):
            yield each


def _rest(each: Any) -> Hashable:
    """What of an input is no tensor."""
    if isinstance(each, Levels):
        return (each.tokens, *_rows(each))
    found: Hashable = None if isinstance(each, Tensor) else each
    return found


def _rows(levels: Levels) -> dict[int | None, Rows]:
    """What was made of the levels of a step beforehand."""
    return levels.step.rows(len(levels.tokens)) if levels.step else {}


def _with(inputs: Any, tensors: Iterator[Tensor]) -> Any:
    """The inputs on these tensors, which `_tensors` gave."""

    def one(each: Any) -> Any:
        if isinstance(each, Levels):
            sigma, rows = next(tensors), _rows(each)
            own = {layer: tuple(next(tensors) for _ in there) for layer, there in rows.items()}
            return Levels(sigma, each.tokens, Step.of(own) if own else None)
        return next(tensors) if isinstance(each, Tensor) else each

    return type(inputs)(*map(one, inputs))


# -- which passes ---------------------------------------------------------------------------------


def prevented(model: DiffusionModel) -> str | None:
    """Why no pass of this base is ever recorded; None if some are."""
    if model.device.type != "cuda":
        return f"it is for NVIDIA cards, and the base computes on {model.device.type}"
    return _unfit(model)


def _unfit(model: DiffusionModel) -> str | None:
    if getattr(model, "passes", None) is None:
        return f"a base of the family {model.family} runs passes of its own"
    if model.offload == "blocks":
        return "blocks that come to the card one at a time are not recorded"
    if model.mesh is not None:
        return "a base that is spread over several processes is not recorded"
    return None


def graphs_for(model: DiffusionModel, given: Given | None, panels: Panels | None) -> Keyed | None:
    """What records and replays a pass; None if it is to run as it is.

    That are passes with gradients, those of a base for which it has no effect, the one that fills
    the cache of given tokens, and those that a compiler looks into.

    Args:
        given, panels: how the pass reads them.
    """
    graphs = model.graphs
    if graphs is None or graphs.recorder is None:
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if _unfit(model) is not None:
        return None
    if given is not None:
        fills = given.cache is not None and not given.cache
        # The host would wait for a device to know which tokens are given.
        if fills or given.tokens.device.type != "cpu":
            return None
    how = (_way(given), panels and (panels.lengths, _content(panels.owner)))
    reads = given if given and given.cache else None
    return Keyed(graphs, how, (given, panels), reads)


def _way(given: Given | None) -> Hashable:
    """All that decides how given tokens are read; of what was cached, whose it is."""
    if given is None:
        return None
    cache = None if given.cache is None else id(given.cache)
    places = None if given.references is None else _content(given.references)
    return (given.clean, given.isolated, given.scale, cache, places, _content(given.tokens))


def _content(tensor: Tensor) -> Hashable:
    return (*tensor.shape, tensor.cpu().numpy().tobytes())
