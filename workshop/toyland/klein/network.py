"""The painter: a small FLUX.2, and a pass over it that is fast on a CPU."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn import functional as F

from workshop.toyland.klein.reader import WIDTH

__all__ = [
    "HEAD",
    "HEADS",
    "WIDE",
    "Painting",
    "attend",
    "new_painter",
    "shape",
    "split",
    "swiglu",
    "turn_of",
    "turned",
]

HEADS, HEAD = 4, 48
WIDE = HEADS * HEAD
_AXES = (4, 20, 20, 4)
"""Rotated numbers of a head: picture, row, column, place in the text."""


def new_painter() -> Any:
    """2 double and 4 single blocks of width 192."""
    return diffusers.Flux2Transformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=_AXES,
        # As FLUX.1's toyland, whose attention this one begins with.
        rope_theta=10_000,
        guidance_embeds=False,
    )


def shape(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6) * (1 + scale) + shift


def turned(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys (B, S, heads, d), normed and rotated, as (B, heads, S, d) bf16."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight
    a, b = y.view(*y.shape[:-1], -1, 2).unbind(-1)
    rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(3)
    return rotated.to(x.dtype).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two matrix products: in bf16 on a CPU faster than the fused one."""
    scores = q @ (k.transpose(-1, -2) * HEAD**-0.5)
    # Under autocast softmax would go to fp32 and double the traffic; bf16 is exact enough.
    return (torch._softmax(scores, -1, False) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)


def split(x: Tensor) -> Tensor:
    """Heads apart: (B, S, heads, d)."""
    return x.view(*x.shape[:-1], HEADS, HEAD)


def swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


def _double(
    x: Tensor,
    c: Tensor,
    mods: tuple[Tensor, Tensor],
    turn: tuple[Tensor, Tensor],
    weights: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
) -> tuple[Tensor, Tensor]:
    """A double block: image x and text c, each with weights of their own."""
    t = c.shape[1]
    parts = []
    for y, mod, own, part in (
        (c, mods[1], weights[1], slice(t)),
        (x, mods[0], weights[0], slice(t, None)),
    ):
        shift, scale = mod[..., :WIDE], mod[..., WIDE : 2 * WIDE]
        n = shape(y, shift, scale)
        q, k, v = (split(F.linear(n, w)) for w in own[:3])
        cos, sin = turn[0][:, part], turn[1][:, part]
        parts.append((turned(q, own[3], cos, sin), turned(k, own[4], cos, sin), v))
    q, k = (torch.cat([parts[0][i], parts[1][i]], 2) for i in (0, 1))
    out = attend(q, k, torch.cat([parts[0][2], parts[1][2]], 1))
    done = []
    for y, mod, own, part in (
        (c, mods[1], weights[1], slice(t)),
        (x, mods[0], weights[0], slice(t, None)),
    ):
        gate, shift, scale, last = (mod[..., i * WIDE : (i + 1) * WIDE] for i in (2, 3, 4, 5))
        y = torch.addcmul(y, gate, F.linear(out[:, part], own[5]))
        inner = swiglu(F.linear(shape(y, shift, scale), own[6]))
        y = torch.addcmul(y, last, F.linear(inner, own[7]))
        done.append(y)
    return done[1], done[0]


def _single(
    both: Tensor, mod: Tensor, turn: tuple[Tensor, Tensor], weights: tuple[Tensor, ...]
) -> Tensor:
    """A single block on text and image joined."""
    shift, scale, gate = mod.chunk(3, -1)
    read = F.linear(shape(both, shift, scale), weights[0])
    q, k, v = (split(y) for y in read[..., : 3 * WIDE].chunk(3, -1))
    cos, sin = turn
    out = attend(turned(q, weights[1], cos, sin), turned(k, weights[2], cos, sin), v)
    inner = torch.cat([out, swiglu(read[..., 3 * WIDE :])], -1)
    return torch.addcmul(both, gate, F.linear(inner, weights[3]))


class Painting:
    """A pass over a painter's weights; a test holds it equal to diffusers' own."""

    def __init__(self, net: Any) -> None:
        self._net = net

    def __call__(
        self, z: Tensor, text: Tensor, sigma: Tensor, places: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The velocity (B, n, 32), and the image tokens behind each block.

        Args:
            z: (B, n, 32).
            text: (B, T, 192).
            sigma: (B,).
            places: (n, 4), position ids of the image's tokens.
        """
        net = self._net
        with torch.autocast(z.device.type, enabled=False):
            temb = F.silu(net.time_guidance_embed(sigma * 1000, None))[:, None]
            img = net.double_stream_modulation_img.linear(temb)
            txt = net.double_stream_modulation_txt.linear(temb)
            one = net.single_stream_modulation.linear(temb)
            x, c = net.x_embedder(z), net.context_embedder(text)
        turn = turn_of(net, places, text.shape[1])
        seen = []
        for block in net.transformer_blocks:
            x, c = _double(x, c, (img, txt), turn, _weights_of(block))
            seen.append(x)
        both = torch.cat([c, x], 1)
        for block in net.single_transformer_blocks:
            a = block.attn
            weights = (a.to_qkv_mlp_proj.weight, a.norm_q.weight, a.norm_k.weight, a.to_out.weight)
            both = _single(both, one, turn, weights)
            seen.append(both[:, text.shape[1] :])
        with torch.autocast(z.device.type, enabled=False):
            scale, shift = net.norm_out.linear(temb).chunk(2, -1)
            return net.proj_out(shape(seen[-1].float(), shift, scale)), seen


def turn_of(net: Any, places: Tensor, text_tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of text and image, each (1, S, 1, d / 2)."""
    ids = places.new_zeros(text_tokens, 4)
    ids[:, 3] = torch.arange(text_tokens)
    cos, sin = net.pos_embed(torch.cat([ids, places]))
    return cos[None, :, None, ::2].float(), sin[None, :, None, ::2].float()


def _weights_of(block: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    a = block.attn
    ours = (a.to_q, a.to_k, a.to_v, a.norm_q, a.norm_k, a.to_out[0], block.ff)
    theirs = (
        a.add_q_proj,
        a.add_k_proj,
        a.add_v_proj,
        a.norm_added_q,
        a.norm_added_k,
        a.to_add_out,
    )
    first, second = (
        (*(m.weight for m in layers[:6]), ff.linear_in.weight, ff.linear_out.weight)
        for layers, ff in ((ours, block.ff), (theirs, block.ff_context))
    )
    return first, second
