"""Noise levels: those of a pass's tokens, and those of all steps of a sampling.

Modulation depends on a token's level, on texts and guidance, and never on the canvas. While
sampling all levels are known before the first step, and the rest stays as it is. So each layer that
modulates is computed once, for all levels as the rows of one product, and a step picks its own: the
weights of these layers, 27% of FLUX.1-dev's (6.5 GB in bf16), are read once and not at every step.

Shapes: B samples, G segments of a pass, L levels of a sampling, h width; R is B, or 1 where samples
do not differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Levels", "Rows", "Schedule", "Step", "once"]

T = TypeVar("T")

Rows = Tensor | tuple[Tensor, ...]
"""Of each level what was made of it, (R, width)."""

_ROWS = 31
"""Rows of one product at most: with more, a layer in fp8 would round them to fp8, too, as it does
where rows are many (`iclora.models.quantize`), and steps would be modulated more coarsely."""


class Schedule:
    """The levels of one sampling; what was made of them is let go when its block ends.

    It keeps `nbytes` until then: for each level all numbers by which blocks are modulated, those of
    FLUX.1-dev 344 times its width (2.1 MB a level and sample in bf16; 44 MB for 20 steps), and once
    for all samples where no text decides them (Qwen-Image: 4.4 MB a level).

    Args:
        sigmas: decreasing, from 1 to a final 0, which clean given tokens are at.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.levels = tuple(dict.fromkeys(map(float, sigmas)))
        assert self.levels[-1] == 0, "a schedule ends at 0"
        self._temb: Rows | None = None
        self._made: dict[int, Rows] = {}
        """What each layer made, by its id: layers outlive a sampling."""
        self._once: dict[Hashable, Any] = {}

    def __enter__(self) -> Schedule:
        return self

    def __exit__(self, *error: object) -> None:
        self._temb = None
        self._made.clear()
        self._once.clear()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(int(row.nbytes) for kept in self.kept().values() for row in kept)

    def kept(self) -> dict[int | None, Rows]:
        """What was made so far: the temb under None, and what layers made of it by their ids."""
        found: dict[int | None, Rows] = {} if self._temb is None else {None: self._temb}
        found.update(self._made.items())
        return found

    @classmethod
    def of(cls, sigmas: Sequence[float], kept: Mapping[int | None, Rows]) -> Schedule:
        """One of whose levels all this was made."""
        made = cls(sigmas)
        made._temb = kept[None]
        made._made = {layer: rows for layer, rows in kept.items() if layer is not None}
        return made

    def at(self, sigma: float) -> Step:
        """The step that begins at one of the levels; each repetition of a step is at its level."""
        return Step(self, (self.levels.index(sigma), len(self.levels) - 1))

    def embedded(self, embed: Callable[[Tensor], Tensor], sigma: Tensor, samples: int) -> Rows:
        """The temb of all levels, (L, R, h).

        Args:
            embed: makes that of levels, (R, L) to (R, L, h).
            sigma: of a step, for the type and device.
            samples: for which it is made apart, R.
        """
        if self._temb is None:
            levels = sigma.new_tensor(self.levels).expand(samples, -1)
            # Levels first, so that each level's numbers lie together.
            turned = embed(levels).transpose(0, 1)
            self._temb = turned.clone(memory_format=torch.contiguous_format)
        return self._temb

    def made(self, layer: Any, make: Callable[[Any, Tensor], Tensor]) -> Rows:
        """What `make` makes of a layer and the temb of all levels, (L, R, width)."""
        if id(layer) not in self._made:
            assert isinstance(self._temb, Tensor), "levels are embedded before layers read them"
            parts = torch.split(self._temb, max(1, _ROWS // self._temb.shape[1]))
            found = [make(layer, part) for part in parts]
            self._made[id(layer)] = found[0] if len(found) == 1 else torch.cat(found)
        return self._made[id(layer)]

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """What no step of the sampling changes: made for the first one that asks."""
        if what not in self._once:
            self._once[what] = make()
        found: T = self._once[what]
        return found

    def known(self, layer: Any) -> bool:
        """True if a layer was computed."""
        return id(layer) in self._made


class Step(NamedTuple):
    """Where a sampling stands."""

    schedule: Schedule
    places: tuple[int, int]
    """The places of its own level in the schedule, and of level 0."""

    def rows(self, segments: int) -> dict[int | None, Rows]:
        """What was made of the levels that so many segments are at; nothing before a first pass."""
        places = self.places[:segments]
        kept = self.schedule.kept()
        return {layer: tuple(rows[place] for place in places) for layer, rows in kept.items()}

    @classmethod
    def of(cls, rows: Mapping[int | None, Rows]) -> Step:
        """A step of its own, of whose levels all this was made; the reverse of `rows`."""
        return cls(Schedule.of((1, 0), rows), (0, 1))

    def pick(self, kept: Rows, segments: int) -> Tensor:
        """Those of this step, (L, R, width) to (R, segments, width); a second one is at level 0."""
        first, *rest = (kept[place] for place in self.places[:segments])
        # As a layer's own output would lie, or compiled blocks would be compiled again for it.
        return torch.stack([first, *rest], 1) if rest else first[:, None]


def once(step: Step | None, what: Hashable, make: Callable[[], T]) -> T:
    """What no step of a sampling changes: made once in one, and each time outside."""
    return make() if step is None else step.schedule.once(what, make)


@dataclass(frozen=True)
class Levels:
    """Which tokens are at which noise level."""

    sigma: Tensor
    """(B, G), the levels of G segments; the text takes the first."""
    tokens: tuple[int, ...]
    """Image tokens of each segment, in order."""
    step: Step | None = None
    """Where a sampling stands, if they are two of its levels or one."""

    def embedded(self, embed: Callable[[Tensor], Tensor], samples: int = 1) -> Tensor:
        """The temb of the segments, (B or 1, G, h): in a sampling, made once for all its levels.

        Args:
            embed: makes that of levels, (R, L) to (R, L, h).
            samples: R in a sampling, 1 if its samples do not differ.
        """
        if self.step is None:
            return embed(self.sigma)
        kept = self.step.schedule.embedded(embed, self.sigma, samples)
        return self.step.pick(kept, len(self.tokens))

    def made(
        self, layer: Any, make: Callable[[Any, Tensor], Tensor], temb: Tensor, first: bool = False
    ) -> Tensor:
        """What `make` makes of a layer and of `embedded`: in a sampling, once for all its levels.

        Args:
            first: of the first segment alone.
        """
        if self.step is None:
            return make(layer, temb[:, :1] if first else temb)
        return self.step.pick(
            self.step.schedule.made(layer, make), 1 if first else len(self.tokens)
        )

    def known(self, layers: Iterable[Any]) -> bool:
        """True if a sampling computed these layers for all its levels, and reads them no more."""
        return self.step is not None and all(map(self.step.schedule.known, layers))

    def first(self) -> Levels:
        """The first segment alone."""
        return Levels(self.sigma[:, :1], self.tokens[:1], self.step)
