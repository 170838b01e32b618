"""FLUX.1's forward pass, our own, over the modules and weights of diffusers and PEFT.

Beyond theirs, tokens of one canvas may have different noise levels (`iclora.models.passes`),
layers of one input share products and no concatenation of attention and MLP is made
(`iclora.models.linear`), and as many blocks are recomputed as memory asks for, not all or none.
Tests hold it equal to diffusers' forward and to PEFT's gradients.

Shapes: B samples, n image tokens, t text tokens, S = t + n, h width, d width of a head, G segments.

    img           (B, n, h)   image tokens, ordered by segment
    txt           (B, t, h)   text tokens
    both          (B, S, h)   text before image
    temb          (B, G, h)   what modulation is made from, for each segment
    rotary        cosine and sine for each pair of a head, (1 or B, S, 1, d / 2, 2)
    position_ids  (n, 3) or (B, n, 3)   0, row, column of an image token; a text token's are 0
    tokens        how many tokens each segment has
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iclora.models.attention import Attend, pick_attention, steady
from iclora.models.double import Parts, double_block, modulations_by
from iclora.models.graphs import Keyed
from iclora.models.linear import Inner, linear_of_two, linears_into
from iclora.models.network import Network, read_out
from iclora.models.passes import (
    Levels,
    Modulation,
    Pass,
    Shapes,
    Streams,
    compiled,
    gated,
    joined,
    modulate,
    with_text,
)
from iclora.models.rotary import Rotary, heads, rotary_of

__all__ = ["FLUX", "Inputs", "embed", "flux_forward"]


class Inputs(NamedTuple):
    """The input of a pass; see `flux_forward`."""

    z: Tensor
    prompt: Tensor
    pooled: Tensor
    levels: Levels
    guidance: Tensor | None
    position_ids: Tensor


def flux_forward(
    net: Any,
    z: Tensor,
    prompt: Tensor,
    pooled: Tensor,
    levels: Levels,
    guidance: Tensor | None,
    position_ids: Tensor,
    *,
    recompute: int = 0,
    attend: Attend | None = None,
    shapes: Shapes | None = None,
    graphs: Keyed | None = None,
) -> Tensor:
    """The velocity that a FluxTransformer2DModel gives.

    Args:
        net: the transformer, with LoRA layers or without.
        z: latent tokens (B, n, c) in the weights' type, ordered by segment.
        prompt: T5's embedding, (B, t, width).
        pooled: CLIP's, (B, width).
        levels: of the n tokens.
        guidance: (B,), None for a base without guidance embedding.
        position_ids: in the order of `z`.
        recompute: how many of the blocks keep their input alone for the backward pass.
        attend: by default the best one for the device.
        shapes: those that blocks are compiled for; None compiles none.
        graphs: those that the pass is recorded in, or replayed from; None runs it as it is.
    Returns: (B, n, c) in the weights' type.
    """
    inputs = Inputs(z, prompt, pooled, levels, guidance, position_ids)
    attend = attend or pick_attention(z.device, on_cpu=steady)
    return FLUX(net, inputs, attend, recompute=recompute, shapes=shapes, graphs=graphs)


# -- the parts of a pass, each to be run and counted by itself (`iclora.models.flux.outline`) ----


def embed(
    net: Any, inputs: Inputs, attend: Attend, shapes: Shapes | None = None
) -> tuple[Streams, Pass]:
    """Make the input of the first block, and what all blocks share."""
    z, prompt, pooled, levels, guidance, position_ids = inputs
    img, txt = net.x_embedder(z), net.context_embedder(prompt)
    # A text decides it as well, so samples differ; a sampling has one pass a step.
    temb = levels.embedded(
        lambda sigma: _embed_levels(net.time_text_embed, sigma, guidance, pooled, img.dtype), len(z)
    )
    rotary = _rotary(net.pos_embed, txt.shape[1], position_ids)
    shape = (img.shape, txt.shape, img.dtype, img.device, levels.tokens)
    wanted = shapes is not None and shapes.take(*shape)
    return (img, txt), Pass(temb, rotary, levels, attend, wanted)


def _modules_of(net: Any) -> list[tuple[Any, nn.Module]]:
    double = [(_double, block) for block in net.transformer_blocks]
    return [*double, *((_single, block) for block in net.single_transformer_blocks)]


def _modulating(block: Any) -> list[nn.Module]:
    double = hasattr(block, "norm1_context")
    own = (block.norm1, block.norm1_context) if double else (block.norm,)
    return [norm.linear for norm in own]


FLUX = Network(embed, _modules_of, read_out, _modulating)
"""The pass."""


def _rotary(embedder: Any, text_tokens: int, position_ids: Tensor) -> Rotary:
    ids = position_ids if position_ids.ndim == 3 else position_ids[None]
    ids = torch.cat([ids.new_zeros(len(ids), text_tokens, ids.shape[-1]), ids], 1)
    return rotary_of(embedder, ids)


def _embed_levels(
    embedder: Any, sigma: Tensor, guidance: Tensor | None, pooled: Tensor, dtype: torch.dtype
) -> Tensor:
    """The temb of levels (B, G)."""
    count = sigma.shape[1]
    # Rounded before it is multiplied, as diffusers does, and the base was trained.
    times = sigma.to(dtype).flatten() * 1000
    text = pooled.repeat_interleave(count, 0)
    if guidance is None:
        temb: Tensor = embedder(times, text)
    else:
        temb = embedder(times, guidance.to(dtype).repeat_interleave(count) * 1000, text)
    return temb.view(-1, count, temb.shape[-1])


# -- blocks -------------------------------------------------------------------------------------


def _parts(block: Any) -> Parts:
    return Parts(block.norm1.linear, block.norm1_context.linear, block.ff, block.ff_context)


_double = partial(double_block, _parts)
"""Image and text each with weights of their own, attending to both."""


def _single(block: Any, img: Tensor, txt: Tensor, shared: Pass) -> Streams:
    """Image and text with the same weights; attention and MLP side by side."""
    before, after = _single_before, _single_after
    if shared.compiled:
        before, after = compiled(before), compiled(after)
    t = txt.shape[1]
    tokens = with_text(shared.tokens, t)
    (mod,) = modulations_by(block.norm.linear, shared)
    qkv, both, inner = before(block, img, txt, mod, shared.rotary, tokens)
    return after(block, both, shared.attend(*qkv), inner, mod.gate, t, tokens)


def _single_before(
    block: Any, img: Tensor, txt: Tensor, mod: Modulation, rotary: Rotary, tokens: tuple[int, ...]
) -> tuple[list[Tensor], Tensor, Inner]:
    """Queries, keys and values; both streams joined; the MLP's inside."""
    attn, both = block.attn, joined(txt, img)
    (q, k, v), inner = linears_into(
        (attn.to_q, attn.to_k, attn.to_v, block.proj_mlp),
        modulate(both, mod.shift, mod.scale, tokens),
        "gelu",
    )
    qkv = heads((q, k, v), attn.norm_q, attn.norm_k, rotary, attn.head_dim)
    return [x.transpose(1, 2) for x in qkv], both, inner


def _single_after(
    block: Any,
    both: Tensor,
    attended: Tensor,
    inner: Inner,
    gate: Tensor,
    t: int,
    tokens: tuple[int, ...],
) -> Streams:
    both = gated(both, gate, linear_of_two(block.proj_out, attended, inner, "gelu"), tokens)
    txt, img = torch.split(both, [t, both.shape[1] - t], 1)
    return img, txt
