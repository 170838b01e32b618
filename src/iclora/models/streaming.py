"""Blocks that wait in the machine's memory and come to the device one ahead.

For a card that does not hold the denoiser: of its blocks it holds two at a time, the one that
computes and the next, which is copied meanwhile. What a block computes is the same to the bit, but
for a LoRA while sampling: it stays beside its matrix (`iclora.models.widened`), which lies here.
Layers that modulate come along in a sampling's first pass alone, which computes them for all steps
(`iclora.models.levels`): of FLUX.1-dev 17.2 GB instead of 23.7 cross the bus from then on, in bf16.

Source: the double buffering of Rajbhandari et al. 2021 (ZeRO-Infinity, arXiv 2104.07857, section
5.1), for weights that are frozen and hence never go back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from iclora.models.widened import lend

__all__ = ["Stream", "arrive", "block_bytes", "slot_bytes"]

_ALIGNED = 256
"""Every tensor of a slot begins at a multiple of so many bytes, as those of an allocator do."""


class Stream:
    """The frozen tensors of blocks, two places for them on a device, and who lies there.

    Every tensor of a block becomes a view of its block's place, for good: it has the right shape,
    type and device for whoever asks, and its content while the block computes (`arrive`). Blocks
    take turns at the two places. Layers that are added later are whole on the device.

    With gradients, blocks must be recomputed: what they keep for the backward pass would be
    overwritten. Each is then recomputed, and arrives again, right before its backward pass.

    Args:
        blocks: in the order in which they run, on the CPU, and not on any device yet.
        device: where they compute.
        spared: the layers of a block that some passes do without; they lie at its end.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        spared: Callable[[Any], Sequence[nn.Module]] = lambda _: (),
    ) -> None:
        self.device = device
        cuda = device.type == "cuda"
        self._copies: Any = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._slots = [
            torch.empty(size, dtype=torch.uint8, device=device)
            for size in slot_bytes([block_bytes(block) for block in blocks])
        ]
        self._waiting: list[Tensor] = []
        self._needed: list[int] = []
        """Bytes of each block without what is spared."""
        self._there: list[tuple[int | None, int]] = [(None, 0), (None, 0)]
        """The block in each place, and how many of its bytes."""
        self._copied: list[Any] = [None, None]
        """What tells when it has arrived there."""
        self._last = 0
        if cuda:
            weakref.finalize(self, _unpin, self._waiting, pinned := [])
        for number, block in enumerate(blocks):
            lend(block)
            waiting, needed = _moved(block, self._slots[number % 2], spared(block))
            self._waiting.append(waiting)
            self._needed.append(needed)
            if cuda and _pin(self._waiting[-1]):
                pinned.append(self._waiting[-1].data_ptr())
            # A plain attribute: a block is no part of a stream, nor the reverse.
            block.__dict__["_arrival"] = self, number

    def arrive(self, number: int, whole: bool = True) -> None:
        """Have a block's tensors on the device, and begin to copy those of the block after it.

        The block after it is the next one, or the one before if it came after this one's.

        Args:
            whole: with what some passes do without.
        """
        self._begin(number, whole)
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied[number % 2])
        after = number - 1 if number < self._last else number + 1
        # Behind the last block comes the first; with an odd number of blocks it has its place.
        after %= len(self._waiting)
        if after % 2 != number % 2:
            self._begin(after, whole)
        self._last = number

    def _begin(self, number: int, whole: bool) -> None:
        place, source = number % 2, self._waiting[number]
        end = len(source) if whole else self._needed[number]
        there, start = self._there[place]
        start = start if there == number else 0
        if start >= end:
            return
        self._there[place] = number, end
        if self._copies is not None:
            # Until now the place belonged to a block whose products may still be computed.
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies) if self._copies is not None else nullcontext():
            self._slots[place][start:end].copy_(source[start:end], non_blocking=True)
            if self._copies is not None:
                self._copied[place] = self._copies.record_event()


def arrive(block: nn.Module, whole: bool = True) -> None:
    """Have a block's weights on the device, if it is one of a `Stream`; see `Stream.arrive`."""
    found = block.__dict__.get("_arrival")
    if found is not None:
        stream, number = found
        stream.arrive(number, whole)


def block_bytes(block: nn.Module) -> int:
    """Bytes that a block's frozen tensors take in a place."""
    return sum(map(_room, _frozen(block)))


def slot_bytes(sizes: Sequence[int]) -> tuple[int, int]:
    """Bytes of the two places that blocks of these sizes take turns at."""
    return max(sizes[::2], default=0), max(sizes[1::2], default=0)


def _frozen(block: nn.Module) -> list[Tensor]:
    return [*(p for p in block.parameters() if not p.requires_grad), *block.buffers()]


def _room(tensor: Tensor) -> int:
    return -(-int(tensor.nbytes) // _ALIGNED) * _ALIGNED


def _pin(waiting: Tensor) -> bool:
    """Lock memory in its place, from where copies run beside the products; False if refused.

    torch's own pinned memory is handed out in powers of two, up to twice of what is needed.
    """
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    failed = runtime.cudaHostRegister(waiting.data_ptr(), int(waiting.nbytes), 0)
    return int(failed) == 0


def _unpin(waiting: list[Tensor], pinned: list[int]) -> None:
    """Give the memory back; `waiting` is freed behind this call."""
    torch.cuda.synchronize()
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for address in pinned:
        runtime.cudaHostUnregister(address)
    waiting.clear()


def _moved(block: nn.Module, slot: Tensor, spared: Sequence[nn.Module]) -> tuple[Tensor, int]:
    """Make a block's tensors views of its place.

    Returns: their bytes, as they lie there, and how many come before what is spared.
    """
    last = {id(tensor) for layer in spared for tensor in _frozen(layer)}
    tensors = sorted(_frozen(block), key=lambda tensor: id(tensor) in last)
    waiting = torch.empty(block_bytes(block), dtype=torch.uint8)
    start = needed = 0
    for tensor in tensors:
        span = slice(start, start + int(tensor.nbytes))
        for place in (waiting, slot):
            view = place[span].view(tensor.dtype).view(tensor.shape)
            if place is waiting:
                view.copy_(tensor)
        # The memory it had is free from here on, block by block.
        tensor.data = view
        start += _room(tensor)
        needed = needed if id(tensor) in last else start
    return waiting, needed
