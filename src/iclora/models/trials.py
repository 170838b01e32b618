"""Ways to compute attention tried on a device: which give the right numbers, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from iclora.models.attention_cpu import Attend

__all__ = ["CLEARLY", "Clock", "Example", "Fault", "Trial", "Way", "try_ways"]

Clock: TypeAlias = Callable[[], float]
"""Seconds since some moment."""

CLEARLY = 1.05
"""The first way's time over another's from which on the other is taken: noise decides nothing."""

_ROUNDS, _CALLS = 5, 3
_ENOUGH = 3.0
"""Seconds of timing after which no round is begun; two are made in any case."""
_FAR = 120.0
"""A score whose exponential, and that of its negative, float32 has not."""
_ROWS = 16
"""Queries that are compared with the formula."""
_MOST_BYTES = 64 * 2**20
"""Of each tensor; longer ones are tried with fewer heads."""
_BOUNDS = {torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest error of a row beside the largest row; else 0.002, since a card may cut float32 to
TensorFloat-32. A CPU's ways have up to 0.01 in bfloat16, and a tenth of it in float16."""


class Way(NamedTuple):
    """A way to compute attention."""

    attend: Attend
    fits: Callable[[Tensor, Tensor, Tensor], bool] = lambda *_: True
    """True if it can compute these q, k and v itself."""


class Fault(NamedTuple):
    """Why a way is not to be taken."""

    why: str
    wrong: bool = False
    """True if it gave other numbers than the formula."""


class Example(NamedTuple):
    """Sizes of attention, a batch of one."""

    heads: int
    width: int
    """Of a head."""
    queries: int
    keys: int
    dtype: torch.dtype
    learns: bool
    """True if gradients are computed, too."""

    def tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        """Random q, k and v (1, heads, S, d) and a gradient (1, queries, heads * d).

        As in every family, heads lie beside each other in memory. The program's own random
        numbers are left alone. Very long ones have fewer heads.
        """
        of_one = max(self.queries, self.keys) * self.width * self.dtype.itemsize
        heads = max(1, min(self.heads, _MOST_BYTES // of_one))
        rng = torch.Generator(device).manual_seed(0)

        def draw(length: int) -> Tensor:
            shape = (1, length, heads, self.width)
            return torch.randn(shape, device=device, dtype=self.dtype, generator=rng)

        q, k, v, grad = (draw(n) for n in (self.queries, self.keys, self.keys, self.queries))
        leaves = (x.transpose(1, 2).requires_grad_(self.learns) for x in (q, k, v))
        return (*leaves, grad.flatten(2))


@dataclass
class Trial:
    """What came of trying."""

    times: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of one call, round by round, of the ways that are right."""
    out: dict[str, Fault] = field(default_factory=dict)

    @property
    def chosen(self) -> str | None:
        """The fastest way; the first, unless another one is clearly faster. None if all are out."""
        if not self.times:
            return None
        first, *others = self.times
        beside = self.times[first]
        faster = [
            name
            for name in others
            if self.seconds(first) >= CLEARLY * self.seconds(name)
            and all(map(float.__gt__, beside, self.times[name]))
        ]
        return min(faster, key=self.seconds, default=first)

    def seconds(self, name: str) -> float:
        """The median of a way's times."""
        return statistics.median(self.times[name])

    def words(self) -> str:
        """Times in milliseconds, the fastest first, and why others are out."""
        said = [
            f"{name} {1000 * self.seconds(name):.3g} ms"
            for name in sorted(self.times, key=self.seconds)
        ]
        return ", ".join(said + [f"{name} {fault.why}" for name, fault in self.out.items()])


def try_ways(
    ways: Mapping[str, Way],
    example: Example,
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> Trial:
    """Try ways one after the other, round by round; waits for the device.

    Args:
        ways: the one to be taken if none is clearly faster first.
    Raises: torch.OutOfMemoryError, which says nothing of a way.
    """
    trial = Trial()
    # The short one's last blocks of 128 are half full, where a kernel's ends go wrong first.
    for number, one in enumerate((example, example._replace(queries=192, keys=320))):
        q, k, v, grad = one.tensors(device)
        truth = _truth(q, k, v, grad, one.learns)
        for name, way in ways.items():
            if name in trial.out:
                continue
            if number == 0 and not way.fits(q, k, v):
                trial.out[name] = Fault("cannot compute this")
            elif fault := _fault(way.attend, (q, k, v), grad, truth):
                trial.out[name] = fault
    q, k, v, grad = example.tensors(device)
    runs = {n: way.attend for n, way in ways.items() if n not in trial.out}
    trial.times = {name: [] for name in runs}
    began = clock()
    for number in range(_ROUNDS):
        for name, attend in runs.items():
            trial.times[name].append(_time(attend, (q, k, v), grad, example.learns, device, clock))
        if number and clock() - began > _ENOUGH:
            break
    return trial


def _fault(
    attend: Attend, qkv: Sequence[Tensor], grad: Tensor, truth: Sequence[Tensor]
) -> Fault | None:
    """Why a way is not to be taken; None for one that is right."""
    learns = qkv[0].requires_grad
    try:
        found = _run(attend, qkv, _some_rows(grad), learns)
        whole = _finite(found)
        errors = [_error(x, y) for x, y in zip(_seen(*found), truth, strict=True)]
        far = [_finite(_run(attend, _far(qkv, score), grad, learns)) for score in (-_FAR, _FAR)]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Whatever a kernel raises costs itself alone.
        return Fault(f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    worst = max(errors) if whole else float("nan")
    if not worst <= _BOUNDS.get(qkv[0].dtype, 2e-3):
        return Fault(f"differs from the formula by {worst:.2g}", wrong=True)
    if not all(far):
        return Fault("gives no numbers where all scores are far from zero", wrong=True)
    return None


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors)


def _far(qkv: Sequence[Tensor], score: float) -> list[Tensor]:
    """The same, all scores near this one; such gradients of cuDNN's were NaN (pytorch 196678)."""
    q, k, v = (x.detach().clone() for x in qkv)
    q[..., 0], k[..., 0] = 1, score * q.shape[-1] ** 0.5
    return [x.requires_grad_(qkv[0].requires_grad) for x in (q, k, v)]


def _run(attend: Attend, qkv: Sequence[Tensor], grad: Tensor, learns: bool) -> tuple[Tensor, ...]:
    """The output, and the gradients of q, k and v if they are wanted."""
    with torch.set_grad_enabled(learns):
        out = attend(qkv[0], qkv[1], qkv[2])
        return (out, *torch.autograd.grad(out, list(qkv), grad)) if learns else (out,)


def _time(
    attend: Attend,
    qkv: Sequence[Tensor],
    grad: Tensor,
    learns: bool,
    device: torch.device,
    clock: Clock,
) -> float:
    _wait(device)
    began = clock()
    for _ in range(_CALLS):
        _run(attend, qkv, grad, learns)
    _wait(device)
    return (clock() - began) / _CALLS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- the formula --------------------------------------------------------------------------------


def _rows(length: int) -> list[int]:
    """Some rows from the first to the last."""
    count = min(_ROWS, length)
    return [round(n * (length - 1) / max(count - 1, 1)) for n in range(count)]


def _some_rows(grad: Tensor) -> Tensor:
    """A gradient that is zero but for some rows: those of k and v then follow from these alone."""
    found = torch.zeros_like(grad)
    rows = _rows(grad.shape[1])
    found[:, rows] = grad[:, rows]
    return found


def _seen(out: Tensor, *grads: Tensor) -> list[Tensor]:
    """What is compared: some rows of all heads, and gradients of the first and the last head."""
    rows = _rows(out.shape[1])
    if not grads:
        return [out[0, rows]]
    q, k, v = (x[0, [0, -1]] for x in grads)
    return [out[0, rows], q[:, rows], k, v]


def _truth(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, learns: bool) -> list[Tensor]:
    """What `_seen` must be, in float64, head by head: no (S, S) scores."""
    heads, rows = q.shape[1], _rows(q.shape[2])
    outs, grads = [], []
    for h in range(heads):
        own = [x[0, h].detach().double() for x in (q[:, :, rows], k, v)]
        own = [x.requires_grad_(learns) for x in own]
        with torch.set_grad_enabled(learns):
            out = ((own[0] @ own[1].mT) * q.shape[-1] ** -0.5).softmax(-1) @ own[2]
        outs.append(out.detach())
        if learns and h in (0, heads - 1):
            of = grad[0, rows].view(len(rows), heads, -1)[:, h].double()
            grads.append(torch.autograd.grad(out, own, of))
    found = [torch.cat(outs, -1)]
    if learns:
        pair = (grads[0], grads[-1])
        found += [torch.stack(both) for both in zip(*pair, strict=True)]
    return found


def _error(found: Tensor, truth: Tensor) -> float:
    """The largest error of a row beside the largest row."""
    apart = (found.detach().double() - truth).norm(dim=-1).max()
    return float(apart / truth.norm(dim=-1).max())
