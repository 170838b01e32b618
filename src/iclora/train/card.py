"""The card a run takes place on: its memory, its number format, its speed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil
import torch

from iclora.errors import SettingsError
from iclora.models.products import exact
from iclora.models.registry import pick_device, pick_dtype
from iclora.settings import TrainSettings
from iclora.train.costs import Kernels

__all__ = ["GB", "Card", "find_card", "matmul_rate", "speed_of"]

GB = 10**9

# Not counted: the CUDA context and its libraries' workspaces, and what lies unused between blocks
# of memory. Assumed, not measured.
_CONTEXT, _UNUSED = 0.6 * GB, 0.03


@dataclass(frozen=True)
class Card:
    """A card, in this machine or not, or this machine's CPU."""

    memory: int
    """Bytes it has."""
    kernels: Kernels
    dtype: torch.dtype
    """Of the base's weights on it."""
    device: torch.device | None = None
    """None for a card that is not in this machine."""

    @property
    def usable(self) -> int:
        """Bytes that tensors may fill."""
        return int(self.memory * (1 - _UNUSED) - _CONTEXT)

    @staticmethod
    def memory_for(tensors: int) -> float:
        """Bytes that a card needs for some bytes of tensors."""
        return (tensors + _CONTEXT) / (1 - _UNUSED)


def find_card(settings: TrainSettings, here: bool) -> Card:
    """Find the card that `settings.vram` and `settings.device` speak of.

    Args:
        here: True if the run is to take place on this machine; otherwise a `vram` in GB may stand
            for a card that this machine does not have.
    Raises: SettingsError.
    """
    vram = None if settings.vram == "auto" else settings.vram
    if vram is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(
            "several processes could find different memory and plan differently",
            "Give `vram` in GB, that of the smallest card.",
            setting="vram",
        )
    away = vram is not None and not here and settings.device in ("auto", "cuda")
    device = torch.device("cuda") if away else pick_device(settings.device)
    if away and torch.cuda.is_available():
        away = False
    if device.type == "mps":
        raise SettingsError(
            "the memory that a run takes on MPS cannot be counted yet",
            "Leave `vram` out, and choose `precision` and `recompute` yourself.",
            setting="vram",
        )
    dtype = pick_dtype(settings.dtype, device)
    memory = round(vram * GB) if vram is not None else _memory(device)
    kernels: Kernels = "cuda" if device.type == "cuda" else "cpu"
    return Card(memory, kernels, dtype, None if away else device)


def _memory(device: torch.device) -> int:
    """Ask how many bytes a process can take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    # With what the system keeps of files that were read, and gives back: after a day of reading
    # pictures nothing else is left free.
    return int(psutil.virtual_memory().available)


def speed_of(card: Card) -> float | None:
    """Measure the FLOP/s of a card's matrix products; None if it cannot or must not be measured.

    Of several processes the first alone measures: plans are made before each has its own device,
    and all would compute on the first card, at the same time.
    """
    if card.device is None or os.environ.get("RANK", "0") != "0":
        return None
    return matmul_rate(card.device, card.dtype)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a large matrix product, in some tenths of a second."""
    side = 8192 if device.type == "cuda" else 1024
    a = exact(torch.randn(side, side, device=device).to(dtype))
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    del a
    if device.type == "cuda":
        # Or torch would keep the matrices' memory, which the plan gave to the run.
        torch.cuda.empty_cache()
    return 2 * side**3 / best
