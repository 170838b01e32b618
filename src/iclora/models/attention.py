"""Attention by the fastest way a device has, and how given tokens are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from iclora.models.attention_cpu import Attend, blockwise, fused, shortest, steady
from iclora.models.base import Given, Panels
from iclora.models.kernels import chooser

__all__ = [
    "Attend",
    "Cache",
    "Shares",
    "alone",
    "attention_to",
    "blockwise",
    "by_parts",
    "grouped",
    "isolated",
    "parts_of",
    "pick_attention",
    "reading",
    "scaled",
    "shortest",
    "steady",
]

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of given tokens, block by block, each (B, heads, given, d)."""


def pick_attention(device: torch.device, on_cpu: Attend = shortest) -> Attend:
    """`on_cpu` on a CPU; the kernel that is the fastest there on a card; else torch's own."""
    if device.type == "cuda":
        return chooser(device)
    return on_cpu if device.type == "cpu" else fused


def grouped(attend: Attend) -> Attend:
    """Attention whose keys and values have fewer heads than its queries: each serves several.

    They are repeated here, innermost, so that what is cached of them is not.
    """

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        each = q.shape[1] // k.shape[1]
        return attend(q, k.repeat_interleave(each, 1), v.repeat_interleave(each, 1))

    return run


def attention_to(
    given: Given | None,
    text_tokens: int,
    device: torch.device,
    panels: Panels | None = None,
    order: Tensor | None = None,
    pads: int = 0,
    attend: Attend | None = None,
) -> Attend:
    """Attention as given tokens and texts are to be read, in the order of `passes.segments`.

    Args:
        text_tokens: those that stand before the image.
        order: of the image's tokens, without `pads`.
        pads: tokens that stand before the image's own and show nothing, of a family that fills
            canvases up. They read and are read as image tokens, and read no text of a panel.
        attend: by default the best one for the device.
    """
    attend = rest = attend or pick_attention(device)
    if panels is not None:
        alone = given is not None and given.isolated
        shares = Shares(panels.lengths, *panels.shares(given))
        if pads:
            # As a panel of their own that has no text.
            shares = Shares((0, *shares.texts), (pads, *shares.noisy), (0, *shares.given))
        rest = by_parts(attend, parts_of(shares, given_rows=not alone))
    if given is None or not given.count:
        return rest
    if given.cache:
        return reading(rest, given.cache)
    if given.isolated:
        assert given.clean, "noisy tokens are in no order of their own"
        return isolated(attend, given.count, given.cache, rest)
    if given.scale != 1:
        tokens = given.on(device)
        tokens = tokens if order is None else tokens[order]
        return scaled(rest, tokens, text_tokens + pads, given.scale)
    return rest


# -- given tokens -------------------------------------------------------------------------------


def scaled(attend: Attend, given: Tensor, text_tokens: int, factor: float) -> Attend:
    """Multiply the attention that the other image tokens pay the given ones by `factor`.

    That is adding log(factor) to their scores, which one more dimension of q and k does in a
    single call of any kernel, without a mask of (S, S). Reference attention is scaled so by Shin
    et al. 2024 (Diptych Prompting, arXiv 2411.15466).

    Args:
        given: bool (n,), of the image tokens, which stand behind `text_tokens` text tokens.
    """

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        d = q.shape[-1]
        # Kernels want multiples of 8, and scale by the width they see.
        wide = d + 8
        asks = torch.cat([given.new_zeros(text_tokens), ~given]).to(q.dtype) * math.sqrt(wide)
        tells = torch.cat([given.new_zeros(text_tokens), given]).to(q.dtype) * math.log(factor)
        q = F.pad(q * math.sqrt(wide / d), (0, 8))
        k, v = F.pad(k, (0, 8)), F.pad(v, (0, 8))
        q[..., d], k[..., d] = asks, tells
        out = attend(q, k, v)
        return out.view(*out.shape[:-1], -1, wide)[..., :d].flatten(-2)

    return run


def isolated(
    attend: Attend, given: int, cache: Cache | None = None, rest: Attend | None = None
) -> Attend:
    """The last `given` tokens attend to each other alone; the others to all.

    Args:
        cache: takes the given tokens' keys and values, block by block.
        rest: attention of the others, by default `attend`.
    """
    rest = rest or attend

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        at = q.shape[2] - given
        own = (k[:, :, at:], v[:, :, at:])
        if cache is not None:
            cache.append((own[0].clone(), own[1].clone()))
        return torch.cat([rest(q[:, :, :at], k, v), attend(q[:, :, at:], *own)], 1)

    return run


def reading(attend: Attend, cache: Cache) -> Attend:
    """Attention to all tokens that are computed, and to the given ones that `isolated` cached."""
    blocks = iter(cache)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = next(blocks)
        return attend(q, torch.cat([k, keys], 2), torch.cat([v, values], 2))

    return run


# -- panels that read texts of their own --------------------------------------------------------


class Shares(NamedTuple):
    """How many tokens of a pass are each panel's; they stand in this order."""

    texts: Sequence[int]
    noisy: Sequence[int]
    """Image tokens without those that are given, clean."""
    given: Sequence[int]


_Part = tuple[slice, tuple[slice, ...]]
"""Rows of q, and the columns of k and v that these attend to."""


def parts_of(shares: Shares, given_rows: bool) -> list[_Part]:
    """Attention in which each panel reads a text of its own, as parts without a mask.

    Image tokens attend to all image tokens and to their panel's text; a text to itself and to its
    panel's image tokens.

    Args:
        given_rows: True if given tokens attend so, too; False leaves their rows out, for those
            that attend to each other alone or whose keys are cached.
    """
    ends = list(accumulate(chain(*shares), initial=0))
    spans = [slice(*ends) for ends in pairwise(ends)]
    count = len(shares.texts)
    texts, noisy, given = spans[:count], spans[count : 2 * count], spans[2 * count :]
    image = slice(sum(shares.texts), ends[-1])
    parts = [(text, (text, *own)) for text, *own in zip(texts, noisy, given, strict=True)]
    for rows in (noisy, given)[: 1 + given_rows]:
        pairs = zip(rows, texts, strict=True)
        parts += [(span, (text, image) if _some(text) else (image,)) for span, text in pairs]
    return _joined((rows, _touching(columns)) for rows, columns in parts)


def _some(span: slice) -> bool:
    return bool(span.stop > span.start)


def _touching(spans: Sequence[slice]) -> tuple[slice, ...]:
    """Spans in order, without empty ones, those that touch as one."""
    found: list[slice] = []
    for span in spans:
        if found and found[-1].stop == span.start:
            found[-1] = slice(found[-1].start, span.stop)
        elif _some(span):
            found.append(span)
    return tuple(found)


def _joined(parts: Iterable[_Part]) -> list[_Part]:
    """Parts without empty ones, neighbours with the same columns as one."""
    found: list[_Part] = []
    for rows, columns in parts:
        if found and found[-1][1] == columns:
            found[-1] = (slice(found[-1][0].start, rows.stop), columns)
        elif _some(rows):
            found.append((rows, columns))
    return found


def alone(attend: Attend, lengths: Sequence[int]) -> Attend:
    """Attention of texts of these lengths, one after the other, each to itself."""
    if len(lengths) == 1:
        return attend
    none = [0] * len(lengths)
    return by_parts(attend, parts_of(Shares(lengths, none, none), given_rows=False))


def by_parts(attend: Attend, parts: Sequence[_Part]) -> Attend:
    """Attention of each part's rows to its own columns; the parts' rows are those of q in order."""
    lengths = [rows.stop - rows.start for rows, _ in parts]
    groups = _apart(span for _, own in parts for span in own)

    def cut(x: Tensor) -> Callable[[Sequence[slice]], Tensor]:
        # The gradient of a slice is as large as what was cut. So x is split where no part reads
        # across, and what several parts read is cut once.
        pieces = _split(x, [group.stop - group.start for group in groups])

        @cache
        def one(start: int, stop: int) -> Tensor:
            at = next(n for n, group in enumerate(groups) if start < group.stop)
            off = groups[at].start
            whole = (start, stop) == (off, groups[at].stop)
            return pieces[at] if whole else pieces[at][:, :, start - off : stop - off]

        def some(columns: Sequence[slice]) -> Tensor:
            found = [one(span.start, span.stop) for span in columns]
            return found[0] if len(found) == 1 else torch.cat(found, 2)

        return some

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = cut(k), cut(v)
        rows = zip(_split(q, lengths), parts, strict=True)
        out = [attend(part, keys(own), values(own)) for part, (_, own) in rows]
        return out[0] if len(out) == 1 else torch.cat(out, 1)

    return run


def _split(x: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.split(x, lengths, 2)
    return found


def _apart(spans: Iterable[slice]) -> list[slice]:
    """The spans in order, those that share tokens as one."""
    found: list[slice] = []
    for span in sorted(spans, key=lambda span: span.start):
        if found and span.start < found[-1].stop:
            found[-1] = slice(found[-1].start, max(found[-1].stop, span.stop))
        else:
            found.append(span)
    return found
