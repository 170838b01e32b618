"""What records passes on a device: CUDA graphs.

Source: torch's documentation, "CUDA Graphs" (a side stream, one shared pool of memory).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["CudaRecorder", "Recorder", "Recording"]

_AHEAD = 2
"""Replays that are launched and not computed yet: enough for a card to have the next at hand."""


class Recording(Protocol):
    """A pass that was recorded."""

    def replay(self) -> Tensor:
        """Compute it again, on the tensors that it read.

        Returns: the same tensor each time, which holds until any recording is replayed.
        """

    def free(self) -> None:
        """Give back its memory; it is not replayed any more."""


class Recorder(Protocol):
    """What records on a device."""

    def warm(self, run: Callable[[], Tensor]) -> Tensor:
        """Run once as it is: what is made at first use is then there."""

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Record a run that was warmed, without computing it.

        Raises: any exception, if something in it cannot be recorded.
        """


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory.

    They may: they run one after the other, and what they return is copied before the next does.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        """The side stream, made when it is first used: it opens the card."""
        self._pool: Any = None
        self._alive = 0
        """Recordings that are not freed yet."""
        self._under_way: deque[Any] = deque()
        """What tells that a replay has ended, of the last ones."""

    def warm(self, run: Callable[[], Tensor]) -> Tensor:
        here = torch.cuda.current_stream(self._device)
        if self._stream is None:
            stream: Any = torch.cuda.Stream
            self._stream = stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            out = run()
        here.wait_stream(self._stream)
        # What lies in memory of the side stream may be overwritten when that is used again.
        return out.clone()

    def record(self, run: Callable[[], Tensor]) -> Recording:
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            if not self._alive:
                # torch takes no pool again that was given back.
                self._pool = torch.cuda.graph_pool_handle()
            # A server's other threads may use the card meanwhile.
            mode = "thread_local"
            # torch leaves its side stream current if the end of a recording fails.
            here = torch.cuda.stream(torch.cuda.current_stream(self._device))
            with here, torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
                out = run()
        self._alive += 1
        return _CudaRecording(graph, out, self)

    def replay(self, graph: Any) -> None:
        """Launch a graph, once the one before the last has run.

        A launch takes no time: all steps would be told as done when the first one is computed.
        """
        if len(self._under_way) == _AHEAD:
            self._under_way.popleft().synchronize()
        graph.replay()
        self._under_way.append(torch.cuda.current_stream(self._device).record_event())

    def free(self, graph: Any) -> None:
        """Give back what a graph holds, once it has run."""
        torch.cuda.synchronize(self._device)
        graph.reset()
        self._alive -= 1


@dataclass
class _CudaRecording:
    graph: Any
    out: Tensor
    recorder: CudaRecorder

    def replay(self) -> Tensor:
        self.recorder.replay(self.graph)
        return self.out

    def free(self) -> None:
        self.recorder.free(self.graph)
