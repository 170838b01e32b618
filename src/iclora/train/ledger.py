"""A ledger of tensors that have a size and no content: bytes that live, FLOPs that are computed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Ledger"]


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books the bytes of every storage made inside it, while it lives, and the FLOPs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.flops = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: torch would guard every operation against it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        # What another library's operations are given may not be comparable.
        asked = func.namespace == "aten" and (func, _kinds(args), _kinds(tuple(kwargs.items())))
        answer = _ANSWERS.get(asked)
        if answer:
            out = args[0] if answer.out is _FIRST else _as(answer.out)
        else:
            out = func(*args, **kwargs)
            answer = _answer(func, args, kwargs, out)
            if asked and answer.lasts and len(_ANSWERS) < _MOST:
                _ANSWERS[asked] = answer
        for made, own in zip(_tensors(out), answer.own, strict=True):
            if own:
                self._book(made)
        self.flops += answer.flops
        self.peak = max(self.peak, self.live + answer.hidden)
        return out

    def _book(self, made: Tensor) -> None:
        storage = made.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def strike(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, strike)
        self.live += size

    def mark(self) -> int:
        """The bytes that live now, from which on the peak is taken."""
        self.peak = self.live
        return self.live


# -- what operations make -----------------------------------------------------------------------

# Torch needs a millisecond of Python to say what an operation makes of tensors without content.
# Blocks ask the same few questions again and again, so answers are kept, for every ledger.


class _Kind(NamedTuple):
    """All that an answer depends on in a tensor without content."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Number(NamedTuple):
    """To torch 1, 1.0 and True differ."""

    kind: type
    value: float


class _Answer(NamedTuple):
    out: Any
    """What the operation returns, a `_Kind` for every tensor; or `_FIRST`."""
    own: tuple[bool, ...]
    """Of every tensor in it: whether it has a storage of its own."""
    lasts: bool
    """True if an equal question has an equal answer."""
    flops: int
    hidden: int
    """Bytes that a kernel takes for itself, which no output shows."""


_ANSWERS: dict[Any, _Answer] = {}
_MOST = 100_000
"""Answers that are kept; a plan asks some thousand questions."""
_FIRST = object()
"""The tensor that the operation was given first, and changes in place."""


_aten = torch.ops.aten
_AS_MANY = {
    _aten.addmm_: _aten.addmm,
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        _aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Operations that torch's counter has no entry for, by those that compute as much."""


def _answer(func: Any, args: Any, kwargs: Any, out: Any) -> _Answer:
    packet = func._overloadpacket
    counted = _AS_MANY.get(packet, packet)
    flops = 0
    if counted in flop_registry:
        flops = flop_registry[counted](*args, **kwargs, out_val=out)
    given = list(_tensors((args, *kwargs.values())))
    made = list(_tensors(out))
    theirs = {id(x.untyped_storage()) for x in given}
    own = tuple(id(x.untyped_storage()) not in theirs for x in made)
    places = {id(x.untyped_storage()) for x in made}
    first = bool(args) and out is args[0] and torch.Tag.inplace_view not in func.tags
    alone = all(own) and len(places) == len(made)
    lasts = (first or alone) and all(x.is_meta for x in (*given, *made))
    return _Answer(_FIRST if first else _kinds(out), own, lasts, flops, _hidden(packet, args))


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for one in x:
            yield from _tensors(one)


def _kinds(x: Any) -> Any:
    """The same with a `_Kind` in place of every tensor, to be compared."""
    if isinstance(x, Tensor):
        return _Kind(x.shape, x.stride(), x.dtype, x.device)
    if isinstance(x, tuple | list):
        return tuple([_kinds(one) for one in x])
    return _Number(type(x), x) if isinstance(x, int | float) else x


def _as(kinds: Any) -> Any:
    """The same with a new tensor in place of every `_Kind`."""
    if isinstance(kinds, _Kind):
        shape, strides, dtype, device = kinds
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)
    if isinstance(kinds, _Number):
        return kinds.value
    return tuple(map(_as, kinds)) if isinstance(kinds, tuple) else kinds


def _hidden(packet: Any, args: Any) -> int:
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_backward:
        return 4 * int(args[1].numel())  # the gradient of q, summed in float32
    if packet is torch.ops.aten.convolution:
        return int(args[0].nbytes)  # its input in another order, or unrolled in parts
    if packet is torch.ops.aten.index:
        return sum(8 * int(i.numel()) for i in _tensors(args[1]) if i.dtype == torch.int32)
    if packet is torch.ops.aten.bmm and args[0].dtype == torch.bfloat16:
        return _packed(*args)
    return 0


def _packed(a: Tensor, b: Tensor) -> int:
    """Bytes that a CPU's product of bfloat16 takes (oneDNN): copies of what lies in neither order,
    and one matrix of b and some rows of a as its instructions read them."""
    copies = sum(int(x.nbytes) for x in (a, b) if not (x.is_contiguous() or x.mT.is_contiguous()))
    rows = 0 if a.stride(-1) == 1 else min(a.shape[1], 256) * a.shape[2]
    return copies + 2 * (int(b[0].numel()) + rows)
