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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from iclora.models.attention import Attend, pick_attention

__all__ = ["Levels", "flux_forward"]


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
    Returns: (B, n, c) in the weights' type.
    """
    attend = attend or pick_attention(z.device)
    x = net.x_embedder(z)
    c = net.context_embedder(prompt)
    temb = _embed_levels(net.time_text_embed, levels.sigma, guidance, pooled, x.dtype)
    turn = _turn(net.pos_embed, c.shape[1], places)
    blocks = [(_double, block) for block in net.transformer_blocks]
    blocks += [(_single, block) for block in net.single_transformer_blocks]
    for number, (run, block) in enumerate(blocks):
        given = (block, x, c, temb, turn, levels.tokens, attend)
        if number < recompute and torch.is_grad_enabled():
            x, c = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            x, c = run(*given)
    scale, shift = _linear(net.norm_out.linear, F.silu(temb)).to(x.dtype).chunk(2, -1)
    out: Tensor = net.proj_out(_modulate(x, shift, scale, levels.tokens))
    return out


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


def _double(
    block: Any, x: Tensor, c: Tensor, temb: Tensor, turn: tuple[Tensor, Tensor],
    tokens: tuple[int, ...], attend: Attend,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Image and text each with weights of their own, attending to both."""
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
    seen = attend(*(torch.cat(pair, 2) for pair in zip(text, image, strict=True)))
    seen_c, seen_x = torch.split(seen, [at, x.shape[1]], 1)
    x = _gated(x, mine[2], _linear(attn.to_out[0], seen_x), tokens)
    c = _gated(c, theirs[2], _linear(attn.to_add_out, seen_c), words)
    x = _gated(x, mine[5], _feed(block.ff, _modulate(x, mine[3], mine[4], tokens)), tokens)
    c = _gated(c, theirs[5], _feed(block.ff_context, _modulate(c, theirs[3], theirs[4], words)),
               words)  # fmt: skip
    return x, c


def _single(
    block: Any, x: Tensor, c: Tensor, temb: Tensor, turn: tuple[Tensor, Tensor],
    tokens: tuple[int, ...], attend: Attend,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Image and text with the same weights; attention and MLP side by side."""
    attn, at = block.attn, c.shape[1]
    joined = torch.cat([c, x], 1)
    # The text is told the first level: it joins the first segment.
    tokens = (at + tokens[0], *tokens[1:])
    shift, scale, gate = _linear(block.norm.linear, F.silu(temb)).chunk(3, -1)
    q, k, v, inner = _linears(
        (attn.to_q, attn.to_k, attn.to_v, block.proj_mlp), _modulate(joined, shift, scale, tokens)
    )
    seen = attend(*_heads((q, k, v), (attn.norm_q, attn.norm_k), turn, attn.head_dim))
    joined = _gated(joined, gate, _linear_of_two(block.proj_out, seen, inner), tokens)
    c, x = torch.split(joined, [at, x.shape[1]], 1)
    return x, c


def _feed(ff: Any, x: Tensor) -> Tensor:
    return _after_gelu(ff.net[2], _linear(ff.net[0].proj, x))


def _by_segment(
    run: Callable[..., Tensor], tokens: tuple[int, ...], vectors: Sequence[Tensor],
    *streams: Tensor,
) -> Tensor:  # fmt: skip
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
    return _by_segment(
        lambda gate, x, y: torch.addcmul(x, gate, y), tokens, (gate,), x, y
    )  # fmt: skip


def _heads(
    qkv: Sequence[Tensor], norms: tuple[Any, Any], turn: tuple[Tensor, Tensor], d: int
) -> list[Tensor]:
    """q and k normed and turned by their places, and v, each (B, heads, S, d)."""
    q, k, v = (t.view(*t.shape[:-1], -1, d) for t in qkv)
    q, k = (
        _rotate(F.rms_norm(t, (d,), norm.weight, norm.eps), *turn)
        for t, norm in zip((q, k), norms, strict=True)
    )
    return [t.transpose(1, 2) for t in (q, k, v)]


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
    found = [(base, lora) for base, lora in zip(bases, loras, strict=True) if lora]
    if not found:
        return tuple(base(x) for base in bases)
    if len(found) == len(bases) and all(type(base) is nn.Linear for base in bases):
        return _Adapted.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, False, tuple((b.weight, b.bias, lo.scale) for b, lo in found),
            *(t for _, lora in found for t in (lora.down, lora.up)),
        )  # fmt: skip
    return tuple(_plain(base, lora, x) for base, lora in zip(bases, loras, strict=True))


def _plain(base: nn.Module, lora: _Lora | None, x: Tensor) -> Tensor:
    """Any kind of base, quantised ones as well."""
    y: Tensor = base(x)
    if lora:
        inner = F.linear(x, lora.down.to(x.dtype))
        y = y + F.linear(inner, lora.up.to(x.dtype)) * lora.scale
    return y


def _after_gelu(layer: Any, x: Tensor) -> Tensor:
    """The layer of gelu(x), which is computed again in the backward pass instead of kept."""
    base, lora = _parts(layer)
    if lora and type(base) is nn.Linear:
        whole = ((base.weight, base.bias, lora.scale),)
        return _Adapted.apply(x, True, whole, lora.down, lora.up)[0]  # type: ignore[no-any-return, no-untyped-call]
    return _plain(base, lora, F.gelu(x, approximate="tanh"))


def _linear_of_two(layer: Any, seen: Tensor, inner: Tensor) -> Tensor:
    """The layer of [seen, gelu(inner)] without joining them."""
    base, lora = _parts(layer)
    if type(base) is not nn.Linear:
        return _plain(base, lora, torch.cat([seen, F.gelu(inner, approximate="tanh")], -1))
    at = seen.shape[-1]
    left, right = base.weight[:, :at], base.weight[:, at:]
    if not lora:
        y = F.linear(seen, left, base.bias)
        return y + F.linear(F.gelu(inner, approximate="tanh"), right)
    one, scale = lora.down[:, :at], lora.scale
    y = _Adapted.apply(seen, False, ((left, base.bias, scale),), one, lora.up)[0]  # type: ignore[no-untyped-call]
    two = _Adapted.apply(inner, True, ((right, None, scale),), lora.down[:, at:], lora.up)[0]  # type: ignore[no-untyped-call]
    return y + two  # type: ignore[no-any-return]


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
        bases: tuple[tuple[Tensor, Tensor | None, float], ...],
        *halves: Tensor,
    ) -> tuple[Tensor, ...]:
        flat = (F.gelu(x, approximate="tanh") if gelu else x).flatten(0, -2)
        downs, ups = halves[::2], halves[1::2]
        u = flat @ torch.cat(downs).to(x.dtype).mT
        ys = []
        at = 0
        for (weight, bias, scale), up in zip(bases, ups, strict=True):
            y = F.linear(flat, weight, bias)
            rank = up.shape[1]
            y.addmm_(u[:, at : at + rank], up.to(x.dtype).mT, alpha=scale)
            ys.append(y.view(*x.shape[:-1], -1))
            at += rank
        ctx.save_for_backward(x, u, *halves, *(weight for weight, _, _ in bases))
        ctx.gelu, ctx.scales = gelu, [scale for _, _, scale in bases]
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, u, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        downs, ups, weights = rest[: 2 * count : 2], rest[1 : 2 * count : 2], rest[2 * count :]
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
            for g, weight in zip(flat, weights, strict=True):
                gx.addmm_(g, weight)
            gx = gx.view(x.shape)
        read = F.gelu(x, approximate="tanh") if ctx.gelu else x
        down = (joined.mT @ read.flatten(0, -2)).to(downs[0].dtype)
        if need and ctx.gelu:
            gx = torch.ops.aten.gelu_backward(gx, x, approximate="tanh")
        pairs = zip(torch.split(down, [d.shape[0] for d in downs]), gives, strict=True)
        return gx, None, None, *(g for pair in pairs for g in pair)
