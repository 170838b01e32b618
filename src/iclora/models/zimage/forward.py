"""Z-Image's forward pass, our own, over the modules and weights of diffusers and PEFT.

As in FLUX.1 (`iclora.models.flux.forward`), tokens may have different noise levels and as many
blocks are recomputed as memory asks for. What differs: text and image each go through refiners of
their own before they meet; every block is the same single stream; modulation has no shift, and
norms stand before and behind attention and MLP; both text and image are filled up to a multiple of
32 tokens by learned ones, which take part. diffusers puts the text behind the image, here it
stands before it: order does not matter to tokens that carry positions.

Shapes: B samples, n image tokens, p of them filling up, t text tokens, S = t + p + n, h width, d
width of a head, G segments.

    both          (B, S, h)   text, what fills the canvas up, image tokens ordered by segment
    temb          (B, G, w)   what modulation is made from, for each segment
    rotary        cosine and sine for each pair of a head, (1 or B, S, 1, d / 2, 2)
    position_ids  (n, 3) or (B, n, 3)   frame, row, column; a text's tokens count up to the frame
    tokens        how many tokens each segment has, those that fill up in the first one
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iclora.models.attention import Attend
from iclora.models.double import of_silu
from iclora.models.graphs import Keyed
from iclora.models.linear import linear, linears
from iclora.models.network import Network
from iclora.models.passes import (
    Levels,
    Pass,
    Shapes,
    Streams,
    by_segment,
    compiled,
    gated,
    modulate,
    with_text,
)
from iclora.models.rotary import Rotary, heads

__all__ = ["FILLED", "ZIMAGE", "Attends", "Inputs", "embed", "zimage_forward"]

FILLED = 32
"""Text and image are filled up to a multiple of so many tokens."""

_PATCH = "2-1"
"""The name of the embedder and the last layer for tokens of 2x2 latent pixels of one frame."""


class Attends(NamedTuple):
    """Attention of each sort of block."""

    whole: Attend
    """To text and image."""
    image: Attend
    """Of the image's refiners."""
    text: Attend
    """Of the text's refiners: of each text to itself."""


class Inputs(NamedTuple):
    """The input of a pass; see `zimage_forward`."""

    z: Tensor
    prompt: Tensor
    real: Tensor
    levels: Levels
    position_ids: Tensor
    lengths: tuple[int, ...]
    fill: int


def zimage_forward(
    net: Any,
    inputs: Inputs,
    attends: Attends,
    *,
    recompute: int = 0,
    shapes: Shapes | None = None,
    graphs: Keyed | None = None,
) -> Tensor:
    """What a ZImageTransformer2DModel gives: x0 - eps.

    Args:
        net: the transformer, with LoRA layers or without.
        inputs: z, latent tokens (B, n, c) in the weights' type, ordered by segment, each in the
            model's own order; prompt, the texts' hidden states (B, t, width), each text filled up
            to a multiple of `FILLED`; real (B, t), 0 where it is filled up; the levels of the n
            tokens; position_ids in the order of z, whole numbers; lengths of the texts in the
            prompt; fill, how many tokens fill up the canvas.
        recompute: how many of the blocks keep their input alone for the backward pass.
        shapes: those that blocks are compiled for; None compiles none.
        graphs: those that the pass is recorded in, or replayed from; None runs it as it is.
    Returns: (B, n, c) in the weights' type.
    """
    return ZIMAGE(net, inputs, attends, recompute=recompute, shapes=shapes, graphs=graphs)


# -- the parts of a pass, each to be run and counted by itself (`iclora.models.zimage.outline`) --


@dataclass(frozen=True, kw_only=True)
class _Pass(Pass):
    """What all blocks share here."""

    text: int
    """Text tokens."""
    fill: int
    """Tokens that fill up the canvas."""
    attends: Attends


def embed(
    net: Any, inputs: Inputs, attends: Attends, shapes: Shapes | None = None
) -> tuple[Streams, Pass]:
    """Make the input of the first block, and what all blocks share."""
    z, prompt, real, levels, position_ids, lengths, fill = inputs
    img, txt = net.all_x_embedder[_PATCH](z), net.cap_embedder(prompt)
    txt = torch.where(real[..., None] > 0, txt, net.cap_pad_token.to(txt.dtype))
    both = torch.cat([txt, net.x_pad_token.to(txt.dtype).expand(len(z), fill, -1), img], 1)
    # What fills the canvas up is at the level of the noisy tokens.
    levels = replace(levels, tokens=with_text(levels.tokens, fill))
    temb = levels.embedded(lambda sigma: _embed_levels(net, sigma, img.dtype))
    rotary = _rotary(net.rope_embedder, lengths, fill, position_ids)
    shape = (img.shape, txt.shape, img.dtype, img.device, levels.tokens)
    wanted = shapes is not None and shapes.take(*shape)
    shared = _Pass(
        temb=temb,
        rotary=rotary,
        levels=levels,
        attend=attends.whole,
        compiled=wanted,
        text=txt.shape[1],
        fill=fill,
        attends=attends,
    )
    return (both,), shared


def _embed_levels(net: Any, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """The temb of levels (B, G)."""
    # Its time is the share of the picture: 1 is clean. It is not rounded as in other families.
    temb: Tensor = net.t_embedder((1 - sigma.float().flatten()) * net.t_scale).to(dtype)
    return temb.view(*sigma.shape, -1)


def read_out(net: Any, streams: Streams, shared: Pass) -> Tensor:
    """x0 - eps from what the last block made of the image's tokens."""
    assert isinstance(shared, _Pass)
    last = net.all_final_layer[_PATCH]
    scale = shared.made(last.adaLN_modulation[1], of_silu)
    first, *rest = shared.tokens
    img = streams[0][:, shared.text + shared.fill :]
    img = modulate(img, torch.zeros_like(scale), scale, (first - shared.fill, *rest))
    out: Tensor = last.linear(img)
    return out


def _modules_of(net: Any) -> list[tuple[Any, nn.Module]]:
    kinds = ((_text, net.context_refiner), (_image, net.noise_refiner), (_joint, net.layers))
    return [(run, block) for run, blocks in kinds for block in blocks]


def _modulating(block: Any) -> list[nn.Module]:
    return [block.adaLN_modulation[0]] if block.modulation else []


ZIMAGE = Network(embed, _modules_of, read_out, _modulating)
"""The pass."""


def _rotary(embedder: Any, lengths: tuple[int, ...], fill: int, position_ids: Tensor) -> Rotary:
    ids = position_ids if position_ids.ndim == 3 else position_ids[None]
    frame = ids[:, :1]
    # A text ends where the image's frame is; only distances matter to attention. What fills the
    # canvas up stands before the text.
    far = [torch.arange(-length, 0, device=ids.device) for length in lengths]
    far.append(torch.full((fill,), -1 - max(lengths), device=ids.device))
    others = torch.zeros(len(ids), sum(lengths) + fill, 3, dtype=ids.dtype, device=ids.device)
    others[..., 0] = frame[..., 0] + torch.cat(far)
    places = torch.cat([others, ids], 1)
    turns = embedder(places.flatten(0, 1)).view(*places.shape[:2], 1, -1)
    return torch.view_as_real(turns)


# -- blocks -------------------------------------------------------------------------------------


def _text(block: Any, both: Tensor, shared: _Pass) -> Streams:
    """A refiner of the text alone, which knows no noise level."""
    txt, rest = torch.split(both, [shared.text, both.shape[1] - shared.text], 1)
    rotary = shared.rotary[:, : shared.text]
    txt = _block(block, txt, shared, shared.attends.text, (), rotary, (shared.text,))
    return (torch.cat([txt, rest], 1),)


def _image(block: Any, both: Tensor, shared: _Pass) -> Streams:
    """A refiner of the image alone."""
    txt, img = torch.split(both, [shared.text, both.shape[1] - shared.text], 1)
    rotary = shared.rotary[:, shared.text :]
    mods = _modulations(block, shared)
    img = _block(block, img, shared, shared.attends.image, mods, rotary, shared.tokens)
    return (torch.cat([txt, img], 1),)


def _joint(block: Any, both: Tensor, shared: _Pass) -> Streams:
    """Text and image with the same weights; the text takes the first level."""
    tokens = with_text(shared.tokens, shared.text)
    mods = _modulations(block, shared)
    out = _block(block, both, shared, shared.attend, mods, shared.rotary, tokens)
    return (out,)


def _block(
    block: Any,
    x: Tensor,
    shared: Pass,
    attend: Attend,
    mods: tuple[_Modulation, ...],
    rotary: Rotary,
    tokens: tuple[int, ...],
) -> Tensor:
    before, after = _before, _after
    if shared.compiled:
        before, after = compiled(before), compiled(after)
    qkv = before(block, x, mods, rotary, tokens)
    return after(block, x, attend(*qkv), mods, tokens)


class _Modulation(NamedTuple):
    """The effect of each segment's level on attention or MLP, each (B, G, h)."""

    scale: Tensor
    gate: Tensor


def _modulations(block: Any, shared: _Pass) -> tuple[_Modulation, ...]:
    """Those of attention and MLP."""
    parts = shared.made(block.adaLN_modulation[0], _scales_and_gates).chunk(4, -1)
    return tuple(_Modulation(*parts[i : i + 2]) for i in (0, 2))


def _scales_and_gates(layer: Any, temb: Tensor) -> Tensor:
    """Scale and gate of attention, and those of the MLP, (..., 4 h)."""
    scale, gate, scale_mlp, gate_mlp = linear(layer, temb, often=False).chunk(4, -1)
    return torch.cat([scale, gate.tanh(), scale_mlp, gate_mlp.tanh()], -1)


def _before(
    block: Any, x: Tensor, mods: tuple[_Modulation, ...], rotary: Rotary, tokens: tuple[int, ...]
) -> list[Tensor]:
    """Queries, keys and values."""
    attn = block.attention
    read = _read(x, block.attention_norm1, mods[:1], tokens)
    qkv = linears((attn.to_q, attn.to_k, attn.to_v), read)
    qkv = heads(qkv, attn.norm_q, attn.norm_k, rotary, block.head_dim)
    return [y.transpose(1, 2) for y in qkv]


def _after(
    block: Any, x: Tensor, attended: Tensor, mods: tuple[_Modulation, ...], tokens: tuple[int, ...]
) -> Tensor:
    ff = block.feed_forward
    attended = linear(block.attention.to_out[0], attended)
    x = _added(x, attended, block.attention_norm2, mods[:1], tokens)
    inner = linears((ff.w1, ff.w3), _read(x, block.ffn_norm1, mods[1:], tokens))
    return _added(
        x, linear(ff.w2, torch.cat(inner, -1), "swiglu"), block.ffn_norm2, mods[1:], tokens
    )


def _read(x: Tensor, norm: Any, mod: tuple[_Modulation, ...], tokens: tuple[int, ...]) -> Tensor:
    """x normed, and scaled as each segment's level says."""
    x = _normed(x, norm)
    for own in mod:
        x = by_segment(lambda scale, x: torch.addcmul(x, x, scale), tokens, (own.scale,), x)
    return x


def _added(
    x: Tensor, y: Tensor, norm: Any, mod: tuple[_Modulation, ...], tokens: tuple[int, ...]
) -> Tensor:
    """x + y normed, through each segment's gate."""
    y = _normed(y, norm)
    return gated(x, mod[0].gate, y, tokens) if mod else x + y


def _normed(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
