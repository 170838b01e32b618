"""Qwen-Image's forward pass, our own, over the modules and weights of diffusers and PEFT.

As in FLUX.1 (`iclora.models.flux.forward`), tokens may have different noise levels and as many
blocks are recomputed as memory asks for. What differs: every block has weights of their own for
image and text; rows and columns are counted from the canvas's middle, and a text's tokens go on
where its longer side ends; there is no pooled text and no guidance embedding.

Shapes: B samples, n image tokens, t text tokens, S = t + n, h width, d width of a head, G segments.

    img           (B, n, h)   image tokens, ordered by segment
    txt           (B, t, h)   text tokens
    temb          (B, G, h)   what modulation is made from, for each segment
    rotary        cosine and sine for each pair of a head, (1 or B, S, 1, d / 2, 2)
    position_ids  (n, 3) or (B, n, 3)   frame, row, column; a text token's are its place three times
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iclora.models.attention import Attend, pick_attention
from iclora.models.double import Parts, double_block
from iclora.models.graphs import Keyed
from iclora.models.network import Network, read_out
from iclora.models.passes import Levels, Pass, Shapes, Streams
from iclora.models.rotary import Rotary

__all__ = ["QWEN_IMAGE", "Inputs", "embed", "qwen_image_forward"]


class Inputs(NamedTuple):
    """The input of a pass; see `qwen_image_forward`."""

    z: Tensor
    prompt: Tensor
    levels: Levels
    position_ids: Tensor
    start: int
    """The place of a text's first token."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each text in the prompt; None if it is one text."""


def qwen_image_forward(
    net: Any,
    inputs: Inputs,
    *,
    recompute: int = 0,
    attend: Attend | None = None,
    shapes: Shapes | None = None,
    graphs: Keyed | None = None,
) -> Tensor:
    """The velocity that a QwenImageTransformer2DModel gives.

    Args:
        net: the transformer, with LoRA layers or without.
        inputs: z, latent tokens (B, n, c) in the weights' type, ordered by segment; prompt, the
            text's hidden states (B, t, width), without padding; the levels of the n tokens;
            position_ids in the order of z, float32; start; lengths of the texts in the prompt,
            each of which counts its tokens from the start.
        recompute: how many of the blocks keep their input alone for the backward pass.
        attend: by default the best one for the device.
        shapes: those that blocks are compiled for; None compiles none.
        graphs: those that the pass is recorded in, or replayed from; None runs it as it is.
    Returns: (B, n, c) in the weights' type.
    """
    attend = attend or pick_attention(inputs.z.device)
    return QWEN_IMAGE(net, inputs, attend, recompute=recompute, shapes=shapes, graphs=graphs)


# -- the parts of a pass, each to be run and counted by itself (`qwen_image.outline`) ------------


def embed(
    net: Any, inputs: Inputs, attend: Attend, shapes: Shapes | None = None
) -> tuple[Streams, Pass]:
    """Make the input of the first block, and what all blocks share."""
    z, prompt, levels, position_ids, start, lengths = inputs
    img, txt = net.img_in(z), net.txt_in(net.txt_norm(prompt))
    temb = levels.embedded(lambda sigma: _embed_levels(net.time_text_embed, sigma, img))
    rotary = _rotary(net.pos_embed, start, lengths or (txt.shape[1],), position_ids)
    shape = (img.shape, txt.shape, img.dtype, img.device, levels.tokens)
    wanted = shapes is not None and shapes.take(*shape)
    return (img, txt), Pass(temb, rotary, levels, attend, wanted)


def _parts(block: Any) -> Parts:
    return Parts(block.img_mod[1], block.txt_mod[1], block.img_mlp, block.txt_mlp)


def _modules_of(net: Any) -> list[tuple[Any, nn.Module]]:
    return [(partial(double_block, _parts), block) for block in net.transformer_blocks]


def _modulating(block: Any) -> list[nn.Module]:
    return [block.img_mod[1], block.txt_mod[1]]


QWEN_IMAGE = Network(embed, _modules_of, read_out, _modulating)
"""The pass."""


def _embed_levels(embedder: Any, sigma: Tensor, like: Tensor) -> Tensor:
    """The temb of levels (B, G)."""
    # Rounded before the embedder multiplies it by 1000, as in diffusers.
    temb: Tensor = embedder(sigma.to(like.dtype).flatten(), like)
    return temb.view(*sigma.shape, -1)


def _rotary(embedder: Any, start: int, lengths: tuple[int, ...], position_ids: Tensor) -> Rotary:
    ids = position_ids if position_ids.ndim == 3 else position_ids[None]
    at = ids.device
    text = torch.cat([torch.arange(start, start + n, device=at) for n in lengths]).to(ids)
    places = torch.cat([text[None, :, None].expand(len(ids), -1, ids.shape[-1]), ids], 1)
    # By the formula: diffusers looks angles up in two tables, of places below 0 and of others.
    angles = [
        places[..., axis, None] * _frequencies(embedder.theta, width, ids.device)
        for axis, width in enumerate(embedder.axes_dim)
    ]
    angle = torch.cat(angles, -1)[:, :, None]
    return torch.stack([angle.cos(), angle.sin()], -1)


def _frequencies(theta: float, width: int, device: torch.device) -> Tensor:
    """What a step of one turns each pair of an axis's numbers by, (width / 2,) float32."""
    steps = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    return 1 / torch.pow(theta, steps / width)
