"""Attention's kernels at the sizes of training and sampling, and the choice among them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from iclora.jobs.bench.measuring import clear, median, seconds
from iclora.jobs.bench.telling import Bench
from iclora.models.attention import pick_attention
from iclora.models.kernels import Chooser, kind_of, ways_on
from iclora.models.trials import Example, Trial, try_ways

__all__ = ["kernels"]

_HEADS, _WIDE = 24, 128
"""FLUX.1-dev's."""

_LENGTHS = {
    "1024x1024": (4608, 4608),
    "1024x1536": (6656, 6656),
    "1024x1024, 1 of 2 panels given": (2560, 4608),
    "1024x1536, 1 of 2 panels given": (3584, 6656),
}
"""Queries and keys: tokens of a canvas and its text. Given panels are read by the rest, as when
their keys are kept."""
_ON_CPU = {"128x192": (608, 608), "128x192, 1 of 2 panels given": (560, 608)}


def kernels(bench: Bench) -> None:
    """Try every kernel that this device has, and time what iclora takes there."""
    device = torch.device(bench.device)
    cuda = device.type == "cuda"
    for canvas, (queries, keys) in (_LENGTHS if cuda else _ON_CPU).items():
        for learns in (False, True):
            heads = _HEADS if cuda else 2
            example = Example(heads, _WIDE, queries, keys, torch.bfloat16, learns)
            what = f"{canvas}, {{}}, {'both passes' if learns else 'forward'}"
            _compare(bench, what, example, device)
            _ours(bench, what, example, device)
            clear(device)


def _compare(bench: Bench, what: str, example: Example, device: torch.device) -> None:
    """Tell TFLOP/s of each kernel, and which one is to be taken."""
    ways = ways_on(device)
    began = time.perf_counter()
    try:
        trial = try_ways(ways, example, device)
    except RuntimeError as error:  # A card that is full.
        bench.tell(what.format("chosen"), None, note=str(error).strip().splitlines()[0])
        return
    took = time.perf_counter() - began
    for name in ways:
        _tell(bench, what.format(name), example, trial, name)
    bench.tell(
        what.format("chosen"),
        trial.chosen,
        note=f"{trial.words()}; found in {took:.1f} s",
        must=True,
    )


def _tell(bench: Bench, what: str, example: Example, trial: Trial, name: str) -> None:
    if fault := trial.out.get(name):
        bench.tell(what, None, note=fault.why)
        return
    _rate(bench, what, example, trial.times[name])


def _rate(bench: Bench, what: str, example: Example, times: list[float]) -> None:
    work = 4 * example.queries * example.keys * example.heads * example.width
    rate = (3.5 if example.learns else 1) * work / median(times) / 1e12
    bench.tell(what, rate, "TFLOP/s", note=f"{1000 * median(times):.4g} ms")


def _ours(bench: Bench, what: str, example: Example, device: torch.device) -> None:
    """Time what models compute with, which on a card chooses at its first call and is kept."""
    attend = pick_attention(device)
    *qkv, grad = example.tensors(device)

    def run() -> None:
        with torch.set_grad_enabled(example.learns):
            out = attend(*qkv)
            if example.learns:
                torch.autograd.grad(out, qkv, grad)

    times = seconds(run, device, 5, warm=2, calls=10 if device.type == "cuda" else 1)
    chosen: Mapping[str, str] = attend.chosen if isinstance(attend, Chooser) else {}
    _rate(bench, what.format("iclora's"), example, times)
    if name := chosen.get(kind_of(example)):
        bench.tell(what.format("iclora's kernel"), name, note="kept for this card and versions")
