"""Blocks in which image and text have weights of their own and attend to both.

FLUX.1's first blocks, FLUX.2's first ones and all of Qwen-Image's are such; they differ in where
modulation comes from and in what their MLPs are called.

Shapes are those of `iclora.models.passes`: img (B, n, h) and txt (B, t, h), text before image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from iclora.models.linear import linear, linears, linears_into
from iclora.models.passes import Modulation, Pass, Streams, compiled, gated, modulate, modulations
from iclora.models.rotary import Rotary, heads

__all__ = ["Parts", "double_block", "joint_heads", "joint_output", "modulations_by", "of_silu"]


class Parts(NamedTuple):
    """The layers of a block that makes its own modulation, and whose MLPs are GELU's."""

    img_mod: Any
    txt_mod: Any
    img_mlp: Any
    txt_mlp: Any


def double_block(
    parts: Callable[[Any], Parts], block: Any, img: Tensor, txt: Tensor, shared: Pass
) -> Streams:
    """Run a block that makes its own modulation.

    Args:
        parts: names its layers; q, k and v are those of `block.attn`.
    """
    before, after = _before, _after
    if shared.compiled:
        before, after = compiled(before), compiled(after)
    own = parts(block)
    # The text takes the first level.
    mods = (*modulations_by(own.img_mod, shared), *modulations_by(own.txt_mod, shared, first=True))
    qkv = before(block, img, txt, mods, shared.rotary, shared.tokens)
    return after(parts, block, img, txt, shared.attend(*qkv), mods, shared.tokens)


def modulations_by(layer: Any, shared: Pass, first: bool = False) -> tuple[Modulation, ...]:
    """A modulation for every three of the outputs of a block's own layer.

    Args:
        first: of the first segment alone.
    """
    make = of_silu
    if shared.compiled and shared.levels.step is None:
        # What is made once for a number of steps would be compiled for each such number.
        make = compiled(make)
    return modulations(shared.made(layer, make, first), shared.temb.shape[-1])


def of_silu(layer: Any, temb: Tensor) -> Tensor:
    """What a layer makes of temb (..., h)."""
    return linear(layer, F.silu(temb), often=False)


def _before(
    block: Any,
    img: Tensor,
    txt: Tensor,
    mods: tuple[Modulation, ...],
    rotary: Rotary,
    tokens: tuple[int, ...],
) -> list[Tensor]:
    """Queries, keys and values of both."""
    img_mod, _, txt_mod, _ = mods
    return joint_heads(block.attn, img, txt, (img_mod, txt_mod), rotary, tokens)


def _after(
    parts: Callable[[Any], Parts],
    block: Any,
    img: Tensor,
    txt: Tensor,
    attended: Tensor,
    mods: tuple[Modulation, ...],
    tokens: tuple[int, ...],
) -> Streams:
    own = parts(block)
    img_mod, img_mod_mlp, txt_mod, txt_mod_mlp = mods
    img, txt = joint_output(block.attn, img, txt, attended, (img_mod, txt_mod), tokens)
    img = _mlp(own.img_mlp, img, img_mod_mlp, tokens)
    txt = _mlp(own.txt_mlp, txt, txt_mod_mlp, (txt.shape[1],))
    return img, txt


def joint_heads(
    attn: Any,
    img: Tensor,
    txt: Tensor,
    mods: tuple[Modulation, Modulation],
    rotary: Rotary,
    tokens: tuple[int, ...],
) -> list[Tensor]:
    """Queries, keys and values of text and image joined, each (B, heads, S, d).

    Args:
        mods: of image and text.
        tokens: image tokens of each segment.
    """
    ours, theirs = mods
    t, d = txt.shape[1], attn.inner_dim // attn.heads
    img_qkv = linears(
        (attn.to_q, attn.to_k, attn.to_v), modulate(img, ours.shift, ours.scale, tokens)
    )
    txt_qkv = linears(
        (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
        modulate(txt, theirs.shift, theirs.scale, (t,)),
    )
    img_qkv = heads(img_qkv, attn.norm_q, attn.norm_k, rotary[:, t:], d)
    txt_qkv = heads(txt_qkv, attn.norm_added_q, attn.norm_added_k, rotary[:, :t], d)
    # Joined before they are turned to (B, heads, S, d): attention writes its output in the order of
    # q's memory, and so needs no copy to be read token by token, which to_out would keep.
    return [torch.cat(pair, 1).transpose(1, 2) for pair in zip(txt_qkv, img_qkv, strict=True)]


def joint_output(
    attn: Any,
    img: Tensor,
    txt: Tensor,
    attended: Tensor,
    mods: tuple[Modulation, Modulation],
    tokens: tuple[int, ...],
) -> Streams:
    """Image and text, to each of which its part of what attention gave is added by its gate."""
    ours, theirs = mods
    t = txt.shape[1]
    txt_attended, img_attended = torch.split(attended, [t, img.shape[1]], 1)
    img = gated(img, ours.gate, linear(attn.to_out[0], img_attended), tokens)
    txt = gated(txt, theirs.gate, linear(attn.to_add_out, txt_attended), (t,))
    return img, txt


def _mlp(ff: Any, x: Tensor, mod: Modulation, tokens: tuple[int, ...]) -> Tensor:
    _, inner = linears_into((ff.net[0].proj,), modulate(x, mod.shift, mod.scale, tokens), "gelu")
    return gated(x, mod.gate, linear(ff.net[2], inner, "gelu"), tokens)
