"""Which of torch's attention kernels a card computes with: the one that was fastest on it.

At the first use of a kind of attention (dtype, heads, their width, lengths to a fifth, gradients or
none) the card's kernels are tried on random numbers (`trials`). The choice holds for the process,
and by `choices` for those that come after, so that a run which is resumed goes on with its kernels.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from iclora.models.attention_cpu import Attend, blockwise, fused, headwise
from iclora.models.choices import Choices
from iclora.models.trials import Clock, Example, Trial, Way, try_ways

__all__ = ["Chooser", "about", "card_ways", "chooser", "kind_of", "ways_on"]

_log = logging.getLogger("iclora.models")

_SHORT = 512 * 512
"""Queries times keys below which attention takes so little that no kernel is chosen."""
_PATIENCE = 120.0
"""Seconds after which a trial has failed."""

_ORDER = threading.RLock()
"""Torch's order of kernels is one for the whole process: one thread at a time may change it."""

_ANY_OTHER = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


# -- what a device has --------------------------------------------------------------------------


def ways_on(device: torch.device) -> dict[str, Way]:
    """All ways to compute attention on a device; on a CPU nothing is chosen among them."""
    if device.type == "cuda":
        return card_ways(torch.cuda.get_device_capability(device) >= (9, 0))
    return {"fused": Way(fused), "headwise": Way(headwise), "blockwise": Way(blockwise)}


def card_ways(hopper: bool) -> dict[str, Way]:
    """Torch's kernels; the first is taken unless another one is clearly faster.

    Args:
        hopper: True for a card of that generation or a later one, where cuDNN's comes first.
    """
    cuda = torch.backends.cuda
    ways = {
        "torch's choice": Way(_own),
        "cuDNN": _way(SDPBackend.CUDNN_ATTENTION, cuda.can_use_cudnn_attention),
        "flash": _way(SDPBackend.FLASH_ATTENTION, cuda.can_use_flash_attention),
        "memory efficient": _way(SDPBackend.EFFICIENT_ATTENTION, cuda.can_use_efficient_attention),
    }
    return {"cuDNN": ways["cuDNN"], **ways} if hopper else ways


def _own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What torch takes by itself, in the order that nobody changed."""
    with _ORDER:
        return fused(q, k, v)


def _way(kernel: SDPBackend, can: Any) -> Way:
    """A kernel of torch's where it can compute, else another."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with _ORDER, sdpa_kernel([kernel, *_ANY_OTHER], set_priority=True):
            return fused(q, k, v)

    def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
        return bool(can(torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)))

    return Way(attend, fits)


def about(device: torch.device) -> dict[str, str]:
    """The device and the versions that the speed of its kernels depends on."""
    known: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        known["device"] = torch.cuda.get_device_name(device)
        known["cuda"] = torch.version.cuda or torch.version.hip
        cudnn: Any = torch.backends.cudnn
        known["cudnn"] = cudnn.version()
    return {name: str(value) for name, value in known.items()}


# -- choosing -----------------------------------------------------------------------------------


@cache
def chooser(device: torch.device) -> Chooser:
    """The attention of a card, one for the process."""
    return Chooser(device, ways_on(device), Choices(about(device)))


def kind_of(example: Example) -> str:
    """The kind that some attention is of; lengths within a fifth of each other are of one."""
    queries, keys = (round(2 ** (round(2 * math.log2(n)) / 2)) for n in example[2:4])
    dtype = str(example.dtype).removeprefix("torch.")
    passes = "forward and backward" if example.learns else "forward"
    return (
        f"{dtype}, {example.heads} heads of {example.width}, {queries} queries, {keys} keys, "
        f"{passes}"
    )


class Chooser:
    """Attention by the fastest way, which is found out at the first use of each kind.

    No call reads anything back from the device but that first one. The first way is taken while
    code is compiled, when torch is told to be deterministic, as not every kernel is, and, for kinds
    that are unknown still, while a CUDA graph is recorded or a backward pass runs.
    """

    def __init__(
        self,
        device: torch.device,
        ways: Mapping[str, Way],
        choices: Choices,
        *,
        clock: Clock = time.perf_counter,
        short: int = _SHORT,
    ) -> None:
        """
        Args:
            ways: the one to be taken if none is clearly faster first.
            short: queries times keys below which the first way is taken.
        """
        self._device, self._ways, self._choices = device, dict(ways), choices
        self._clock, self._short = clock, short
        self._first = next(iter(ways))
        self._known: dict[tuple[Any, ...], Attend] = {}
        self._lock = threading.Lock()
        self.chosen: dict[str, str] = {}
        """The ways' names, by kind."""
        self.trials: dict[str, Trial] = {}
        """Those that this process made, by kind."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention; see `Attend`."""
        if torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled():
            return self._ways[self._first].attend(q, k, v)
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        sizes = (q.shape[1], q.shape[3], q.shape[2], k.shape[2], q.dtype, learns)
        attend = self._known.get(sizes) or self._at_first_use(Example(*sizes))
        return attend(q, k, v)

    def _at_first_use(self, example: Example) -> Attend:
        name = self._first
        if example.queries * example.keys >= self._short:
            kind = kind_of(example)
            if kind not in self.chosen:
                if _is_no_time(self._device):
                    return self._ways[name].attend
                with self._lock:  # Trials of several threads would slow each other down.
                    if kind not in self.chosen:
                        self.chosen[kind] = self._choose(kind, example)
            name = self.chosen[kind]
        attend = self._known[tuple(example)] = self._ways[name].attend
        return attend

    def _choose(self, kind: str, example: Example) -> str:
        return self._choices.find(kind, self._ways) or self._measure(kind, example)

    def _measure(self, kind: str, example: Example) -> str:
        """Try all ways and keep the best one; the first one, for this process, if that fails."""
        try:
            trial = _apart(lambda: try_ways(self._ways, example, self._device, self._clock))
        except Exception as error:  # Whatever it is, the work itself may succeed.
            why = f"{type(error).__name__}: {error}"
            _log.warning("attention (%s): no kernel could be chosen: %s", kind, why)
            return self._first
        finally:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # A card may be planned to be full.
        self.trials[kind] = trial
        for name, fault in trial.out.items():
            if fault.wrong:
                _log.warning("attention (%s) by %s %s; it is not used", kind, name, fault.why)
        if trial.chosen is None:
            _log.warning("attention (%s): no kernel could be chosen: %s", kind, trial.words())
            return self._first
        _log.info("attention (%s): %s; %s", kind, trial.chosen, trial.words())
        return self._choices.keep(kind, trial.chosen, trial.words(), self._ways)


def _is_no_time(device: torch.device) -> bool:
    """True while measuring would break what is going on."""
    return (
        # Gradients would wait for the thread that waits for them; torch's own checkpoints ask so.
        torch._C._current_graph_task_id() != -1
        or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def _apart(work: Any) -> Trial:
    """Do some work in a thread of its own, out of reach of what the caller has set for its own.

    So tensors that it saves are not those of a block that is recomputed, nothing is counted by the
    caller's modes, and types are not cast by its autocast.
    """
    done: list[Trial | BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run, name="attention kernels", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not done:
        raise TimeoutError(f"trying them took more than {_PATIENCE:.0f} s")
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]
