"""How a pass reads a canvas: which tokens of it are given, and which panel reads which text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from iclora.sets.layout import Layout
from iclora.sets.tokens import token_owners

__all__ = ["Given", "Panels"]


@dataclass(frozen=True)
class Given:
    """Tokens of a canvas whose content is given, and how the denoiser is to read them."""

    tokens: Tensor
    """bool (n,), True at given tokens; or (B, n), with as many in every sample, if they are clean.
    On the CPU they are counted without waiting for the device."""
    clean: bool = False
    """They carry no noise, and the denoiser is told so, token by token."""
    isolated: bool = False
    """They attend to each other only, so that they are the same whatever the rest shows."""
    scale: float = 1.0
    """Factor on the attention that the rest of the canvas pays them."""
    cache: list[tuple[Tensor, Tensor]] | None = field(default=None, compare=False)
    """With `isolated`, an empty list for their keys and values. The base fills it once; as long
    as the same list is passed, given tokens are not computed again."""
    references: Tensor | None = field(default=None, compare=False)
    """int (n,) on the CPU: 0 at tokens of the canvas, k at those of reference k, from 1. References
    are left off the canvas and read beside it as the base was trained to read pictures, for a
    base with `reads_references`. Each is a rectangle."""
    count: int = field(init=False)
    """Given tokens of a sample, counted at construction."""

    def __post_init__(self) -> None:
        assert self.cache is None or (self.isolated and self.clean), "what changes is not cached"
        assert self.scale == 1 or not self.clean, "clean tokens need no scale"
        assert self.tokens.ndim == 1 or self.clean, "only clean tokens may differ in a batch"
        plain = not self.clean and self.scale == 1
        assert self.references is None or plain, "references are read in one way"
        count = int(self.tokens.view(-1, self.tokens.shape[-1])[0].sum())
        object.__setattr__(self, "count", count)

    def on(self, device: torch.device) -> Tensor:
        """The tokens on a device, where they are moved once."""
        if device not in self._on:
            self._on[device] = self.tokens.to(device)
        return self._on[device]

    @cached_property
    def _on(self) -> dict[torch.device, Tensor]:
        return {}


@dataclass(frozen=True)
class Panels:
    """The panels of a canvas of which each reads a text of its own.

    An image token attends to all image tokens and to its panel's text alone; a text token to its
    own text and to its panel's image tokens. So no panel's words reach another panel but through
    what is painted.

    Source: Huang et al. 2024 (Group Diffusion Transformers, arXiv 2410.15027), for a base whose
    texts attend, too.
    """

    owner: Tensor
    """int64 (n,), the panel of each image token, from 0; on the CPU."""
    lengths: tuple[int, ...]
    """Tokens of each panel's text, in the order in which `DiffusionModel.join_texts` put them."""

    @classmethod
    def of(cls, layout: Layout, lengths: Sequence[int], grid: int) -> Panels | None:
        """The panels of a canvas, or None if there is one text, which all of them read.

        Args:
            lengths: tokens of each text.
            grid: edge of a token, px.
        """
        if len(lengths) == 1:
            return None
        assert len(lengths) == layout.panels, "one text, or one for each panel"
        return cls(torch.from_numpy(token_owners(layout, grid)).flatten(), tuple(lengths))

    @cached_property
    def order(self) -> Tensor | None:
        """What brings each panel's tokens together; None if they stand so."""
        together = bool((self.owner.diff() >= 0).all())
        return None if together else torch.argsort(self.owner, stable=True)

    def shares(self, given: Given | None) -> tuple[list[int], list[int]]:
        """How many image tokens of each panel are noisy, and how many are given, clean."""
        clean = torch.zeros_like(self.owner, dtype=torch.bool)
        if given is not None and given.clean and given.count:
            rows = given.tokens.view(-1, len(clean)).cpu()
            clean = rows[0]
            assert (rows == clean).all(), "samples that read texts apart have equal panels given"
        counts = [self.owner[of].bincount(minlength=len(self.lengths)) for of in (~clean, clean)]
        return counts[0].tolist(), counts[1].tolist()
