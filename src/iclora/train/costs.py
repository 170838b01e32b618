"""Count what a run takes, without running it: bytes at its peak, and FLOPs.

The base's real modules run, forward and backward, on tensors that have a size and no content
(`models.outline`), while a ledger books every storage that is made and freed. Blocks of a kind
are alike, so one of each is counted, kept and recomputed, and the pass is put together from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from iclora.adapter import attach
from iclora.models.attention import Attend
from iclora.models.outline import META, Batch, Outline, Streams, loss
from iclora.models.passes import Pass
from iclora.models.products import counted
from iclora.models.quantize import Frozen
from iclora.models.streaming import block_bytes, slot_bytes
from iclora.settings import TrainSettings
from iclora.train.ledger import Ledger
from iclora.train.whole import free

__all__ = ["Costs", "Kernels", "Share"]

Kernels = Literal["cuda", "cpu"]
"""Whose attention and norms are counted."""


_FLASH = {
    "cuda": torch.ops.aten._scaled_dot_product_flash_attention,
    "cpu": torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
}


class _Kernels(TorchFunctionMode):
    """Functions as a device's kernels compute them; the meta device has its own ways."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            # diffusers names what others give in order.
            named = (kwargs[key] for key in ("query", "key", "value") if key in kwargs)
            q, k, v = (*args, *named)[:3]
            return _flash(q, k, v, self.kernels)
        if func is nn.functional.rms_norm and self.kernels == "cuda":
            return _RmsNorm.apply(args[0])  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


@contextmanager
def _as(kernels: Kernels) -> Iterator[None]:
    with counted(kernels == "cpu"), _Kernels(kernels):
        yield


class _RmsNorm(torch.autograd.Function):
    """CUDA's fused RMS norm: it keeps its input and a number a row.

    Elsewhere, on the meta device too, torch puts it together from parts and keeps float32 copies
    (`_fused_rms_norm` in its native_functions.yaml).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


def _flash(q: Tensor, k: Tensor, v: Tensor, kernels: Kernels) -> Tensor:
    """Attention that keeps q, k, v, its output and a number a row, as all fused kernels do."""
    out: Tensor = _FLASH[kernels](q, k, v)[0]
    return out


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _flash(q, k, v, "cuda").transpose(1, 2).flatten(2)


# -- one block ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """The share of one block, or of the end of a pass, in what a pass takes."""

    kept: int
    """Bytes more that live after it than before it, in the forward pass."""
    forward: int
    """Bytes at the forward peak, above what lives before it."""
    backward: int
    """Bytes at the backward peak, above what lives after it in the forward pass; often below 0,
    since the tensors that later blocks kept are gone by then."""
    flops: int
    """Of both passes."""


class _Around(NamedTuple):
    """What a pass takes before its blocks, beside them and behind them."""

    begun: int
    """Bytes at the peak before the first block."""
    beside: int
    """Bytes that live as long as the graph: what all blocks share."""
    inputs: int
    """Bytes that live as long as the forward pass."""
    end: Share
    """The share of the last layer and the loss."""


class _Source(torch.autograd.Function):
    """Tensors made by the block before: their gradients go on and are not kept."""

    @staticmethod
    def forward(_: Any, *streams: Tensor) -> Streams:
        return tuple(torch.empty_like(x) for x in streams)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Any:
        return (None,) * len(grads)


class _Sink(torch.autograd.Function):
    """The rest of a pass: it keeps nothing of what it is given, and hands back gradients."""

    @staticmethod
    def forward(ctx: Any, *streams: Tensor) -> Tensor:
        ctx.like = [(x.shape, x.dtype) for x in streams]
        return streams[0].new_empty(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return tuple(torch.empty(shape, dtype=dtype, device=META) for shape, dtype in ctx.like)


def _count(
    run: Callable[[Streams], Streams], shapes: Streams, kernels: Kernels, last: bool = False
) -> Share:
    """Run a part of a pass forward and backward, on tensors of these shapes.

    Args:
        last: of its streams nothing but the first, the image, is read afterwards.
    """
    with Ledger() as ledger, _as(kernels):
        leaves = [torch.empty_like(x).requires_grad_() for x in shapes]
        inside = _Source.apply(*leaves)  # type: ignore[no-untyped-call]
        before = ledger.mark()
        outside = run(inside)
        forward = ledger.peak - before
        if last:
            outside = outside[:1]
        del inside
        kept = ledger.live - before
        end = _Sink.apply(*outside)  # type: ignore[no-untyped-call]
        del outside
        ledger.mark()
        end.backward()
        return Share(kept, forward, ledger.peak - before - kept, ledger.flops)


# -- a run --------------------------------------------------------------------------------------


class Costs:
    """Count what training a LoRA on a base takes.

    Args:
        outline: the base, in the precision of the run; a LoRA is put on it.
        settings: of a run; the LoRA's and `preview_every` matter here.
        kernels: of the device the run will take place on.
    """

    def __init__(self, outline: Outline, settings: TrainSettings, kernels: Kernels) -> None:
        self.outline, self.settings, self.kernels = outline, settings, kernels
        self._attend: Attend = outline.on_cpu if kernels == "cpu" else _fused
        self._shares: dict[tuple[Batch, int, bool, bool], Share] = {}
        self._arounds: dict[Batch, _Around] = {}
        self._begun: dict[Batch, tuple[Streams, Pass]] = {}
        lora = (
            free(outline.model)
            if settings.targets == "full"
            else attach(
                outline.model,
                rank=settings.rank,
                alpha=settings.alpha,
                targets=settings.targets,
                seed=0,
            )
        )
        for parameter in lora.values():
            # From a step's second pass on, gradients are there and are added to.
            parameter.grad = torch.zeros_like(parameter)
        self._lora = list(lora.values())

    # -- what is there all the time -------------------------------------------------------------

    @cached_property
    def lora(self) -> int:
        """Parameters that are trained: the LoRA's, or all of the denoiser."""
        times = {id(p): i.count for i in self.outline.pieces for p in i.module.parameters()}
        return sum(times.get(id(p), 1) * p.numel() for p in self._lora)

    @cached_property
    def weights(self) -> int:
        """Bytes of the frozen denoiser on the device."""
        blocks = {p.module: p.count for p in self.outline.pieces}
        inside = {id(t) for module in blocks for t in _tensors(module)}
        rest = sum(
            int(t.nbytes)
            for t in _tensors(self.outline.model.denoiser)
            if id(t) not in inside and not t.requires_grad
        )
        if self.settings.offload == "blocks":
            sizes = [block_bytes(m) for m, count in blocks.items() for _ in range(count)]
            return rest + sum(slot_bytes(sizes))
        return rest + sum(
            count * sum(int(t.nbytes) for t in _tensors(module) if not t.requires_grad)
            for module, count in blocks.items()
        )

    @cached_property
    def held(self) -> int:
        """Bytes that live all through training: the base; LoRA in float32, with its gradient, two
        moments of AdamW and the average; the decoder of previews."""
        decoder = _bytes(self.outline.vae) if self.settings.preview_every else 0
        return self.weights + 5 * 4 * self.lora + decoder

    # -- a step ---------------------------------------------------------------------------------

    def step(self, batch: Batch, recompute: int) -> int:
        """Bytes at the peak of a forward and backward pass."""
        begun, live, inputs, end = self._around(batch)
        peak, behind = begun, []
        for kind in self._order(recompute):
            share = self._share(batch, *kind)
            peak = max(peak, live + inputs + share.forward)
            live += share.kept
            behind.append((live, share))
        peak = max(peak, live + inputs + end.forward, live + end.kept + end.backward)
        return self.held + max(peak, *(live + share.backward for live, share in behind))

    def flops(self, batch: Batch, recompute: int) -> int:
        """Of a forward and backward pass, those of recomputed blocks counted again."""
        blocks = sum(self._share(batch, *block).flops for block in self._order(recompute))
        return blocks + self._around(batch).end.flops

    def _order(self, recompute: int) -> Iterator[tuple[int, bool, bool]]:
        """The kind of every block, whether it is recomputed, and whether it is the last."""
        kinds = [n for n, piece in enumerate(self.outline.pieces) for _ in range(piece.count)]
        end = len(kinds) - 1
        return ((kind, number < recompute, number == end) for number, kind in enumerate(kinds))

    def _share(self, batch: Batch, number: int, again: bool, last: bool = False) -> Share:
        key = (batch, number, again, last)
        if key not in self._shares:
            streams, shared = self._begin(batch)
            piece = self.outline.pieces[number]

            def block(*given: Any) -> Any:
                # Here as well as around all: a block that is computed again is so inside of a
                # call of backward, and a mode is off inside of what passes through it.
                with _as(self.kernels):
                    return piece.block(*given)

            run = replace(piece, block=block).run if again else piece.run
            self._shares[key] = _count(lambda x: run(x, shared, again), streams, self.kernels, last)
        return self._shares[key]

    def _begin(self, batch: Batch) -> tuple[Streams, Pass]:
        if batch not in self._begun:
            # All blocks share it: the first backward pass would free its graph, if it had one.
            with torch.no_grad():
                self._begun[batch] = self.outline.begin(self.outline.inputs(batch, self._attend))
        return self._begun[batch]

    def _around(self, batch: Batch) -> _Around:
        if batch not in self._arounds:
            # Tables that a network makes once and keeps are there from here on.
            self._begin(batch)
            with Ledger() as ledger, _as(self.kernels), torch.no_grad():
                inputs = self.outline.inputs(batch, self._attend)
                # A step's latents, its noise, and both mixed, in float32.
                z = inputs[0].z
                step = [torch.empty_like(z).float() for _ in range(2 + (z.dtype != torch.float32))]
                streams, shared = self.outline.begin(inputs)
                begun, flops, live = ledger.peak, ledger.flops, ledger.live
                del step, inputs, z
                left = ledger.live
            found = _count(lambda x: (loss(self.outline, x, shared),), streams, self.kernels)
            end = replace(found, flops=found.flops + flops)
            self._arounds[batch] = _Around(begun, left, live - left, end)
        return self._arounds[batch]

    def optimizer(self) -> int:
        """Bytes at the peak of clipping and AdamW."""
        own = sum(int(parameter.nbytes) for parameter in self._lora)
        many = self.kernels == "cuda"
        adamw = torch.optim.AdamW(self._lora, foreach=many, fused=False)
        kept = [p.grad for p in self._lora]
        ledger = Ledger()
        with ledger:
            adamw.step()
            # The first step makes the moments; what the next one takes beside them counts.
            before = ledger.mark()
            nn.utils.clip_grad_norm_(self._lora, 1.0)
            adamw.step()
        for parameter, grad in zip(self._lora, kept, strict=True):
            parameter.grad = grad
        return self.held + (ledger.peak - before) * 4 * self.lora // own

    # -- before and beside ----------------------------------------------------------------------

    def text(self) -> int:
        """Bytes at the peak of encoding captions; 0 if a CPU does."""
        if self.settings.offload != "none":
            return 0
        encoders = sum(map(_bytes, self.outline.text_encoders))
        return encoders + self._without_gradient(self.outline.read_text)

    def images(self, width: int, height: int) -> int:
        """Bytes at the peak of encoding a picture."""
        run = self.outline.encode_pixels
        return _bytes(self.outline.vae) + self._without_gradient(lambda: run(width, height))

    def loading(self) -> int:
        """Bytes at the peak of bringing the denoiser to the device, layer by layer."""
        if self.outline.model.precision == "full" or self.settings.offload == "blocks":
            whole = self.settings.targets == "full"
            return self.weights + 4 * self.lora * whole
        widest = max(self.outline.linears(), key=lambda m: m.weight.numel())
        kind = self.outline.model.precision
        return self.weights + self._without_gradient(lambda: Frozen(widest, kind, META))

    def preview(self, width: int, height: int, texts: int = 1) -> int:
        """Bytes at the peak of sampling and decoding a picture, the averaged weights on loan."""
        most = max(self.sampling(width, height, texts), self.decoding(width, height))
        return self.held + 4 * self.lora + most

    def sampling(self, width: int, height: int, texts: int = 1) -> int:
        """Bytes at the peak of sampling, the weights apart: a pass, and the modulation of all
        steps, which is kept from the first one on."""
        batch = Batch(1, width, height, texts=texts, steps=self.outline.model.sampling.steps)
        others = 0

        def sample() -> None:
            nonlocal others
            inputs = self.outline.inputs(batch, self._attend)
            streams, shared = self.outline.begin(inputs)
            kept = [_kept(shared)]
            for piece in self.outline.pieces:
                streams = piece.run(streams, shared, False)
                kept.append(_kept(shared))
                others += (piece.count - 1) * (kept[-1] - kept[-2])
            self.outline.end(streams, shared)
            # There from the second pass on, and not yet at the peak of this one.
            others += _kept(shared) - kept[-1]

        return self._without_gradient(sample) + others

    def decoding(self, width: int, height: int) -> int:
        """Bytes at the peak of decoding a picture, the decoder's weights apart."""
        return self._without_gradient(lambda: self.outline.decode_pixels(width, height))

    def _without_gradient(self, run: Callable[[], object]) -> int:
        ledger = Ledger()
        with torch.no_grad(), ledger, _as(self.kernels):
            run()
        return ledger.peak


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _kept(shared: Pass) -> int:
    return shared.levels.step.schedule.nbytes if shared.levels.step else 0


def _bytes(module: nn.Module) -> int:
    return sum(int(tensor.nbytes) for tensor in _tensors(module))
