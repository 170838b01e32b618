"""Parts of every family's forward pass: segments, modulation, blocks, compiling.

Tokens of one canvas may have different noise levels. They come in segments, one level each, and
modulation is computed per segment (Peebles and Xie 2022, AdaLN; per-token levels as in Cut2Next).
Order does not matter to a transformer whose tokens carry position ids. Two rules hold for every
family and are written here alone:

- *Given tokens stand last* (`segments`): attention is split, and a pass cut short, at one number.
- *The text takes the first level* (`with_text`): that of the noisy tokens, or of all of them.

Shapes: B samples, n image tokens, t text tokens, h width, G segments.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from iclora.files import cache_home
from iclora.models.attention import Attend
from iclora.models.base import Given, Panels
from iclora.models.levels import Levels, Step, once
from iclora.models.rotary import Rotary
from iclora.models.streaming import arrive

__all__ = [
    "COMPILED_SHAPES",
    "Block",
    "Levels",
    "Modulation",
    "Pass",
    "Placed",
    "Shapes",
    "Streams",
    "as_block",
    "by_segment",
    "compiled",
    "gated",
    "in_order",
    "in_place",
    "joined",
    "modulate",
    "modulations",
    "placed",
    "prepare_compiler",
    "run_block",
    "segments",
    "with_text",
]

Streams = tuple[Tensor, ...]
"""The tensors that one block hands to the next, such as image and text tokens."""

# -- segments -----------------------------------------------------------------------------------


def segments(
    sigma: Tensor,
    given: Given | None,
    count: int,
    panels: Panels | None = None,
    step: Step | None = None,
) -> tuple[Levels, Tensor | None]:
    """The levels of all tokens, and the order that brings clean given tokens last.

    With `panels`, tokens of a panel stand together, among the noisy and among the given ones.

    Args:
        sigma: (B,), of the noisy tokens.
        count: tokens of the canvas.
        step: where a sampling stands; with gradients nothing is kept.
    Returns: the levels, and an order: (n,), (B, n) if samples differ in which tokens are given,
        or None if the tokens stay as they are.
    """
    step = None if torch.is_grad_enabled() else step
    if given is None or not given.clean or not given.count:
        own = panels.order if panels else None
        levels = Levels(sigma[:, None], (count,), step)
        if own is None:
            return levels, None
        # The host waits for what it moves to a device.
        return levels, once(step, ("order", id(panels)), lambda: own.to(sigma.device))
    order = once(step, ("order", id(panels)), lambda: _last(given, panels).to(sigma.device))
    both = torch.stack([sigma, torch.zeros_like(sigma)], 1)
    return Levels(both, (count - given.count, given.count), step), order


def _last(given: Given, panels: Panels | None) -> Tensor:
    """The order that brings given tokens last, and those of a panel together."""
    key = given.tokens.to(torch.uint8)
    if panels is not None:
        key = len(panels.lengths) * key.long() + panels.owner.to(key.device)
    return torch.argsort(key, dim=-1, stable=True)


def in_order(x: Tensor, order: Tensor) -> Tensor:
    """The tokens of x (B, n, c) in an order (n,) or (B, n)."""
    return x.gather(1, _wide(order, x))


def in_place(x: Tensor, order: Tensor) -> Tensor:
    """The tokens of x (B, m, c), the first m of an order, where they came from; else 0."""
    out = x.new_zeros(len(x), order.shape[-1], x.shape[-1])
    return out.scatter(1, _wide(order[..., : x.shape[1]], x), x)


def _wide(order: Tensor, x: Tensor) -> Tensor:
    """An order (n,) or (B, n) as an index into x's second dimension, (B, n, c)."""
    return order[..., None].expand(len(x), -1, x.shape[-1])


class Placed(NamedTuple):
    """The tokens that a pass computes, in the order of their segments; see `placed`."""

    z: Tensor
    """(B, m, c)"""
    position_ids: Tensor
    """(m, axes), or (B, m, axes) if samples differ in which tokens are given."""
    levels: Levels
    order: Tensor | None
    """What `in_place` needs to bring the result back; None if nothing was moved."""

    def back(self, out: Tensor) -> Tensor:
        """The result (B, m, c) where its tokens came from, (B, n, c); 0 at tokens left out."""
        return out if self.order is None else in_place(out, self.order)


def placed(
    z: Tensor,
    position_ids: Tensor,
    sigma: Tensor,
    given: Given | None,
    panels: Panels | None,
    step: Step | None = None,
) -> Placed:
    """Put tokens in the order of their segments, without those that `given` has computed before.

    Args:
        z: (B, n, c), row by row.
        position_ids: (n, axes); those of references are the family's own.
        sigma: (B,), of the noisy tokens, on the device.
        step: as `segments` takes it.
    """
    levels, order = segments(sigma, given, z.shape[1], panels, step)
    if given and given.references is not None:
        assert panels is None, "references are read with one text for all panels"
        places, device = given.references, z.device
        order = once(step, "references", lambda: torch.argsort(places, stable=True).to(device))
    if order is not None:
        z, position_ids = in_order(z, order), position_ids[order]
    if given and given.cache:
        # The rest reads their keys and values.
        levels = levels.first()
        z, position_ids = z[:, : levels.tokens[0]], position_ids[..., : levels.tokens[0], :]
    return Placed(z, position_ids, levels, order)


def with_text(tokens: tuple[int, ...], text_tokens: int) -> tuple[int, ...]:
    """The segments of text and image joined, the text before the image."""
    return (text_tokens + tokens[0], *tokens[1:])


# -- what blocks are made of --------------------------------------------------------------------


def by_segment(
    run: Callable[..., Tensor], tokens: tuple[int, ...], vectors: Sequence[Tensor], *streams: Tensor
) -> Tensor:
    """Call `run` on each segment of the streams with its own of the vectors.

    Args:
        vectors: (B, G, h), of which it gets (B, 1, h).
    """
    if len(tokens) == 1:
        return run(*(v[:, :1] for v in vectors), *streams)
    parts = zip(*(torch.split(stream, list(tokens), 1) for stream in streams), strict=True)
    return torch.cat(
        [run(*(v[:, i : i + 1] for v in vectors), *part) for i, part in enumerate(parts)], 1
    )


def modulate(x: Tensor, shift: Tensor, scale: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Layer norm without weights, scaled and shifted as each segment's level says."""

    alone = len(x) == 1 and x.dtype == scale.dtype and not torch.is_grad_enabled()

    def run(shift: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        if alone:
            # As the norm's own weights: no pass over x for each. A batch would need one of each.
            return F.layer_norm(x, x.shape[-1:], (1 + scale).flatten(), shift.flatten(), 1e-6)
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)

    return by_segment(run, tokens, (shift, scale), x)


def gated(x: Tensor, gate: Tensor, y: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """x + gate * y, by each segment's gate."""
    return by_segment(lambda gate, x, y: torch.addcmul(x, gate, y), tokens, (gate,), x, y)


def joined(txt: Tensor, img: Tensor) -> Tensor:
    """Text before image, (B, t + n, h); a block's output whose halves they are is not copied."""
    whole = img._base
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or whole is None:
        return torch.cat([txt, img], 1)
    t, shape = txt.shape[1], (len(img), txt.shape[1] + img.shape[1], img.shape[2])
    halves = whole.shape == shape and txt._base is whole
    halves = halves and txt.storage_offset() == whole.storage_offset()
    halves = halves and img.storage_offset() == whole.storage_offset() + t * whole.stride(1)
    return whole if halves else torch.cat([txt, img], 1)


class Modulation(NamedTuple):
    """The effect of each segment's level on a layer, each (B, G, h)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def modulations(out: Tensor, width: int) -> tuple[Modulation, ...]:
    """A modulation for every three of the `width` wide parts of out, (B, G, 3 k width)."""
    parts = out.chunk(out.shape[-1] // width, -1)
    return tuple(Modulation(*parts[i : i + 3]) for i in range(0, len(parts), 3))


# -- blocks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """Everything that all blocks of one pass share."""

    temb: Tensor
    """(B or 1, G, h), from which modulation is made."""
    rotary: Rotary
    levels: Levels
    """Those of the image tokens, in segments."""
    attend: Attend
    compiled: bool = False
    """True if blocks are compiled for this pass's shapes."""
    modulation: tuple[Tensor, ...] = ()
    """Modulations that all blocks of a kind share, (B or 1, G, 3 k h) each; none in a family whose
    blocks make their own."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Image tokens of each segment, in order."""
        return self.levels.tokens

    def made(
        self, layer: Any, make: Callable[[Any, Tensor], Tensor], first: bool = False
    ) -> Tensor:
        """What `make` makes of a layer and `temb`; see `Levels.made`."""
        return self.levels.made(layer, make, self.temb, first)


Block = Callable[..., Streams]
"""(*streams, pass) to streams."""


def as_block(
    run: Callable[..., Streams],
    module: nn.Module,
    modulating: Callable[[Any], Sequence[nn.Module]] = lambda _: (),
) -> Block:
    """A module's block: `run` on it, whose weights arrive first if they lie elsewhere.

    One whose weights are spread gathers them when called.

    Args:
        modulating: the layers of a block that modulate, whose weights need not arrive if they were
            computed for all steps.
    """
    if isinstance(module, FSDPModule):
        return cast(Block, module)

    def block(*given: Any) -> Streams:
        shared: Pass = given[-1]
        arrive(module, whole=not shared.levels.known(modulating(module)))
        return run(module, *given)

    return block


def run_block(block: Block, streams: Streams, shared: Pass, recomputed: bool) -> Streams:
    """The streams behind a block, which keeps its input alone if it is recomputed."""
    if recomputed and torch.is_grad_enabled():
        out: Streams = checkpoint(
            block, *streams, shared, use_reentrant=False, preserve_rng_state=False
        )
        return out
    return block(*streams, shared)


# -- compiling ----------------------------------------------------------------------------------

COMPILED_SHAPES = 24
"""Shapes that one model's blocks are compiled for, each once; others run as they are."""


class Shapes:
    """The shapes that one model's blocks are compiled for; several threads may ask."""

    def __init__(self) -> None:
        self._taken: set[tuple[Any, ...]] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, *shape: Any) -> bool:
        """True if this shape has been taken, or there is room for one more."""
        with self._lock:
            if shape not in self._taken and len(self._taken) >= COMPILED_SHAPES:
                return False
            self._taken.add(shape)
            return True


@cache
def prepare_compiler() -> None:
    """Set, once, where compiled code is kept and how many shapes torch compiles for."""
    # Private to torch, so looked for only by those who compile.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch's own place is /tmp, which does not outlive a restart of the machine. It stands in the
    # environment as soon as diffusers is imported, as if a user had chosen it.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_home() / "inductor")
    # `Shapes` is the bound for each model; torch's own counts those of all models together, and
    # blocks that differ in what is adapted apart.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 64 * COMPILED_SHAPES)
    limits.accumulated_recompile_limit = max(
        limits.accumulated_recompile_limit, 256 * COMPILED_SHAPES
    )


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a block compiled for static shapes, kept on disk between runs.

    A block is two parts around attention, which is a kernel of its own anyway: what `attention_to`
    wraps around it is new at every call, and a compiler would take that for new code.
    """
    prepare_compiler()
    return torch.compile(function, dynamic=False, fullgraph=True)
