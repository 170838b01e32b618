"""Krea 2's forward pass, our own, over the modules and weights of diffusers and PEFT.

As in the other families tokens may have different noise levels and as many blocks are recomputed
as memory asks for. What differs: the text comes as hidden states of several layers, which a small
transformer inside fuses to one; every block is the same single stream; modulation is made once a
pass, and each block adds a table of its own to it; queries have more heads than keys; what
attention gives goes through a gate made of its input; norms multiply by 1 + weight, which is kept
in float32.

Shapes: B samples, n image tokens, t text tokens, S = t + n, h width, d width of a head, G segments.

    both          (B, S, h)   text, then image tokens ordered by segment
    prompt        (B, t, layers, width)   hidden states of the text
    rotary        cosine and sine for each pair of a head, (1 or B, S, 1, d / 2, 2)
    position_ids  (n, 3) or (B, n, 3)   0, row, column; a text token's are 0
    tokens        how many tokens each segment has
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.models.attention import Attend, grouped, pick_attention
from iclora.models.graphs import Keyed
from iclora.models.linear import linear, linears
from iclora.models.network import Network
from iclora.models.passes import (
    Levels,
    Modulation,
    Pass,
    Shapes,
    Streams,
    by_segment,
    compiled,
    gated,
    modulations,
    with_text,
)
from iclora.models.rotary import Rotary, rotary_of, rotate

__all__ = ["KREA2", "Inputs", "embed", "krea2_forward"]


class Inputs(NamedTuple):
    """The input of a pass; see `krea2_forward`."""

    z: Tensor
    prompt: Tensor
    levels: Levels
    position_ids: Tensor
    lengths: tuple[int, ...] | None = None
    """Tokens of each text in the prompt; None if it is one text."""


def krea2_forward(
    net: Any,
    inputs: Inputs,
    *,
    recompute: int = 0,
    attend: Attend | None = None,
    shapes: Shapes | None = None,
    graphs: Keyed | None = None,
) -> Tensor:
    """The velocity that a Krea2Transformer2DModel gives.

    Args:
        net: the transformer, with LoRA layers or without.
        inputs: z, latent tokens (B, n, c) in the weights' type, ordered by segment; prompt, the
            texts' hidden states, without padding; the levels of the n tokens; position_ids in the
            order of z; lengths of the texts in the prompt, each of which is fused by itself.
        recompute: how many of the blocks keep their input alone for the backward pass.
        attend: takes keys of fewer heads than queries; by default the best one for the device.
        shapes: those that blocks are compiled for; None compiles none.
        graphs: those that the pass is recorded in, or replayed from; None runs it as it is.
    Returns: (B, n, c) in the weights' type.
    """
    attend = attend or grouped(pick_attention(inputs.z.device))
    return KREA2(net, inputs, attend, recompute=recompute, shapes=shapes, graphs=graphs)


# -- the parts of a pass, each to be run and counted by itself (`iclora.models.krea2.outline`) ---


def embed(
    net: Any, inputs: Inputs, attend: Attend, shapes: Shapes | None = None
) -> tuple[Streams, Pass]:
    """Make the input of the first block, and what all blocks share."""
    z, prompt, levels, position_ids, lengths = inputs
    texts = torch.split(prompt, list(lengths or (prompt.shape[1],)), 1)
    txt = net.txt_in(torch.cat([net.text_fusion(text) for text in texts], 1))
    both = torch.cat([txt, net.img_in(z)], 1)
    temb = levels.embedded(lambda sigma: _embed_levels(net.time_embed, sigma, z.dtype))
    modulation = levels.made(net.time_mod_proj, _of_gelu, temb)
    ids = position_ids if position_ids.ndim == 3 else position_ids[None]
    rotary = rotary_of(net.rotary_emb, F.pad(ids, (0, 0, txt.shape[1], 0)))
    shape = (z.shape, txt.shape, z.dtype, z.device, levels.tokens)
    wanted = shapes is not None and shapes.take(*shape)
    return (both,), Pass(temb, rotary, levels, attend, wanted, (modulation,))


def _embed_levels(embedder: Any, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """The temb of levels, (B, G) to (B, G, h)."""
    # The level is multiplied in float32, not rounded before as in FLUX.
    temb: Tensor = embedder(sigma.float().flatten(), dtype)
    return temb.view(*sigma.shape, -1)


def _of_gelu(layer: Any, temb: Tensor) -> Tensor:
    """The modulation that all blocks share, (..., 6 h)."""
    return linear(layer, F.gelu(temb, approximate="tanh"), often=False)


def _read_out(net: Any, streams: Streams, shared: Pass) -> Tensor:
    """The velocity from what the last block made of the image's tokens."""
    last, n = net.final_layer, sum(shared.tokens)
    scale, shift = (shared.temb + row for row in last.scale_shift_table.to(shared.temb.dtype))
    img = _read(streams[0][:, -n:], last.norm, shift, scale, shared.tokens)
    out: Tensor = last.linear(img)
    return out


def _modules_of(net: Any) -> list[tuple[Any, nn.Module]]:
    return [(_block, block) for block in net.transformer_blocks]


KREA2 = Network(embed, _modules_of, _read_out)
"""The pass."""


# -- blocks -------------------------------------------------------------------------------------


def _block(block: Any, both: Tensor, shared: Pass) -> Streams:
    """Text and image with the same weights; the text takes the first level."""
    before, after = _before, _after
    if shared.compiled:
        before, after = compiled(before), compiled(after)
    (mod,) = shared.modulation
    tokens = with_text(shared.tokens, both.shape[1] - sum(shared.tokens))
    qkv, gate = before(block, both, mod, shared.rotary, tokens)
    return (after(block, both, shared.attend(*qkv), gate, mod, tokens),)


def _before(
    block: Any, both: Tensor, mod: Tensor, rotary: Rotary, tokens: tuple[int, ...]
) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, and what attention's gate is made of."""
    attn, (own, _) = block.attn, _modulations(block, mod)
    read = _read(both, block.norm1, own.shift, own.scale, tokens)
    q, k, v, gate = linears((attn.to_q, attn.to_k, attn.to_v, attn.to_gate), read)
    q, k, v = (x.view(*x.shape[:-1], -1, attn.head_dim) for x in (q, k, v))
    q, k = (_head(x, norm, rotary) for x, norm in ((q, attn.norm_q), (k, attn.norm_k)))
    return [x.transpose(1, 2) for x in (q, k, v)], gate


def _after(
    block: Any, both: Tensor, attended: Tensor, gate: Tensor, mod: Tensor, tokens: tuple[int, ...]
) -> Tensor:
    ff, (attn, mlp) = block.ff, _modulations(block, mod)
    out = linear(block.attn.to_out[0], attended * gate.sigmoid())
    both = gated(both, attn.gate, out, tokens)
    inner = linears((ff.gate, ff.up), _read(both, block.norm2, mlp.shift, mlp.scale, tokens))
    return gated(both, mlp.gate, linear(ff.down, torch.cat(inner, -1), "swiglu"), tokens)


def _modulations(block: Any, mod: Tensor) -> tuple[Modulation, Modulation]:
    """Those of attention and MLP: what all blocks share, and the block's own table."""
    table = block.scale_shift_table
    both = modulations(mod + table.flatten().to(mod.dtype), table.shape[-1])
    # Scale stands before shift here.
    first, second = (Modulation(own.scale, own.shift, own.gate) for own in both)
    return first, second


def _read(x: Tensor, norm: Any, shift: Tensor, scale: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """x normed, scaled and shifted as each segment's level says."""
    # The norm's own factor joins the level's in float32: no copy of x is, and one is rounded.
    scale = ((1 + scale.float()) * (1 + norm.weight.float())).to(x.dtype)

    def run(shift: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=norm.eps), scale)

    return by_segment(run, tokens, (shift, scale), x)


def _head(x: Tensor, norm: Any, rotary: Rotary) -> Tensor:
    """Queries or keys (B, S, heads, d) normed and rotated."""
    read = F.rms_norm(x, x.shape[-1:], eps=norm.eps).float() * (1 + norm.weight.float())
    return rotate(read, rotary).to(x.dtype)
