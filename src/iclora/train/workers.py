"""The processes that share a run, as `accelerate launch` or torchrun starts them.

Each computes its share of a step's samples; the gradients are summed, and every process takes the
same step. An adapter is small and the base does not change, so nothing else has to travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from iclora.train.launcher import without_deepspeed

__all__ = ["PATIENCE", "Workers"]

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long processes wait for the slowest. NCCL's own 10 minutes would end a run whose first
process draws many previews, or whose shares of encoding differ by that much."""


class Workers:
    """This process among the others.

    Args:
        device: where it computes; on a CPU they talk through gloo, on CUDA through NCCL.
    """

    def __init__(self, device: torch.device) -> None:
        joined = distributed.is_available() and distributed.is_initialized()
        with without_deepspeed():
            self._state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        self._opened = distributed.is_initialized() and not joined
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self._device = device

    @property
    def main(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of some items; all parts together are all of them."""
        return items[self.rank :: self.count]

    def mesh(self) -> DeviceMesh:
        """Return all of them as the mesh that FSDP spreads weights over."""
        return init_device_mesh(self._device.type, (self.count,))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let one process at a time into the block."""
        for _ in range(self.rank):
            self.wait()
        yield
        for _ in range(self.rank, self.count):
            self.wait()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            self._state.wait_for_everyone()

    def sum(self, parameters: Iterable[Tensor], *numbers: float) -> list[float]:
        """Sum gradients, in place, and some numbers over all processes.

        A parameter without a gradient, of a layer whose output nothing reads, gets one of zeros:
        the optimizer then keeps as much of it as of the others. Gradients become views of one flat
        tensor: copies of them would be in memory beside it when the optimizer runs.

        Args:
            parameters: float32, on the device.
        Returns: the sums of the numbers, rounded to float32, which is all that MPS has.
        """
        held = list(parameters)
        for parameter in held:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.count == 1:
            return list(numbers)
        grads = [p.grad for p in held if p.grad is not None]
        extra = torch.tensor(numbers, dtype=torch.float32, device=self._device)
        flat = torch.cat([*(g.flatten() for g in grads), extra])
        sizes = [g.numel() for g in grads]
        del grads
        for parameter in held:
            parameter.grad = None
        distributed.all_reduce(flat)
        *parts, sums = torch.split(flat, [*sizes, len(numbers)])
        for parameter, part in zip(held, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        return [float(x) for x in sums.tolist()]

    def close(self) -> None:
        """Leave the group of processes, if this object opened it: NCCL warns of one left open."""
        if self._opened:
            self._state.destroy_process_group()
            self._opened = False
