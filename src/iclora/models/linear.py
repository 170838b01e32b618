"""Frozen linear layers with LoRA: what PEFT's wrapper computes, in fewer and smaller tensors.

Layers that read the same input share one product with all their LoRA As. No input is copied to
float32, and an activation before a layer is computed again in the backward pass instead of kept.
The frozen matrix may be of any kind that `iclora.models.quantize` knows.

Without gradients, frozen matrices as they are take their LoRA into the same product
(`iclora.models.widened`).

Tests hold outputs and gradients equal to PEFT's and to float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.models.products import exact
from iclora.models.quantize import KINDS, Matrix, Parts, matrix, product
from iclora.models.widened import Wide, wide

__all__ = [
    "Activated",
    "Activation",
    "Inner",
    "Lora",
    "activate",
    "check_loras",
    "linear",
    "linear_of_two",
    "linears",
    "linears_into",
]

Activation = Literal["none", "gelu", "swiglu"]
"""The function of a layer's input: GELU by its tanh formula; swiglu, of an input twice as wide as
the layer reads, is silu(first half) * second half."""


class _Function(NamedTuple):
    """An activation and its gradient."""

    run: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    """(gradient of the output, input) to the gradient of the input."""
    into: Callable[[Tensor, Tensor], object]
    """(input, output), which it writes; without gradients."""


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_back(grad: Tensor, x: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    return found


def _gelu_into(x: Tensor, out: Tensor) -> None:
    torch.ops.aten.gelu.out(x, approximate="tanh", out=out)


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


def _swiglu_back(grad: Tensor, x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    of_gate = torch.ops.aten.silu_backward(grad * value, gate)
    return torch.cat([of_gate, grad * F.silu(gate)], -1)


def _swiglu_into(x: Tensor, out: Tensor) -> None:
    gate, value = x.chunk(2, -1)
    torch.mul(F.silu(gate), value, out=out)


_FUNCTIONS: dict[Activation, _Function] = {
    "none": _Function(lambda x: x, lambda grad, _: grad, lambda x, out: out.copy_(x)),
    "gelu": _Function(_gelu, _gelu_back, _gelu_into),
    "swiglu": _Function(_swiglu, _swiglu_back, _swiglu_into),
}


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of x, (..., width) to (..., width), or to half as wide for swiglu."""
    return _FUNCTIONS[activation].run(x)


@dataclass(frozen=True)
class Lora:
    """The one active adapter of a layer: scale * (x down') up' is added to what it gives."""

    down: Tensor
    """(rank, in)"""
    up: Tensor
    """(out, rank)"""
    scale: float


def _parts(layer: Any) -> tuple[nn.Module, Lora | None]:
    """A layer's frozen base and its adapter; of PEFT's wrapper, or of the layer itself."""
    base = getattr(layer, "base_layer", None)
    if base is None:
        return layer, None
    if layer.disable_adapters:
        if layer.merged:
            # As PEFT does: else the adapter would be in the weights although it is disabled.
            layer.unmerge()
        return base, None
    if layer.merged:
        return base, None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active:
        return base, None
    (name,) = active
    return base, Lora(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def check_loras(net: nn.Module) -> None:
    """Assert that every LoRA of a network is one these functions compute.

    PEFT also makes layers with dropout, a bias or DoRA's norms, which would be left out silently.
    Called once after layers were added: nothing of iclora adds such layers.
    """
    for name, layer in net.named_modules():
        for adapter in getattr(layer, "lora_A", ()):
            plain: Any = layer
            assert not plain.lora_variant.get(adapter), f"{name} is a variant of LoRA"
            assert not plain.lora_bias[adapter], f"{name} has a LoRA with a bias"
            assert isinstance(plain.lora_dropout[adapter], nn.Identity), f"{name} has dropout"


class Activated(NamedTuple):
    """What went through the next layer's activation already."""

    x: Tensor


Inner = Tensor | Activated
"""The input of a layer with an activation."""


def linear(layer: Any, x: Inner, activation: Activation = "none", *, often: bool = True) -> Tensor:
    """The layer of activation(x), (B, S, in) to (B, S, out); only x is kept of it.

    Args:
        often: False for a layer that a sampling needs once, so that nothing is prepared for it.
    """
    return linears((layer,), x, activation, often=often)[0]


def linears(
    layers: Sequence[Any], x: Inner, activation: Activation = "none", *, often: bool = True
) -> tuple[Tensor, ...]:
    """Several layers of one activation(x), (B, S, in) each to (B, S, out)."""
    bases, loras = zip(*map(_parts, layers), strict=True)
    read = x.x if isinstance(x, Activated) else x
    # The next layer's activation decides, whoever computes it.
    found = _wide(bases, loras, activation, read) if often else None
    if isinstance(x, Activated):
        x, activation = read, "none"
    if found:
        both = _inputs(found, [(x, activation)])
        return tuple(_product(both, weight, x.shape) for weight in found.weights)
    if all(loras):
        known = [m for m in map(matrix, bases) if m]
        if len(known) == len(bases) and len({m.kind for m in known}) == 1:
            return _adapted(x, activation, known, loras)
    y = activate(x, activation)
    return tuple(_plain(base, lora, y) for base, lora in zip(bases, loras, strict=True))


def linears_into(
    layers: Sequence[Any], x: Tensor, activation: Activation
) -> tuple[list[Tensor], Inner]:
    """Several layers of x, and the last one's output for a layer that will activate it.

    Where a product can do that on its way out, it has.

    Args:
        activation: what the layer that reads the last output is told.
    """
    found = None
    if activation == "gelu" and _ends_in_gelu(x):
        bases, loras = zip(*map(_parts, layers), strict=True)
        found = _wide(bases, loras, "none", x)
    if not found:
        *others, last = linears(layers, x)
        return others, last
    both = _inputs(found, [(x, "none")])
    *weights, inside = found.weights
    y = torch.ops.mkldnn._linear_pointwise(
        both, inside.to(both.dtype), None, "gelu", [], "tanh"
    ).to(x.dtype)
    return [_product(both, weight, x.shape) for weight in weights], Activated(
        y.view(*x.shape[:-1], -1)
    )


def _ends_in_gelu(x: Tensor) -> bool:
    """True where a CPU's product ends in GELU, which alone takes as long as the product."""
    plain = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return plain and not torch.compiler.is_compiling() and _has_products()


@cache
def _has_products() -> bool:
    """True if this build of torch has oneDNN's products of bf16, which compiled code calls, too."""
    there: Any = torch.backends.mkldnn.is_available
    kit = torch.ops.mkldnn
    return there() and hasattr(kit, "_linear_pointwise") and bool(kit._is_mkldnn_bf16_supported())


def linear_of_two(layer: Any, first: Tensor, second: Inner, activation: Activation) -> Tensor:
    """The layer of [first, activation(second)] without joining them, each (B, S, ...)."""
    base, lora = _parts(layer)
    at, whole = first.shape[-1], matrix(base)
    # As in `linears`.
    found = _wide((base,), (lora,), activation, first)
    if isinstance(second, Activated):
        second, activation = second.x, "none"
    if found:
        both = _inputs(found, [(first, "none"), (second, activation)])
        return _product(both, found.weights[0], first.shape)
    halves = _split(whole, at) if whole else None
    if halves is None or (not lora and type(base) is not nn.Linear):
        return _plain(base, lora, torch.cat([first, activate(second, activation)], -1))
    left, right = halves
    if not lora:
        return product(first, left) + product(activate(second, activation), right)
    one, two = (Lora(d, lora.up, lora.scale) for d in (lora.down[:, :at], lora.down[:, at:]))
    return (
        _adapted(first, "none", [left], [one])[0] + _adapted(second, activation, [right], [two])[0]
    )


def _split(base: Matrix, at: int) -> tuple[Matrix, Matrix] | None:
    """The layer's matrix for its first `at` inputs, with the bias, and that for the others."""
    columns = KINDS[base.kind].columns
    left, right = columns(base.parts, 0, at), columns(base.parts, at, None)
    if left is None or right is None:
        return None
    return Matrix(base.kind, left, base.bias), Matrix(base.kind, right, None)


def _plain(base: nn.Module, lora: Lora | None, x: Tensor) -> Tensor:
    """Any kind of base, other libraries' as well."""
    y: Tensor = base(x)
    if lora:
        inner = F.linear(x, lora.down.to(x.dtype))
        y = y + F.linear(inner, lora.up.to(x.dtype)) * lora.scale
    return y


def _wide(
    bases: Sequence[Any], loras: Sequence[Lora | None], activation: Activation, x: Tensor
) -> Wide | None:
    """The layers widened, if they can be and it saves time.

    An input that goes through an activation is written anyway, and one that does not is written
    once more: that pays if the outputs, which are not read and written again, are more.
    """
    if torch.is_grad_enabled() or not all(loras):
        return None
    if activation == "none" and sum(b.out_features for b in bases) <= bases[0].in_features:
        return None
    found = wide(bases, [(each.down, each.up, each.scale) for each in loras if each])
    return found if found and found.down.dtype == x.dtype else None


def _inputs(layers: Wide, read: Sequence[tuple[Tensor, Activation]]) -> Tensor:
    """[x, x A', 1] for x of activations of inputs that stand side by side, (rows, in + R).

    In the type to multiply it in.
    """
    down = layers.down
    rows = [(x.flatten(0, -2), _FUNCTIONS[activation]) for x, activation in read]
    if torch.compiler.is_compiling():
        # A compiler lets what makes each part write it in place.
        seen = torch.cat([function.run(x) for x, function in rows], -1)
        both = torch.cat([seen, seen @ down.mT], -1)
    else:
        width, at = down.shape[1], 0
        both = down.new_empty(len(rows[0][0]), width + len(down))
        for x, function in rows:
            columns = x.shape[1] // 2 if function is _FUNCTIONS["swiglu"] else x.shape[1]
            function.into(x, both[:, at : at + columns])
            at += columns
        torch.mm(both[:, :width], down.mT, out=both[:, width:])
    if layers.ones is not None:
        both[:, layers.ones] = 1
    return exact(both)


def _product(both: Tensor, weight: Tensor, like: torch.Size) -> Tensor:
    y = F.linear(both, weight.to(both.dtype)).to(weight.dtype)
    return y.view(*like[:-1], -1)


def _adapted(
    x: Tensor, activation: Activation, bases: Sequence[Matrix], loras: Sequence[Lora]
) -> tuple[Tensor, ...]:
    ys: tuple[Tensor, ...] = _Adapted.apply(  # type: ignore[no-untyped-call]
        x,
        activation,
        bases[0].kind,
        tuple(lora.scale for lora in loras),
        *(half for lora in loras for half in (lora.down, lora.up)),
        *(base.bias for base in bases),
        *(part for base in bases for part in base.parts),
    )
    return ys


class _Adapted(torch.autograd.Function):
    """Frozen linear layers of one input, each with a LoRA.

    y_i = a(x) W_i' + b_i + s_i (a(x) A_i') B_i' for an activation a. All A_i are one product. Only
    x and a(x) A' are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        activation: Activation,
        kind: str,
        scales: tuple[float, ...],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        halves, biases, matrices = _Adapted.sorted(tensors, len(scales))
        flat = exact(_FUNCTIONS[activation].run(x).flatten(0, -2))
        downs, ups = halves[::2], halves[1::2]
        u = flat @ _joined(downs).to(flat.dtype).mT
        ys = KINDS[kind].times(matrices, flat, biases)
        at = 0
        for y, scale, up in zip(ys, scales, ups, strict=True):
            rank = up.shape[1]
            y.addmm_(u[:, at : at + rank], up.to(y.dtype).mT, alpha=scale)
            at += rank
        ctx.save_for_backward(x, u, *tensors)
        ctx.activation, ctx.kind, ctx.scales = activation, kind, scales
        return tuple(y.to(x.dtype).view(*x.shape[:-1], -1) for y in ys)

    @staticmethod
    def sorted(tensors: Sequence[Any], count: int) -> tuple[list[Tensor], list[Any], list[Parts]]:
        """LoRA halves, biases, and what each of `count` matrices is kept as."""
        rest = tensors[3 * count :]
        each = len(rest) // count
        matrices = [tuple(rest[i * each : (i + 1) * each]) for i in range(count)]
        return list(tensors[: 2 * count]), list(tensors[2 * count : 3 * count]), matrices

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, u, *tensors = ctx.saved_tensors
        halves, _, matrices = _Adapted.sorted(tensors, len(ctx.scales))
        downs, ups = halves[::2], halves[1::2]
        flat = [exact(g.flatten(0, -2)) for g in grads]
        inner, at, up_grads = [], 0, []
        for g, up, scale in zip(flat, ups, ctx.scales, strict=True):
            rank = up.shape[1]
            inner.append((g @ up.to(g.dtype)).mul_(scale))
            up_grads.append((g.mT @ u[:, at : at + rank]).to(up.dtype) * scale)
            at += rank
        joined = _joined(inner, 1)
        function = _FUNCTIONS[ctx.activation]
        gx = None
        if ctx.needs_input_grad[0]:
            gx = joined @ _joined(downs).to(joined.dtype)
            for g, parts in zip(flat, matrices, strict=True):
                KINDS[ctx.kind].add_back(gx, parts, g)
            gx = gx.to(x.dtype).view(*x.shape[:-1], -1)
        read = exact(function.run(x).flatten(0, -2))
        down = (joined.mT @ read).to(downs[0].dtype)
        if gx is not None:
            gx = function.back(gx, x)
        pairs = zip(torch.split(down, [d.shape[0] for d in downs]), up_grads, strict=True)
        rest = (None for _ in tensors[len(halves) :])
        return gx, None, None, None, *(g for pair in pairs for g in pair), *rest


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors as one; one alone as it is, which torch would copy."""
    return torch.cat(list(parts), dim) if len(parts) > 1 else parts[0]
