"""FLUX.2's forward pass, our own, over the modules and weights of diffusers and PEFT.

As in FLUX.1 (`iclora.models.flux.forward`), tokens may have different noise levels and as many
blocks are recomputed as memory asks for. What differs: modulation is made once a pass by three
layers that all blocks share; MLPs are gated (SwiGLU); a single block reads its input by one layer
and writes by one; text tokens count along an axis of their own; there is no pooled text.

Shapes: B samples, n image tokens, t text tokens, S = t + n, h width, d width of a head, G segments.

    img           (B, n, h)   image tokens, ordered by segment
    txt           (B, t, h)   text tokens
    both          (B, S, h)   text before image
    rotary        cosine and sine for each pair of a head, (1 or B, S, 1, d / 2, 2)
    position_ids  (n, 4) or (B, n, 4)   picture, row, column, 0; a text token's are 0, 0, 0, number
    tokens        how many tokens each segment has
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iclora.models.attention import Attend, pick_attention
from iclora.models.double import joint_heads, joint_output, of_silu
from iclora.models.graphs import Keyed
from iclora.models.linear import linear, linear_of_two
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
    modulations,
    with_text,
)
from iclora.models.rotary import Rotary, heads, rotary_of

__all__ = ["FLUX2", "Inputs", "embed", "flux2_forward"]


class Inputs(NamedTuple):
    """The input of a pass; see `flux2_forward`."""

    z: Tensor
    prompt: Tensor
    levels: Levels
    guidance: Tensor | None
    position_ids: Tensor
    lengths: tuple[int, ...] | None = None
    """Tokens of each text in the prompt; None if it is one text."""


def flux2_forward(
    net: Any,
    inputs: Inputs,
    *,
    recompute: int = 0,
    attend: Attend | None = None,
    shapes: Shapes | None = None,
    graphs: Keyed | None = None,
) -> Tensor:
    """The velocity that a Flux2Transformer2DModel gives.

    Args:
        net: the transformer, with LoRA layers or without.
        inputs: z, latent tokens (B, n, c) in the weights' type, ordered by segment; prompt, the
            text's hidden states (B, t, width); the levels of the n tokens; guidance (B,), None for
            a base without guidance embedding; position_ids in the order of z; lengths of the texts
            in the prompt, each of which counts its tokens from 0.
        recompute: how many of the blocks keep their input alone for the backward pass.
        attend: by default the best one for the device.
        shapes: those that blocks are compiled for; None compiles none.
        graphs: those that the pass is recorded in, or replayed from; None runs it as it is.
    Returns: (B, n, c) in the weights' type.
    """
    attend = attend or pick_attention(inputs.z.device)
    return FLUX2(net, inputs, attend, recompute=recompute, shapes=shapes, graphs=graphs)


# -- the parts of a pass, each to be run and counted by itself (`iclora.models.flux2.outline`) ---


def embed(
    net: Any, inputs: Inputs, attend: Attend, shapes: Shapes | None = None
) -> tuple[Streams, Pass]:
    """Make the input of the first block, and what all blocks share."""
    z, prompt, levels, guidance, position_ids, lengths = inputs
    img, txt = net.x_embedder(z), net.context_embedder(prompt)
    # No text decides it, and all samples of a sampling are told one guidance.
    temb = levels.embedded(
        lambda sigma: _embed_levels(net.time_guidance_embed, sigma, guidance, img.dtype)
    )
    modulation = (
        levels.made(net.double_stream_modulation_img.linear, of_silu, temb),
        # The text takes the first level.
        levels.made(net.double_stream_modulation_txt.linear, of_silu, temb, first=True),
        levels.made(net.single_stream_modulation.linear, of_silu, temb),
    )
    rotary = _rotary(net.pos_embed, lengths or (txt.shape[1],), position_ids)
    shape = (img.shape, txt.shape, img.dtype, img.device, levels.tokens)
    wanted = shapes is not None and shapes.take(*shape)
    return (img, txt), Pass(temb, rotary, levels, attend, wanted, modulation)


def _modules_of(net: Any) -> list[tuple[Any, nn.Module]]:
    double = [(_double, block) for block in net.transformer_blocks]
    return [*double, *((_single, block) for block in net.single_transformer_blocks)]


FLUX2 = Network(embed, _modules_of, read_out)
"""The pass."""


def _rotary(embedder: Any, lengths: tuple[int, ...], position_ids: Tensor) -> Rotary:
    ids = position_ids if position_ids.ndim == 3 else position_ids[None]
    text = ids.new_zeros(len(ids), sum(lengths), ids.shape[-1])
    text[..., -1] = torch.cat([torch.arange(length, device=ids.device) for length in lengths])
    return rotary_of(embedder, torch.cat([text, ids], 1))


def _embed_levels(
    embedder: Any, sigma: Tensor, guidance: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The temb of levels (B, G)."""
    samples, count = sigma.shape
    # Rounded before it is multiplied, as diffusers does, and the base was trained.
    times = sigma.to(dtype).flatten() * 1000
    if guidance is not None:
        guidance = guidance[:samples].to(dtype).repeat_interleave(count) * 1000
    temb: Tensor = embedder(times, guidance)
    return temb.view(-1, count, temb.shape[-1])


# -- blocks -------------------------------------------------------------------------------------


def _double(block: Any, img: Tensor, txt: Tensor, shared: Pass) -> Streams:
    """Image and text each with weights of their own, attending to both."""
    before, after = _double_before, _double_after
    if shared.compiled:
        before, after = compiled(before), compiled(after)
    img_mod, txt_mod, _ = shared.modulation
    qkv = before(block, img, txt, img_mod, txt_mod, shared.rotary, shared.tokens)
    return after(block, img, txt, shared.attend(*qkv), img_mod, txt_mod, shared.tokens)


def _double_before(
    block: Any,
    img: Tensor,
    txt: Tensor,
    img_mod: Tensor,
    txt_mod: Tensor,
    rotary: Rotary,
    tokens: tuple[int, ...],
) -> list[Tensor]:
    """Queries, keys and values of both."""
    ours, theirs = (modulations(mod, img.shape[-1])[0] for mod in (img_mod, txt_mod))
    return joint_heads(block.attn, img, txt, (ours, theirs), rotary, tokens)


def _double_after(
    block: Any,
    img: Tensor,
    txt: Tensor,
    attended: Tensor,
    img_mod: Tensor,
    txt_mod: Tensor,
    tokens: tuple[int, ...],
) -> Streams:
    img_attn, img_mlp = modulations(img_mod, img.shape[-1])
    txt_attn, txt_mlp = modulations(txt_mod, img.shape[-1])
    img, txt = joint_output(block.attn, img, txt, attended, (img_attn, txt_attn), tokens)
    img = _mlp(block.ff, img, img_mlp, tokens)
    txt = _mlp(block.ff_context, txt, txt_mlp, (txt.shape[1],))
    return img, txt


def _single(block: Any, img: Tensor, txt: Tensor, shared: Pass) -> Streams:
    """Image and text with the same weights; attention and MLP side by side."""
    before, after = _single_before, _single_after
    if shared.compiled:
        before, after = compiled(before), compiled(after)
    t, mod = txt.shape[1], shared.modulation[2]
    tokens = with_text(shared.tokens, t)
    qkv, both, inner = before(block, img, txt, mod, shared.rotary, tokens)
    return after(block, both, shared.attend(*qkv), inner, mod, t, tokens)


def _single_before(
    block: Any, img: Tensor, txt: Tensor, mod: Tensor, rotary: Rotary, tokens: tuple[int, ...]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values; both streams joined; the MLP's gate and value."""
    attn, both = block.attn, joined(txt, img)
    (own,) = modulations(mod, both.shape[-1])
    read = linear(attn.to_qkv_mlp_proj, modulate(both, own.shift, own.scale, tokens))
    *qkv, inner = torch.split(read, [attn.inner_dim] * 3 + [2 * attn.mlp_hidden_dim], -1)
    q, k, v = heads(qkv, attn.norm_q, attn.norm_k, rotary, attn.head_dim)
    return [x.transpose(1, 2) for x in (q, k, v)], both, inner


def _single_after(
    block: Any,
    both: Tensor,
    attended: Tensor,
    inner: Tensor,
    mod: Tensor,
    t: int,
    tokens: tuple[int, ...],
) -> Streams:
    (own,) = modulations(mod, both.shape[-1])
    both = gated(
        both, own.gate, linear_of_two(block.attn.to_out, attended, inner, "swiglu"), tokens
    )
    txt, img = torch.split(both, [t, both.shape[1] - t], 1)
    return img, txt


def _mlp(ff: Any, x: Tensor, mod: Modulation, tokens: tuple[int, ...]) -> Tensor:
    inner = linear(ff.linear_in, modulate(x, mod.shift, mod.scale, tokens))
    return gated(x, mod.gate, linear(ff.linear_out, inner, "swiglu"), tokens)
