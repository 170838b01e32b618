"""Frozen linear layers in 8 or 4 bits, and their products.

A layer keeps codes and scales. Its weight is made from them for each product and never kept, not
for the backward pass either: that makes it again. Every kind is one class, one entry in `KINDS`:

    full  the weight as it is
    int8  codes times one scale an output
    nf4   4-bit codes of a normal distribution, one scale a block of 64 (QLoRA, Dettmers et al.
          2023, arXiv 2305.14314, section 3)
    fp8   e4m3, one scale an output; products in fp8 themselves, of inputs in e4m3 and gradients in
          e5m2, each scaled row by row (formats: Micikevicius et al. 2022, arXiv 2209.05433)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.errors import SettingsError
from iclora.models import products
from iclora.models.products import exact, is_slow
from iclora.settings import Precision

__all__ = [
    "KINDS",
    "Frozen",
    "Kind",
    "Matrix",
    "check_precision",
    "matrix",
    "nf4_levels",
    "product",
    "quantize",
    "quicken",
]

Parts = tuple[Tensor, ...]
"""The tensors that a frozen matrix of (out, in) is kept as."""

_BLOCK = 64
"""Weights that share a scale in nf4."""

_TWICE = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
"""A type that holds two numbers of so many bytes."""

_FEW = 32
"""Rows below which an fp8 product saves no time: modulation has one a sample."""

_SIDE = 16
"""A card multiplies fp8 matrices whose sides are multiples of it."""


class Kind:
    """One way to keep a frozen matrix and to compute with it; this one keeps it as it is.

    Rows are (M, in) or (M, out). No method records anything for autograd.
    """

    def pack(self, weight: Tensor) -> Parts:
        return (weight,)

    def unpack(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """The matrix that is computed with."""
        return parts[0].to(dtype)

    def columns(self, parts: Parts, start: int, stop: int | None) -> Parts | None:
        """The same of some of its inputs; None where they share scales with others."""
        return tuple(part[:, start:stop] for part in parts)

    def times(
        self, matrices: Sequence[Parts], x: Tensor, biases: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """x W' + b for each of several matrices."""
        read = exact(x)
        return [
            F.linear(read, self.unpack(parts, read.dtype), _as(bias, read)).to(x.dtype)
            for parts, bias in zip(matrices, biases, strict=True)
        ]

    def add_back(self, gx: Tensor, parts: Parts, g: Tensor) -> None:
        """Add the gradient of the input, g W, to `gx` in place."""
        read = exact(g)
        weight = self.unpack(parts, read.dtype)
        if read.dtype == gx.dtype:
            gx.addmm_(read, weight)
        else:
            gx += read @ weight


def _as(bias: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(like.dtype)


class _Int8(Kind):
    def pack(self, weight: Tensor) -> Parts:
        whole = weight.float()
        scale = whole.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        return (whole / scale).round().to(torch.int8), scale

    def unpack(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        codes, scale = parts
        return codes.to(dtype) * scale.to(dtype)

    def columns(self, parts: Parts, start: int, stop: int | None) -> Parts:
        return parts[0][:, start:stop], parts[1]


class _Nf4(Kind):
    def pack(self, weight: Tensor) -> Parts:
        out, width = weight.shape
        blocks = weight.float().view(out, -1, gcd(width, _BLOCK))
        # Rounded before the codes are chosen, so that they make up for it.
        most = blocks.abs().amax(2, keepdim=True).clamp(min=1e-30).bfloat16()
        levels = nf4_levels().to(weight.device)
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(blocks / most.float(), between).to(torch.uint8).view(out, -1)
        # Both weights of every byte stand in a table, kept with the layer, 2 KB.
        pairs = torch.cartesian_prod(levels, levels)
        return codes[:, ::2] << 4 | codes[:, 1::2], most.squeeze(2), pairs

    def unpack(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        codes, most, pairs = parts
        # Both weights of a byte as one number: to gather rows of two takes several times as long.
        table = pairs.to(dtype).view(_TWICE[dtype.itemsize]).flatten()
        weight = table.index_select(0, codes.flatten().int()).view(dtype)
        return (weight.view(*most.shape, -1) * most.to(dtype)[..., None]).flatten(1)

    def columns(self, parts: Parts, start: int, stop: int | None) -> Parts | None:
        codes, most, pairs = parts
        width = 2 * codes.shape[1]
        block = width // most.shape[1]
        stop = width if stop is None else stop
        if start % block or stop % block:
            return None
        most = most[:, start // block : stop // block]
        return codes[:, start // 2 : stop // 2], most, pairs


class _Fp8(Kind):
    def pack(self, weight: Tensor) -> Parts:
        codes, scale = _to_fp8(weight, torch.float8_e4m3fn)
        # As plain bytes: PEFT gives a LoRA its base's type wherever that is a floating one.
        return codes.view(torch.uint8), scale

    def unpack(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return parts[0].view(torch.float8_e4m3fn).to(dtype) * parts[1].to(dtype)

    def columns(self, parts: Parts, start: int, stop: int | None) -> Parts:
        return parts[0][:, start:stop], parts[1]

    def times(
        self, matrices: Sequence[Parts], x: Tensor, biases: Sequence[Tensor | None]
    ) -> list[Tensor]:
        if not all(_pays(x, parts) for parts in matrices):
            return super().times(matrices, x, biases)
        read = _to_fp8(x, torch.float8_e4m3fn)
        ys = []
        for (codes, scale), bias in zip(matrices, biases, strict=True):
            y = _fp8_product(read, codes.view(torch.float8_e4m3fn).mT, scale.mT, x.dtype)
            ys.append(y if bias is None else y.add_(bias))
        return ys

    def add_back(self, gx: Tensor, parts: Parts, g: Tensor) -> None:
        if not _pays(g, parts):
            super().add_back(gx, parts, g)
            return
        codes, scale = parts
        # The sum runs over outputs here: their scales go to the gradient before it is rounded.
        read = _to_fp8(g * scale.mT.to(g.dtype), torch.float8_e5m2)
        # The hardware reads the second factor column by column.
        turned = codes.view(torch.float8_e4m3fn).mT.contiguous().mT
        one = torch.ones(1, codes.shape[1], device=g.device)
        gx += _fp8_product(read, turned, one, gx.dtype)


KINDS: dict[str, Kind] = {"full": Kind(), "int8": _Int8(), "nf4": _Nf4(), "fp8": _Fp8()}


def nf4_levels() -> Tensor:
    """The 16 values: quantiles of a normal distribution, seven below 0 and eight above."""
    edge = 1 - (1 / 30 + 1 / 32) / 2  # equal mass beyond the outermost values, on average
    above = torch.special.ndtri(torch.linspace(edge, 0.5, 9, dtype=torch.float64))[:-1]
    below = torch.special.ndtri(torch.linspace(edge, 0.5, 8, dtype=torch.float64))[:-1]
    levels = torch.cat([-below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return (levels / levels.max()).float()


def _pays(rows: Tensor, parts: Parts) -> bool:
    """True if these rows and a matrix are multiplied in fp8."""
    return len(rows) >= _FEW and not any(side % _SIDE for side in parts[0].shape)


def _to_fp8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows in fp8, and the scale of each, (M, 1)."""
    most = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    scale = most / torch.finfo(dtype).max
    return (x / scale).to(dtype), scale.float()


def _fp8_product(
    read: tuple[Tensor, Tensor], other: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    # On CUDA products with a scale a row come in bf16 only.
    wanted = torch.bfloat16 if other.is_cuda else dtype
    y: Tensor = torch._scaled_mm(
        read[0], other, scale_a=read[1], scale_b=scale.contiguous(), out_dtype=wanted
    )
    return y.to(dtype)


# -- layers -------------------------------------------------------------------------------------


class Frozen(nn.Linear):
    """A linear layer whose weight is kept as codes and never trained.

    It is an nn.Linear to those who look for one; `weight` holds codes, as whole numbers.
    """

    def __init__(self, linear: nn.Linear, kind: str, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind = kind
        codes, *rest = KINDS[kind].pack(linear.weight.detach().to(device))
        self.weight = nn.Parameter(codes, requires_grad=False)
        for number, part in enumerate(rest):
            self.register_buffer(f"part{number}", part)
        bias = None if linear.bias is None else linear.bias.detach().to(device)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return product(input, Matrix(self.kind, self.parts, self.bias))

    @property
    def parts(self) -> Parts:
        return self.weight, *self.buffers(recurse=False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind}"


class Matrix(NamedTuple):
    """A frozen linear layer, taken apart."""

    kind: str
    parts: Parts
    bias: Tensor | None


def product(x: Tensor, layer: Matrix) -> Tensor:
    """The layer of x, (..., in) to (..., out); for the gradient of x only its parts are kept."""
    if layer.kind == "full" and (layer.parts[0].requires_grad or not is_slow(x)):
        return F.linear(x, layer.parts[0], layer.bias)
    function: Any = _Product
    y: Tensor = function.apply(x, layer.kind, layer.bias, *layer.parts)
    return y


def quicken(net: nn.Module) -> nn.Module:
    """Let layers of bf16 multiply in float32 on a CPU that needs it (`products`); the same network.

    Linear layers that are replaced later, or have a LoRA, do so of themselves.
    """
    if products.SLOW:
        for module in net.modules():
            one: Any = module
            if type(module) is nn.Linear:
                one.forward = MethodType(_forward, module)
            elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                one._conv_forward = MethodType(_conv_forward, module)
    return net


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return product(x, Matrix("full", (layer.weight,), layer.bias))


def _conv_forward(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    read = exact(x)
    y: Tensor = type(layer)._conv_forward(layer, read, weight.to(read.dtype), _as(bias, read))
    return y.to(x.dtype)


class _Product(torch.autograd.Function):
    """A frozen layer alone; nothing but its codes is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, bias: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.kind, ctx.shape = kind, x.shape
        ctx.save_for_backward(*parts)
        (y,) = KINDS[kind].times((parts,), x.flatten(0, -2), (bias,))
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # Read once: a recomputed block hands them out a single time.
        parts = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        gx = flat.new_zeros(len(flat), ctx.shape[-1])
        KINDS[ctx.kind].add_back(gx, parts, flat)
        return gx.view(ctx.shape), None, None, *(None for _ in parts)


def matrix(layer: nn.Module) -> Matrix | None:
    """Take a frozen layer apart; None if it is not a linear layer of ours or of torch."""
    if isinstance(layer, Frozen):
        return Matrix(layer.kind, layer.parts, layer.bias)
    if type(layer) is nn.Linear:
        return Matrix("full", (layer.weight,), layer.bias)
    return None


def quantize(
    net: nn.Module, kind: Precision, device: torch.device, block_prefixes: tuple[str, ...]
) -> nn.Module:
    """Replace the linear layers of a transformer's blocks, one by one, each freed behind itself.

    Embedders, norms and the last layer stay: they are small, and their errors reach everything.

    Args:
        block_prefixes: how the names of its blocks begin.
    Returns: the same network; its blocks' linear layers are on `device`.
    """
    if kind == "full":
        return net
    # Names alone: a list of the layers would keep all of them.
    names = [
        name
        for name, module in net.named_modules()
        if type(module) is nn.Linear and name.startswith(block_prefixes)
    ]
    for name in names:
        above, _, own = name.rpartition(".")
        parent = net.get_submodule(above)
        # Through setattr the network's own list of submodules changes, and the old layer goes.
        setattr(parent, own, Frozen(getattr(parent, own), kind, device))
    return net


def check_precision(kind: Precision, device: torch.device) -> None:
    """Raises: SettingsError if the device has no products in fp8; tried, not looked up."""
    if kind != "fp8":
        return
    try:
        fp8 = _Fp8()
        x = torch.ones(_FEW, 32, device=device, dtype=torch.bfloat16)
        parts = fp8.pack(x)
        fp8.times((parts,), x, (None,))
        fp8.add_back(torch.zeros_like(x), parts, x)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as error:
        raise SettingsError(
            f"{device} has no matrix products in fp8 ({str(error).splitlines()[0]})",
            "NVIDIA cards have them from Ada and Hopper on. Use `precision` int8, which takes as "
            "little memory.",
            setting="precision",
        ) from error
