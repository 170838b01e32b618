"""What a sampling pass of FLUX.1-dev multiplies, reads and writes: counted, on no device.

    python benchmarks/counted.py                     1024x1536 and 512x512

The network stands on torch's meta device with a LoRA of rank 16 in bf16 on every linear layer of
its blocks. FLOPs are torch's own count. Bytes are those of every operation's tensors, read and
written once each, as plain kernels do; attention and a norm are one kernel. Nothing is timed. A
pass is any but the first of a sampling of 20 steps, which also modulates all others. Of matrices in
few bits codes and scales are weights, and what is made of them for a product is all else. The last
rows are two panels of 512 px without a LoRA: all computed, and the made one alone, which reads the
kept keys of the given one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from cached_completion import Canvas, operations
from sample_step import Velocity, lora, ours, theirs
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from train_step import Work, build, dev_size

from iclora.models.levels import Schedule
from iclora.models.quantize import quantize
from iclora.models.widened import lend, narrow
from iclora.settings import Precision

META = torch.device("meta")
STEPS = 20
FIRST = f"ours, the first pass of {STEPS}"


class Traffic(TorchDispatchMode):
    """Bytes of all operations that are no views, and how many there were."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self.weights = self.others = self.operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        if not function.is_view and "empty" not in name:
            # What is only written is among the outputs.
            kwargs.pop("out", None)
            read = args[1:] if name in ("copy_", "zero_", "fill_") else args
            self.book(tensors((read, kwargs, out)))
        return out

    def book(self, found: Iterable[Tensor]) -> None:
        """Count an operation of these tensors."""
        self.operations += 1
        for tensor in found:
            storage = tensor.untyped_storage()
            size = min(int(tensor.nbytes), storage.nbytes())
            if storage._cdata in self._weights:
                self.weights += size
            else:
                self.others += size


def tensors(found: Any) -> list[Tensor]:
    """The tensors in it."""
    return [each for each in tree_iter(found) if isinstance(each, Tensor)]


@contextmanager
def as_kernels(traffic: Traffic) -> Iterator[None]:
    """Attention and norms as one kernel each, as on a card: attention keeps no scores."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        q, k, v = query, key, value
        b, heads, length, d = q.shape
        out = q.new_empty(b, length, heads, d).transpose(1, 2)
        traffic.book((q, k, v, out))
        return out

    def norm(x: Tensor, _: Any, weight: Tensor, *__: Any) -> Tensor:
        out = torch.empty_like(x)
        traffic.book((x, weight, out))
        return out

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(F, "rms_norm", norm),
    ):
        yield


def count(net: Any, work: Work, velocity: Velocity, began: bool = True) -> tuple[float, Traffic]:
    """TFLOP of a pass, and its traffic; `began` says that it is not the first of its sampling."""
    sigma = torch.full((1,), 0.5, device=META)
    schedule = Schedule([left / STEPS for left in range(STEPS, -1, -1)])

    def run() -> None:
        own = schedule if began else Schedule(schedule.levels)
        velocity(work.eps, sigma, own.at(0.5))

    run()
    with FlopCounterMode(display=False) as flops:
        run()
    return flops.get_total_flops() / 1e12, traffic_of(net, run)


def traffic_of(net: Any, run: Callable[[], Any]) -> Traffic:
    traffic = Traffic((*net.parameters(), *net.buffers()))
    with as_kernels(traffic), traffic:
        run()
    return traffic


def arms(net: Any, work: Work) -> Iterator[tuple[str, Callable[[], Velocity]]]:
    """Ways to make a pass, in this order."""

    def beside() -> Velocity:
        lend(net)
        return ours(net, work)

    def bare() -> Velocity:
        narrow(net)
        net.unload_lora()
        return ours(net, work)

    yield "diffusers, the LoRA in PEFT's layers", lambda: theirs(net, work)
    yield "ours", lambda: ours(net, work)
    yield FIRST, lambda: ours(net, work)
    yield "ours, each step modulated by itself", lambda: ours(net, work, ahead=False)
    yield "ours, the LoRA beside its matrices", beside
    yield "ours without a LoRA", bare


def in_few_bits(kind: Precision) -> Any:
    """The network with its blocks' matrices in a kind, each with its LoRA."""
    net = build(dev_size, META)
    quantize(net, kind, META, ("transformer_blocks.", "single_transformer_blocks."))
    lora(net)
    return net


def tell(name: str, canvas: str, flops: float, found: Traffic) -> None:
    cells = (f"{flops:.1f}", f"{found.weights / 1e9:.1f}", f"{found.others / 1e9:.1f}")
    print(f"| {name} | {canvas} | {' | '.join(cells)} | {found.operations} |")


def completing() -> None:
    """One panel given and one made, of 512 px."""
    net = build(dev_size, META)
    canvas, kept = Canvas(net, 1, 1, META), []
    canvas.fill(kept)
    ways = {"all computed": canvas.plain, "the given one's keys kept": lambda: canvas.read(kept)}
    for name, run in ways.items():
        tell(f"ours, two panels, {name}", "512x1024", operations(run) / 1e12, traffic_of(net, run))


@torch.no_grad()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.parse_args()
    print("| a pass | canvas | TFLOP | GB of weights | GB of all else | operations |")
    print("|---|---|---|---|---|---|")
    for width, height in ((1024, 1536), (512, 512)):
        net = build(dev_size, META)
        lora(net)
        work = Work.draw(net, 1, width, height, META)
        for name, arm in arms(net, work):
            tell(name, f"{width}x{height}", *count(net, work, arm(), began=name != FIRST))
        for kind in ("int8", "nf4", "fp8"):
            net = in_few_bits(kind)
            tell(f"ours in {kind}", f"{width}x{height}", *count(net, work, ours(net, work)))
    completing()


if __name__ == "__main__":
    main()
