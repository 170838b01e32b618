"""The processes that share a run, as `accelerate launch` or torchrun starts them.

Each computes its share of a step's samples; the gradients are summed, and every process takes the
same step. An adapter is small and the base does not change, so nothing else has to travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """This process among the others.

    Args:
        device: where it computes; on a CPU they talk through gloo, on CUDA through NCCL.
    """

    def __init__(self, device: torch.device) -> None:
        self._state = PartialState(cpu=device.type == "cpu")
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self._device = device

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of some items; all parts together are all of them."""
        return items[self.rank :: self.count]

    def mesh(self) -> DeviceMesh:
        """All of them, as what FSDP spreads weights over."""
        return init_device_mesh(self._device.type, (self.count,))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Inside the block is one process at a time."""
        for _ in range(self.rank):
            self.wait()
        yield
        for _ in range(self.rank, self.count):
            self.wait()

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            self._state.wait_for_everyone()

    def sum(self, parameters: Iterable[Tensor], *numbers: float) -> list[float]:
        """Sum gradients, in place, and some numbers over all processes.

        A parameter without a gradient counts as zero. Returns: the sums of the numbers.
        """
        if self.count == 1:
            return list(numbers)
        held = list(parameters)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
        extra = torch.tensor(numbers, device=self._device, dtype=torch.float64)
        flat = torch.cat([g.flatten() for g in grads])
        distributed.all_reduce(flat)
        distributed.all_reduce(extra)
        parts = torch.split(flat, [g.numel() for g in grads])
        for parameter, part in zip(held, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        return [float(x) for x in extra]
