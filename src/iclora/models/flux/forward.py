"""FLUX.1's forward pass, our own, over the modules and weights of diffusers and PEFT.

What it does that theirs do not:

- tokens of one canvas may have different noise levels: they come in segments, one level each, and
  modulation is computed per segment (Peebles and Xie 2022, AdaLN; per-token levels as in Cut2Next);
- layers that read the same input (q, k, v and the single block's MLP) share one product with all
  their LoRA As, no input is copied to float32, the GELU is computed again instead of kept, and no
  concatenation of attention and MLP is made;
- as many blocks are recomputed in the backward pass as memory asks for, not all or none.

Tests hold it equal to diffusers' forward and to PEFT's gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from iclora.files import cache_home
from iclora.models.attention import Attend, pick_attention
from iclora.models.quantize import KINDS, Matrix, Parts, matrix

__all__ = [
    "COMPILED_SHAPES",
    "Block",
    "Levels",
    "blocks_of",
    "embed",
    "flux_forward",
    "read_out",
    "run_block",
    "shard_blocks",
]

Block = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Levels:
    """Which tokens are at which noise level.

    Attributes:
        sigma: (B, G), the levels of G segments; the text is told the first.
        tokens: how many tokens each segment has, in order.
    """

    sigma: Tensor
    tokens: tuple[int, ...]


def flux_forward(
    net: Any,
    z: Tensor,
    prompt: Tensor,
    pooled: Tensor,
    levels: Levels,
    guidance: Tensor | None,
    places: Tensor,
    *,
    recompute: int = 0,
    attend: Attend | None = None,
    compiled: bool = False,
) -> Tensor:
    """The velocity that a FluxTransformer2DModel gives.

    Args:
        net: the transformer, with LoRA layers or without.
        z: latent tokens (B, n, c) in the weights' type, ordered by segment.
        prompt: T5's embedding (B, t, d). pooled: CLIP's (B, p).
        levels: of the n tokens.
        guidance: (B,), None for a base without guidance embedding.
        places: (n, 3), the position of every token, in the order of `z`; or (B, n, 3).
        recompute: how many of the blocks keep their input alone for the backward pass.
        attend: by default the best one for the device.
        compiled: whether blocks are compiled where gradients are wanted. Sampling never is: a
            canvas is sampled too seldom to be worth it.
    Returns: (B, n, c) in the weights' type.
    """
    attend = attend or pick_attention(z.device)
    x, c, temb, turn = embed(net, z, prompt, pooled, levels, guidance, places)
    shape = (x.shape, c.shape, x.dtype, x.device, levels.tokens)
    compiled = compiled and torch.is_grad_enabled() and _worth_compiling(shape)
    for number, block in enumerate(blocks_of(net)):
        given = (x, c, temb, turn, levels.tokens, attend, compiled)
        x, c = run_block(block, given, number < recompute)
    return read_out(net, x, temb, levels.tokens)


# The parts of a pass, each to be run and counted by itself (`iclora.models.outline`).


def embed(
    net: Any,
    z: Tensor,
    prompt: Tensor,
    pooled: Tensor,
    levels: Levels,
    guidance: Tensor | None,
    places: Tensor,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """What blocks begin with: image and text tokens, what modulation is made from, rotations."""
    x = net.x_embedder(z)
    c = net.context_embedder(prompt)
    temb = _embed_levels(net.time_text_embed, levels.sigma, guidance, pooled, x.dtype)
    return x, c, temb, _turn(net.pos_embed, c.shape[1], places)


def blocks_of(net: Any) -> list[Block]:
    """The blocks in order, as functions of (x, c, temb, turn, tokens, attend, compiled)."""

    def function_of(run: Block, block: Any) -> Block:
        # One whose weights are spread gathers them when it is called, and then does as `run`.
        return cast(Block, block) if isinstance(block, FSDPModule) else partial(run, block)

    double = [function_of(_double, block) for block in net.transformer_blocks]
    return [*double, *(function_of(_single, block) for block in net.single_transformer_blocks)]


def run_block(block: Block, given: tuple[Any, ...], recomputed: bool) -> tuple[Tensor, Tensor]:
    """Image and text tokens behind a block, which keeps its input alone if it is recomputed."""
    if recomputed and torch.is_grad_enabled():
        found: tuple[Tensor, Tensor] = checkpoint(
            block, *given, use_reentrant=False, preserve_rng_state=False
        )
        return found
    return block(*given)


def read_out(net: Any, x: Tensor, temb: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """The velocity from what the last block made of the image's tokens."""
    scale, shift = _linear(net.norm_out.linear, F.silu(temb)).to(x.dtype).chunk(2, -1)
    out: Tensor = net.proj_out(_modulate(x, shift, scale, tokens))
    return out


def shard_blocks(net: Any, mesh: Any) -> None:
    """Spread every block's weights over a device mesh (FSDP2); the rest of the net stays whole.

    A block's weights are gathered for its forward pass and again for its backward pass, and freed
    behind each. Only what a block has now is spread: a LoRA that is added later is whole on every
    device. From here on every process of the mesh must run every pass. Blocks are brought to the
    mesh's device one by one.
    """
    blocks = [(_double, block) for block in net.transformer_blocks]
    blocks += [(_single, block) for block in net.single_transformer_blocks]
    for run, block in blocks:
        # FSDP gathers around a module's call, so that call must be our block, not diffusers'.
        block.forward = partial(run, block)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def _turn(embed: Any, words: int, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which q and k are turned, each (1 or B, words + n, 1, d / 2)."""
    places = places if places.ndim == 3 else places[None]
    ids = torch.cat([places.new_zeros(len(places), words, places.shape[-1]), places], 1)
    # diffusers repeats every angle for both numbers of a pair; here they turn as one.
    cos, sin = (t.view(*ids.shape[:2], 1, -1)[..., ::2] for t in embed(ids.flatten(0, 1)))
    return cos, sin


def _embed_levels(
    embed: Any, sigma: Tensor, guidance: Tensor | None, pooled: Tensor, dtype: torch.dtype
) -> Tensor:
    """(B, G, h): what modulation is made from, for every segment of every sample."""
    count = sigma.shape[1]
    # Rounded before it is multiplied, as diffusers does, and the base was trained.
    times = sigma.to(dtype).flatten() * 1000
    words = pooled.repeat_interleave(count, 0)
    if guidance is None:
        temb = embed(times, words)
    else:
        temb = embed(times, guidance.to(dtype).repeat_interleave(count) * 1000, words)
    return temb.view(-1, count, temb.shape[-1])  # type: ignore[no-any-return]


# -- blocks -------------------------------------------------------------------------------------


# Each is two functions with attention between them: attention is a kernel of its own anyway, and
# what `given` wraps around it is new at every call, which a compiler would take for new code.


def _double(
    block: Any,
    x: Tensor,
    c: Tensor,
    temb: Tensor,
    turn: tuple[Tensor, Tensor],
    tokens: tuple[int, ...],
    attend: Attend,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    """Image and text each with weights of their own, attending to both."""
    before, after = _parts_of(_double_before, _double_after, compiled)
    qkv, mine, theirs = before(block, x, c, temb, turn, tokens)
    return after(block, x, c, mine, theirs, attend(*qkv), tokens)  # type: ignore[no-any-return]


def _double_before(
    block: Any,
    x: Tensor,
    c: Tensor,
    temb: Tensor,
    turn: tuple[Tensor, Tensor],
    tokens: tuple[int, ...],
) -> tuple[list[Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
    attn, words = block.attn, (c.shape[1],)
    mine = _linear(block.norm1.linear, F.silu(temb)).chunk(6, -1)
    theirs = _linear(block.norm1_context.linear, F.silu(temb[:, :1])).chunk(6, -1)
    qkv_x = _linears((attn.to_q, attn.to_k, attn.to_v), _modulate(x, mine[0], mine[1], tokens))
    qkv_c = _linears(
        (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
        _modulate(c, theirs[0], theirs[1], words),
    )
    d, at = attn.head_dim, words[0]
    cos, sin = turn
    image = _heads(qkv_x, (attn.norm_q, attn.norm_k), (cos[:, at:], sin[:, at:]), d)
    text = _heads(qkv_c, (attn.norm_added_q, attn.norm_added_k), (cos[:, :at], sin[:, :at]), d)
    # Joined before they are turned to (B, heads, S, d): attention writes its output in the order of
    # q's memory, and so needs no copy to be read token by token, which to_out would keep.
    qkv = [torch.cat(pair, 1).transpose(1, 2) for pair in zip(text, image, strict=True)]
    return qkv, mine, theirs


def _double_after(
    block: Any,
    x: Tensor,
    c: Tensor,
    mine: tuple[Tensor, ...],
    theirs: tuple[Tensor, ...],
    seen: Tensor,
    tokens: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    attn, at, words = block.attn, c.shape[1], (c.shape[1],)
    seen_c, seen_x = torch.split(seen, [at, x.shape[1]], 1)
    x = _gated(x, mine[2], _linear(attn.to_out[0], seen_x), tokens)
    c = _gated(c, theirs[2], _linear(attn.to_add_out, seen_c), words)
    x = _gated(x, mine[5], _feed(block.ff, _modulate(x, mine[3], mine[4], tokens)), tokens)
    c = _gated(
        c, theirs[5], _feed(block.ff_context, _modulate(c, theirs[3], theirs[4], words)), words
    )
    return x, c


def _single(
    block: Any,
    x: Tensor,
    c: Tensor,
    temb: Tensor,
    turn: tuple[Tensor, Tensor],
    tokens: tuple[int, ...],
    attend: Attend,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    """Image and text with the same weights; attention and MLP side by side."""
    before, after = _parts_of(_single_before, _single_after, compiled)
    at = c.shape[1]
    # The text is told the first level: it joins the first segment.
    tokens = (at + tokens[0], *tokens[1:])
    qkv, joined, gate, inner = before(block, x, c, temb, turn, tokens)
    return after(block, joined, gate, inner, attend(*qkv), at, tokens)  # type: ignore[no-any-return]


def _single_before(
    block: Any,
    x: Tensor,
    c: Tensor,
    temb: Tensor,
    turn: tuple[Tensor, Tensor],
    tokens: tuple[int, ...],
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    attn, joined = block.attn, torch.cat([c, x], 1)
    shift, scale, gate = _linear(block.norm.linear, F.silu(temb)).chunk(3, -1)
    q, k, v, inner = _linears(
        (attn.to_q, attn.to_k, attn.to_v, block.proj_mlp), _modulate(joined, shift, scale, tokens)
    )
    qkv = _heads((q, k, v), (attn.norm_q, attn.norm_k), turn, attn.head_dim)
    return [t.transpose(1, 2) for t in qkv], joined, gate, inner


def _single_after(
    block: Any,
    joined: Tensor,
    gate: Tensor,
    inner: Tensor,
    seen: Tensor,
    at: int,
    tokens: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    joined = _gated(joined, gate, _linear_of_two(block.proj_out, seen, inner), tokens)
    c, x = torch.split(joined, [at, joined.shape[1] - at], 1)
    return x, c


# -- compiling ----------------------------------------------------------------------------------

COMPILED_SHAPES = 24
"""Shapes that blocks are compiled for; each costs a compilation, others run as they are."""

_seen: set[tuple[Any, ...]] = set()


def _worth_compiling(key: tuple[Any, ...]) -> bool:
    """Whether a shape has been compiled, or there is room for one more."""
    if key not in _seen and len(_seen) >= COMPILED_SHAPES:
        return False
    _seen.add(key)
    return True


def _parts_of(before: Any, after: Any, compiled: bool) -> tuple[Any, Any]:
    return (_compile(before), _compile(after)) if compiled else (before, after)


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """A block's half for static shapes, kept on disk between runs."""
    # Private to torch, so looked for only by those who compile.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch's own place is /tmp, which does not outlive a restart of the machine. It stands in the
    # environment as soon as diffusers is imported, as if a user had chosen it.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_home() / "inductor")
    # Blocks that differ in what is adapted are compiled apart, hence more than one a shape.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * COMPILED_SHAPES)
    limits.accumulated_recompile_limit = max(
        limits.accumulated_recompile_limit, 16 * COMPILED_SHAPES
    )
    return torch.compile(function, dynamic=False, fullgraph=True)


def _feed(ff: Any, x: Tensor) -> Tensor:
    return _after_gelu(ff.net[2], _linear(ff.net[0].proj, x))


def _by_segment(
    run: Callable[..., Tensor], tokens: tuple[int, ...], vectors: Sequence[Tensor], *streams: Tensor
) -> Tensor:
    """`run` on each segment with its own vectors, (B, G, h) of which it gets (B, 1, h)."""
    if len(tokens) == 1:
        return run(*(v[:, :1] for v in vectors), *streams)
    parts = zip(*(torch.split(stream, list(tokens), 1) for stream in streams), strict=True)
    return torch.cat(
        [run(*(v[:, i : i + 1] for v in vectors), *part) for i, part in enumerate(parts)], 1
    )


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Layer norm, scaled and shifted as each segment's level says."""

    def run(shift: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)

    return _by_segment(run, tokens, (shift, scale), x)


def _gated(x: Tensor, gate: Tensor, y: Tensor, tokens: tuple[int, ...]) -> Tensor:
    return _by_segment(lambda gate, x, y: torch.addcmul(x, gate, y), tokens, (gate,), x, y)


def _heads(
    qkv: Sequence[Tensor], norms: tuple[Any, Any], turn: tuple[Tensor, Tensor], d: int
) -> list[Tensor]:
    """q and k normed and turned by their places, and v, each (B, S, heads, d)."""
    q, k, v = (t.view(*t.shape[:-1], -1, d) for t in qkv)
    q, k = (
        _rotate(F.rms_norm(t, (d,), norm.weight, norm.eps), *turn)
        for t, norm in zip((q, k), norms, strict=True)
    )
    return [q, k, v]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x.dtype)


# -- linear layers with LoRA --------------------------------------------------------------------


@dataclass(frozen=True)
class _Lora:
    """The one active adapter of a layer."""

    down: Tensor
    up: Tensor
    scale: float


def _parts(layer: Any) -> tuple[nn.Module, _Lora | None]:
    """A layer's frozen base and its adapter; of PEFT's wrapper, or the layer itself."""
    base = getattr(layer, "base_layer", None)
    if base is None:
        return layer, None
    if layer.disable_adapters or layer.merged:
        return base, None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active:
        return base, None
    (name,) = active
    return base, _Lora(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def _linear(layer: Any, x: Tensor) -> Tensor:
    return _linears((layer,), x)[0]


def _linears(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    """Several layers of one input, (B, S, in) each to (B, S, out)."""
    bases, loras = zip(*map(_parts, layers), strict=True)
    if all(loras):
        found = [m for m in map(matrix, bases) if m]
        if len(found) == len(bases) and len({m.kind for m in found}) == 1:
            return _adapted(x, False, found, loras)
    return tuple(_plain(base, lora, x) for base, lora in zip(bases, loras, strict=True))


def _adapted(
    x: Tensor, gelu: bool, bases: Sequence[Matrix], loras: Sequence[_Lora]
) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _Adapted.apply(  # type: ignore[no-untyped-call]
        x,
        gelu,
        bases[0].kind,
        tuple(lora.scale for lora in loras),
        *(half for lora in loras for half in (lora.down, lora.up)),
        *(base.bias for base in bases),
        *(part for base in bases for part in base.parts),
    )
    return found


def _plain(base: nn.Module, lora: _Lora | None, x: Tensor) -> Tensor:
    """Any kind of base, other libraries' as well."""
    y: Tensor = base(x)
    if lora:
        inner = F.linear(x, lora.down.to(x.dtype))
        y = y + F.linear(inner, lora.up.to(x.dtype)) * lora.scale
    return y


def _after_gelu(layer: Any, x: Tensor) -> Tensor:
    """The layer of gelu(x), which is computed again in the backward pass instead of kept."""
    base, lora = _parts(layer)
    found = matrix(base)
    if lora and found:
        return _adapted(x, True, [found], [lora])[0]
    return _plain(base, lora, F.gelu(x, approximate="tanh"))


def _linear_of_two(layer: Any, seen: Tensor, inner: Tensor) -> Tensor:
    """The layer of [seen, gelu(inner)] without joining them."""
    base, lora = _parts(layer)
    at, found = seen.shape[-1], matrix(base)
    halves = _split(found, at) if found else None
    if halves is None or (not lora and type(base) is not nn.Linear):
        return _plain(base, lora, torch.cat([seen, F.gelu(inner, approximate="tanh")], -1))
    left, right = halves
    if not lora:
        y = F.linear(seen, left.parts[0], left.bias)
        return y + F.linear(F.gelu(inner, approximate="tanh"), right.parts[0])
    one, two = (_Lora(d, lora.up, lora.scale) for d in (lora.down[:, :at], lora.down[:, at:]))
    return _adapted(seen, False, [left], [one])[0] + _adapted(inner, True, [right], [two])[0]


def _split(base: Matrix, at: int) -> tuple[Matrix, Matrix] | None:
    """The layer's matrix for its first `at` inputs, with the bias, and that for the others."""
    columns = KINDS[base.kind].columns
    left, right = columns(base.parts, 0, at), columns(base.parts, at, None)
    if left is None or right is None:
        return None
    return Matrix(base.kind, left, base.bias), Matrix(base.kind, right, None)


class _Adapted(torch.autograd.Function):
    """Frozen linear layers of one input, each with a LoRA.

    y_i = x W_i' + b_i + s_i (x A_i') B_i'. All A_i are one product. Only the input (before the
    GELU, where there is one) and x A' are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gelu: bool,
        kind: str,
        scales: tuple[float, ...],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        halves, biases, matrices = _Adapted.sorted(tensors, len(scales))
        flat = (F.gelu(x, approximate="tanh") if gelu else x).flatten(0, -2)
        downs, ups = halves[::2], halves[1::2]
        u = flat @ torch.cat(downs).to(x.dtype).mT
        ys = KINDS[kind].times(matrices, flat, biases)
        at = 0
        for y, scale, up in zip(ys, scales, ups, strict=True):
            rank = up.shape[1]
            y.addmm_(u[:, at : at + rank], up.to(x.dtype).mT, alpha=scale)
            at += rank
        ctx.save_for_backward(x, u, *tensors)
        ctx.gelu, ctx.kind, ctx.scales = gelu, kind, scales
        return tuple(y.view(*x.shape[:-1], -1) for y in ys)

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
        flat = [g.flatten(0, -2) for g in grads]
        inner, at, gives = [], 0, []
        for g, up, scale in zip(flat, ups, ctx.scales, strict=True):
            rank = up.shape[1]
            inner.append((g @ up.to(g.dtype)).mul_(scale))
            gives.append((g.mT @ u[:, at : at + rank]).to(up.dtype) * scale)
            at += rank
        joined = torch.cat(inner, 1)
        need = ctx.needs_input_grad[0]
        gx = None
        if need:
            gx = joined @ torch.cat(downs).to(joined.dtype)
            for g, parts in zip(flat, matrices, strict=True):
                KINDS[ctx.kind].add_back(gx, parts, g)
            gx = gx.view(x.shape)
        read = F.gelu(x, approximate="tanh") if ctx.gelu else x
        down = (joined.mT @ read.flatten(0, -2)).to(downs[0].dtype)
        if need and ctx.gelu:
            gx = torch.ops.aten.gelu_backward(gx, x, approximate="tanh")
        pairs = zip(torch.split(down, [d.shape[0] for d in downs]), gives, strict=True)
        rest = (None for _ in tensors[len(halves) :])
        return gx, None, None, None, *(g for pair in pairs for g in pair), *rest
