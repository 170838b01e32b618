"""Frozen matrices with a LoRA in further columns: one product for both, while sampling.

y = x W' + b + s (x A') B' is [x, x A', 1] [W, s B, b]'. A LoRA beside the matrix reads and writes y
once more, which for a layer with several times as many outputs as inputs takes longer than to
write [x, x A'] instead. W stays as it is, to the bit: to add B A to it would lose, in bf16, what is
below W's last digit, and so paint at another strength.

Nothing here has gradients. A layer is widened by its first pass, and `narrow` undoes it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Half", "Wide", "lend", "moves", "narrow", "still", "wide", "widened"]

_STILL = ContextVar("_STILL", default=False)
_moves = 0

_ALIGNED = 32
"""R is a multiple of it: matrix units take so many numbers at a time (a CPU's tiles of bf16)."""
_WASTE = 1 / 16
"""Share of a product that may be with zeros: about half of what the LoRA takes beside it."""

Half = tuple[Tensor, Tensor, float]
"""A LoRA: A (rank, in), B (out, rank), and the factor on their product."""


class Wide(NamedTuple):
    """Layers of one input, widened."""

    down: Tensor
    """All As and rows of zeros, (R, in), in the type of the weights."""
    weights: tuple[Tensor, ...]
    """Of each layer [W, s B, b], (out, in + R): B in its own A's columns, 0 in those of others."""
    ones: int | None
    """The column that biases stand in, to be multiplied by 1; None without any."""
    layers: tuple[nn.Linear, ...]
    state: tuple[Any, ...]
    """What it was made of."""


def wide(layers: Sequence[Any], loras: Sequence[Half]) -> Wide | None:
    """These layers widened, now or before; None where they cannot be, or there is no memory."""
    found: Wide | None = getattr(layers[0], "_wide", None)
    if torch.compiler.is_compiling():
        return found
    if found is not None:
        same = len(found.layers) == len(layers) and all(map(operator.is_, found.layers, layers))
        if same and _same(found.state, _state(layers, loras)):
            return found
    if _STILL.get():
        if found is not None:
            raise RuntimeError("weights would move while a pass is recorded")
        return None
    if found is not None:
        _undo(found)
    if not _may(layers, loras):
        return None
    try:
        made = _make(layers, loras)
    except torch.OutOfMemoryError:
        return None
    layers[0]._wide = made
    return made


def moves() -> int:
    """How often weights moved so far in this process: what read them before reads other memory."""
    return _moves


@contextmanager
def still() -> Iterator[None]:
    """Move no weight in here, while a pass is recorded that was run before."""
    before = _STILL.set(True)
    try:
        yield
    finally:
        _STILL.reset(before)


def widened(net: nn.Module) -> list[Wide]:
    """What is widened of a network."""
    found = (getattr(module, "_wide", None) for module in net.modules())
    return [each for each in found if each is not None]


def narrow(net: nn.Module) -> None:
    """Bring every widened weight back to memory of its own, the same to the bit."""
    for each in widened(net):
        _undo(each)


def lend(module: nn.Module) -> None:
    """Say that the weights of a module lie in memory of somebody else's, and must stay there."""
    narrow(module)
    for each in module.modules():
        each.__dict__["_lent"] = True


def _may(layers: Sequence[Any], loras: Sequence[Half]) -> bool:
    plain = all(type(each) is nn.Linear and "_lent" not in each.__dict__ for each in layers)
    if not plain or any(half.requires_grad for a, b, _ in loras for half in (a, b)):
        return False
    outs = [each.out_features for each in layers]
    zeros = sum(
        (_columns(layers, loras) - len(a)) * out for out, (a, _, _) in zip(outs, loras, strict=True)
    )
    if zeros > _WASTE * layers[0].in_features * sum(outs):
        return False
    weights = [each.weight for each in layers]
    kept = {(w.dtype, w.device) for w in weights}
    return len(kept) == 1 and weights[0].is_floating_point()


def _columns(layers: Sequence[Any], loras: Sequence[Half]) -> int:
    """R"""
    used = sum(len(a) for a, _, _ in loras) + any(each.bias is not None for each in layers)
    return -(-used // _ALIGNED) * _ALIGNED


def _make(layers: Sequence[Any], loras: Sequence[Half]) -> Wide:
    like, width = layers[0].weight, layers[0].in_features
    down = like.new_zeros(_columns(layers, loras), width)
    ranks = sum(len(a) for a, _, _ in loras)
    down[:ranks] = torch.cat([a.detach() for a, _, _ in loras])
    ones = width + ranks if any(each.bias is not None for each in layers) else None
    made, at = [], width
    for layer, (_, up, scale) in zip(layers, loras, strict=True):
        weight, rank = layer.weight.detach(), up.shape[1]
        columns = weight.new_zeros(len(weight), width + len(down))
        columns[:, :width] = weight
        exact = torch.promote_types(up.dtype, torch.float32)
        columns[:, at : at + rank] = up.detach().to(exact) * scale
        if layer.bias is not None:
            columns[:, ones] = layer.bias.detach()
        at += rank
        made.append(columns)
    _moved()
    for layer, columns in zip(layers, made, strict=True):
        # The memory it had is free from here on.
        layer.weight.data = columns[:, :width]
    return Wide(down, tuple(made), ones, tuple(layers), _state(layers, loras))


def _undo(found: Wide) -> None:
    first: Any = found.layers[0]
    del first._wide
    _moved()
    for layer in found.layers:
        layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)


def _moved() -> None:
    global _moves
    _moves += 1


def _state(layers: Sequence[Any], loras: Sequence[Half]) -> tuple[Any, ...]:
    tensors = [half for a, b, _ in loras for half in (a, b)]
    tensors += [each.bias for each in layers if each.bias is not None]
    kept = [(half, half._version, half.data_ptr()) for half in tensors]
    return *kept, *(scale for _, _, scale in loras)


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    if len(one) != len(other):
        return False
    return all(
        a[0] is b[0] and a[1:] == b[1:] if isinstance(a, tuple) else a == b
        for a, b in zip(one, other, strict=True)
    )
