"""FLUX.1's toyland put into FLUX.2's form, layer by layer, before any training.

Both have the same width, heads and numbers of blocks. What FLUX.2 lacks is made up for: one
modulation for all blocks has, number by number, the curve over the noise level that fits all of
FLUX.1's best; one number of each modulated input is fixed at 1, which stands in for biases; a gated
unit with a constant value is nearly a GELU, and the 575 of 768 units that matter most are kept.
Every layer is then fitted by least squares, on noisy canvases and in the order of the pass, to give
on its own input what FLUX.1's gives on its: so a layer also mends what those before it got wrong.

Text tokens differ: each word is to become what FLUX.1's text has at the same letters, and each of
the template's last ones the mean of its panel's words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iclora.toyland.wording import Caption
from workshop.toyland.klein.network import HEAD, HEADS, WIDE, attend, shape, split, swiglu, turned
from workshop.toyland.klein.reader import ANSWERS
from workshop.toyland.klein.words import SUFFIX, TEXT_TOKENS

__all__ = ["Example", "aligned", "curves", "fit", "translate"]

_UNITS = 3 * WIDE
_STEEP = 1.702
"""gelu(u) is nearly u * sigmoid(1.702 u)."""
_ORDER = torch.tensor([*range(4), *range(8, HEAD), *range(4, 8)])
"""A head's numbers in FLUX.2's order: those that FLUX.1 rotates by nothing are shared among picture
and place in the text."""
_ROWS = torch.cat([_ORDER + HEAD * head for head in range(HEADS)])


@dataclass(frozen=True)
class Example:
    """One batch: what the pass is given, and what FLUX.1 computed on it."""

    z: Tensor
    text: Tensor
    sigma: Tensor
    turn: tuple[Tensor, Tensor]
    to: Tensor
    """(B, T, T): times FLUX.1's text tokens is what this text's tokens are to be."""
    flux: dict[str, Tensor]
    """Outputs of FLUX.1's modules by name, and inputs as NAME:in."""


def aligned(
    captions: Sequence[Caption | None],
    mask: Tensor,
    offsets: Tensor,
    front: int,
    theirs: Tensor,
    real: Tensor,
) -> Tensor:
    """Which of FLUX.1's text tokens each token stands for, (B, T, T), rows adding up to 1.

    Args:
        mask, offsets: of klein's tokens, (B, T) and (B, T, 2); the text begins at letter `front`.
        theirs, real: offsets and mask of FLUX.1's.
    """
    found = torch.zeros(len(captions), TEXT_TOKENS, TEXT_TOKENS)
    for i, caption in enumerate(captions):
        length, count = int(mask[i].sum()), int(real[i].sum())
        found[i, :, :count] = 1.0
        if count < TEXT_TOKENS:
            found[i, length:] = 0
            found[i, length:, count:] = 1.0
        if caption is None:
            continue
        ends = theirs[i, :count, 1]
        for place in range(length - SUFFIX):
            start, end = offsets[i, place].tolist()
            if end <= front or start == end:
                continue
            at = int((ends < end - front).sum())
            found[i, place] = 0
            found[i, place, min(at, count - 1)] = 1.0
        for place, number in enumerate(ANSWERS):
            if 0 < number <= len(caption.spans):
                start, end = caption.spans[number - 1]
                inside = (ends > start) & (ends <= end)
                if inside.any():
                    row = found[i, length - SUFFIX + place]
                    row.zero_()
                    row[:count][inside] = 1.0
    return found / found.sum(-1, keepdim=True)


def fit(inputs: Sequence[Tensor], targets: Sequence[Tensor], ridge: float = 1e-4) -> Tensor:
    """The matrix (out, in) that makes targets (..., out) of inputs (..., in) as nearly as any."""
    width = inputs[0].shape[-1]
    square = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, targets[0].shape[-1], dtype=torch.float64)
    for x, y in zip(inputs, targets, strict=True):
        flat = x.flatten(0, -2).double()
        square += flat.T @ flat
        cross += flat.T @ y.flatten(0, -2).double()
    square += ridge * square.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    found: Tensor = torch.linalg.solve(square, cross).T.float()
    return found


def curves(scale: Tensor, shift: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One scale, shift and gate (levels, h) for several blocks that have (blocks, levels, h).

    Blocks may differ by a factor and an added constant, which their layers can take over.
    """
    moving = shift - shift.mean(1, keepdim=True)
    both = torch.cat([1 + scale, moving], 1).permute(2, 0, 1)
    first = torch.linalg.svd(both, full_matrices=False)[2][:, 0]
    levels = scale.shape[1]
    size = first[:, :levels].mean(-1, keepdim=True)
    size = torch.where(size.abs() < 1e-3, size.sign() + (size == 0), size)
    first = (first / size).clamp(-4, 4)
    way = torch.linalg.svd(gate.permute(2, 0, 1), full_matrices=False)[2][:, 0]
    way = way / way.square().mean(-1, keepdim=True).sqrt()
    way = way * way.mean(-1, keepdim=True).sign()
    return first[:, :levels].T - 1, first[:, levels:].T, way.T


@torch.no_grad()
def translate(
    net: Any,
    flux: Any,
    examples: Sequence[Example],
    pooled: Tensor,
    say: Callable[..., None] = lambda **_: None,
) -> None:
    """Fill a painter with what FLUX.1's toyland does.

    Args:
        examples: hundreds of canvases of all arrangements; more fit better.
        pooled: FLUX.1's pooled text of some captions; FLUX.2 has none, so their mean is taken.
        say: hears how far each block's image tokens are from FLUX.1's, in parts of their variance.
    """
    work = _Translation(net, flux, examples, pooled, say)
    net.x_embedder.weight.copy_(flux.x_embedder.weight)
    goal = [e.to @ e.flux["context_embedder"] for e in examples]
    net.context_embedder.weight.copy_(fit([e.text for e in examples], goal, 1e-3))
    image = [net.x_embedder(e.z) for e in examples]
    text = [net.context_embedder(e.text) for e in examples]
    sides = work.sides(image, text)
    for number in range(len(net.transformer_blocks)):
        work.double(number, *sides)
    both = [torch.cat(pair, 1) for pair in zip(text, image, strict=True)]
    work.singles(both)
    work.last([y[:, TEXT_TOKENS:] for y in both])


@dataclass(frozen=True)
class _Side:
    """Image or text in a double block."""

    stream: list[Tensor]
    mods: list[Tensor]
    """The modulation of each example, (B, 1, 6h)."""
    constants: list[int]
    qkv: tuple[str, str, str]
    norms: tuple[str, str]
    out: str
    middle: str
    """FLUX.1's norm before the MLP: what it is given is the stream behind attention."""
    mlp: str
    name: str
    part: slice
    to: Callable[[list[Tensor]], list[Tensor]]
    """From FLUX.1's tokens to those of the painter."""

    def read(self, at: int) -> list[Tensor]:
        """The modulated stream; `at` is where shift and scale are."""
        return [
            shape(y, _mod(m, at), _mod(m, at + 1))
            for y, m in zip(self.stream, self.mods, strict=True)
        ]

    def gates(self, at: int) -> list[Tensor]:
        return [_mod(m, at) for m in self.mods]


class _Translation:
    """The work on one painter, layer by layer."""

    def __init__(
        self,
        net: Any,
        flux: Any,
        examples: Sequence[Example],
        pooled: Tensor,
        say: Callable[..., None],
    ) -> None:
        self.net, self.flux, self.examples, self.say = net, flux, examples, say
        even = (torch.arange(192) + 0.5) / 192
        drawn = torch.sigmoid(1 + 1.3 * torch.special.ndtri(even))
        # All levels: samplers begin at 1, which hardly any canvas is drawn at.
        self.grid = torch.cat([drawn, torch.linspace(0, 1, 513)])
        count = len(self.grid)
        embed = flux.time_text_embed
        one = torch.full((count,), 1000.0)
        told = [embed(self.grid * 1000, one, p[None].expand(count, -1)) for p in pooled[:12]]
        self.theirs = F.silu(torch.stack(told))
        """FLUX.1's embedding of the levels in `grid`, (captions, levels, h)."""
        mine = net.time_guidance_embed.timestep_embedder
        mine.linear_1.weight.copy_(embed.timestep_embedder.linear_1.weight)
        mine.linear_2.weight.copy_(embed.timestep_embedder.linear_2.weight)

    def _temb(self, sigma: Tensor) -> Tensor:
        found: Tensor = F.silu(self.net.time_guidance_embed(sigma * 1000, None))
        return found

    def _modulate(
        self, linear: Any, layers: Sequence[Any], readers: Sequence[Sequence[Tensor]]
    ) -> tuple[list[Tensor], list[int]]:
        """Fit a shared modulation.

        Args:
            layers: FLUX.1's, one a block.
            readers: weights that read each part's input; the number that matters least to them
                becomes the constant.
        Returns: the modulation of each example, and each part's constant.
        """
        told = torch.stack([layer(self.theirs).mean(0) for layer in layers])
        parts, constants = [], []
        for part, weights in enumerate(readers):
            shift, scale, gate = told[..., 3 * part * WIDE : 3 * (part + 1) * WIDE].chunk(3, -1)
            scale, shift, gate = curves(scale, shift, gate)
            least = int(sum(w.square().sum(0) for w in weights).argmin())  # type: ignore[union-attr]
            scale[:, least], shift[:, least] = -1.0, 1.0
            constants.append(least)
            parts += [shift, scale, gate]
        linear.weight.copy_(fit([self._temb(self.grid)], [torch.cat(parts, -1)], 1e-4))
        return [linear(self._temb(e.sigma))[:, None] for e in self.examples], constants

    def _as_text(self, values: list[Tensor]) -> list[Tensor]:
        return [e.to @ y for e, y in zip(self.examples, values, strict=True)]

    def _as_both(self, values: list[Tensor]) -> list[Tensor]:
        t = TEXT_TOKENS
        return [
            torch.cat([e.to @ y[:, :t], y[:, t:]], 1)
            for e, y in zip(self.examples, values, strict=True)
        ]

    def _theirs(self, name: str) -> list[Tensor]:
        return [e.flux[name] for e in self.examples]

    def sides(self, image: list[Tensor], text: list[Tensor]) -> tuple[_Side, _Side]:
        """Text and image as double blocks see them, their modulation fitted."""
        net, blocks = self.net, self.flux.transformer_blocks
        qkv = ("to_q", "to_k", "to_v")
        added = ("add_q_proj", "add_k_proj", "add_v_proj")
        ours, theirs = (
            self._modulate(
                linear,
                [getattr(b, norm).linear for b in blocks],
                [
                    [getattr(b.attn, key).weight for b in blocks for key in keys],
                    [getattr(b, mlp).net[0].proj.weight for b in blocks],
                ],
            )
            for linear, norm, keys, mlp in (
                (net.double_stream_modulation_img.linear, "norm1", qkv, "ff"),
                (net.double_stream_modulation_txt.linear, "norm1_context", added, "ff_context"),
            )
        )
        t = TEXT_TOKENS
        norms = ("norm_added_q", "norm_added_k")
        return (
            _Side(
                text, *theirs, added, norms, "to_add_out", "norm2_context", "ff_context", "text",
                slice(t), self._as_text,
            ),
            _Side(
                image, *ours, qkv, ("norm_q", "norm_k"), "to_out.0", "norm2", "ff", "image",
                slice(t, None), list,
            ),
        )  # fmt: skip

    def double(self, number: int, *sides: _Side) -> None:
        """Fit a double block; the streams become its output."""
        name = f"transformer_blocks.{number}"
        mine, own = self.net.get_submodule(name), self.flux.get_submodule(name)
        heads = []
        for side in sides:
            n = side.read(0)
            for norm in side.norms:
                getattr(mine.attn, norm).weight.copy_(getattr(own.attn, norm).weight[_ORDER])
            for key, rows in zip(side.qkv, (_ROWS, _ROWS, torch.arange(WIDE)), strict=True):
                weight = fit(n, side.to(self._theirs(f"{name}.attn.{key}")))
                getattr(mine.attn, key).weight.copy_(weight[rows])
            norms = [getattr(mine.attn, norm).weight for norm in side.norms]
            layers = [getattr(mine.attn, key) for key in side.qkv]
            heads.append(
                [
                    self._heads([layer(y) for layer in layers], norms, e.turn, side.part)
                    for y, e in zip(n, self.examples, strict=True)
                ]
            )
        attended = []
        for (qt, kt, vt), (qi, ki, vi) in zip(*heads, strict=True):
            q, k, v = torch.cat([qt, qi], 2), torch.cat([kt, ki], 2), torch.cat([vt, vi], 1)
            attended.append(attend(q, k, v))
        for side in sides:
            goal = side.to(self._theirs(f"{name}.{side.middle}:in"))
            out = mine.attn.get_submodule(side.out).weight
            _close(out, [o[:, side.part] for o in attended], goal, side.stream, side.gates(2))
            n, ff, theirs = side.read(3), getattr(mine, side.mlp), getattr(own, side.mlp)
            pre = side.to(self._theirs(f"{name}.{side.mlp}.net.0.proj"))
            ff.linear_in.weight.copy_(_mlp_in(n, pre, theirs.net[2].weight, side.constants[1]))
            inner = [swiglu(ff.linear_in(y)) for y in n]
            goal = side.to(self._theirs(f"{name}:{side.name}"))
            _close(ff.linear_out.weight, inner, goal, side.stream, side.gates(5))
            self.say(block=name, stream=side.name, off=_off(side.stream, goal))

    def _heads(
        self,
        qkv: Sequence[Tensor],
        norms: Sequence[Tensor],
        turn: tuple[Tensor, Tensor],
        part: slice,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys normed and turned, and values, split into heads."""
        q, k, v = (split(y) for y in qkv)
        cos, sin = turn[0][:, part], turn[1][:, part]
        return turned(q, norms[0], cos, sin), turned(k, norms[1], cos, sin), v

    def singles(self, both: list[Tensor]) -> None:
        """Fit the single blocks; the streams become the last one's output."""
        net, blocks = self.net, self.flux.single_transformer_blocks
        keys = ("to_q", "to_k", "to_v")
        readers = [
            w
            for b in blocks
            for w in (*(getattr(b.attn, k).weight for k in keys), b.proj_mlp.weight)
        ]
        mods, (constant,) = self._modulate(
            net.single_stream_modulation.linear, [b.norm.linear for b in blocks], [readers]
        )
        for number, (mine, own) in enumerate(
            zip(net.single_transformer_blocks, blocks, strict=True)
        ):
            name, a = f"single_transformer_blocks.{number}", mine.attn
            norms = [a.norm_q.weight, a.norm_k.weight]
            norms[0].copy_(own.attn.norm_q.weight[_ORDER])
            norms[1].copy_(own.attn.norm_k.weight[_ORDER])
            n = [shape(y, _mod(m, 0), _mod(m, 1)) for y, m in zip(both, mods, strict=True)]
            q, k, v = (fit(n, self._as_both(self._theirs(f"{name}.attn.{key}"))) for key in keys)
            pre = self._as_both(self._theirs(f"{name}.proj_mlp"))
            into = _mlp_in(n, pre, own.proj_out.weight[:, WIDE:], constant)
            a.to_qkv_mlp_proj.weight.copy_(torch.cat([q[_ROWS], k[_ROWS], v, into]))
            inner = []
            for y, e in zip(n, self.examples, strict=True):
                *qkv, mlp = a.to_qkv_mlp_proj(y).split([WIDE] * 3 + [2 * _UNITS], -1)
                q, k, v = self._heads(qkv, norms, e.turn, slice(None))
                inner.append(torch.cat([attend(q, k, v), swiglu(mlp)], -1))
            streams = zip(self._theirs(f"{name}:text"), self._theirs(f"{name}:image"), strict=True)
            goal = self._as_both([torch.cat(pair, 1) for pair in streams])
            _close(a.to_out.weight, inner, goal, both, [_mod(m, 2) for m in mods])
            some = slice(TEXT_TOKENS, None)
            self.say(block=name, off=_off([y[:, some] for y in both], [g[:, some] for g in goal]))

    def last(self, image: list[Tensor]) -> None:
        """Fit what makes the velocity of the last block's tokens."""
        told = self.flux.norm_out.linear(self.theirs).mean(0)
        linear = self.net.norm_out.linear
        linear.weight.copy_(fit([self._temb(self.grid)], [told], 1e-4))
        normed = []
        for y, e in zip(image, self.examples, strict=True):
            scale, shift = linear(self._temb(e.sigma))[:, None].chunk(2, -1)
            normed.append(shape(y, shift, scale))
        goal = self._theirs("proj_out")
        self.net.proj_out.weight.copy_(fit(normed, goal))
        self.say(block="velocity", off=_off([self.net.proj_out(y) for y in normed], goal))


def _mod(mods: Tensor, at: int) -> Tensor:
    return mods[..., at * WIDE : (at + 1) * WIDE]


def _mlp_in(n: Sequence[Tensor], pre: Sequence[Tensor], out: Tensor, constant: int) -> Tensor:
    """The layer into a gated MLP, (2 * units, h), gates before values; the last unit is constant.

    Args:
        n: its inputs.
        pre: what FLUX.1's units are given, and `out`, the layer that reads them: the units are
            kept whose output moves most.
    """
    moved = torch.cat([F.gelu(p, approximate="tanh").flatten(0, -2) for p in pre]).var(0)
    kept = (moved * out.square().sum(0)).topk(_UNITS - 1).indices.sort().values
    gates, values = torch.zeros(2, _UNITS, WIDE)
    gates[:-1] = _STEEP * fit(n, [p[..., kept] for p in pre])
    values[:, constant] = 1 / _STEEP
    gates[-1, constant] = values[-1, constant] = 1.0
    return torch.cat([gates, values])


def _close(
    weight: Tensor,
    inner: Sequence[Tensor],
    goal: Sequence[Tensor],
    stream: list[Tensor],
    gates: Sequence[Tensor],
) -> None:
    """Fit a layer that adds to the stream, through a gate, what is missing; and add it."""
    # A gate is near 1 by how curves are scaled; where it is not, its inverse would be noise.
    missing = [
        (g - y) * gate / (gate.square() + 0.01)
        for g, y, gate in zip(goal, stream, gates, strict=True)
    ]
    weight.copy_(fit(inner, missing))
    for i, (y, gate) in enumerate(zip(inner, gates, strict=True)):
        stream[i] = stream[i] + gate * F.linear(y, weight)


def _off(mine: Sequence[Tensor], goal: Sequence[Tensor]) -> float:
    a, b = (torch.cat([y.flatten(0, 1) for y in some]) for some in (mine, goal))
    return round(float(((a - b).square().mean(0) / b.var(0).clamp(min=1e-6)).mean()), 4)
