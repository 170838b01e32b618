"""How well the judge reads true renderings: `python -m workshop.toyland.judge`."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence

import numpy as np

from iclora.toyland.judge import read, stated_right
from iclora.toyland.world import TOPICS, TRAITS, Panel, draw_traits

__all__ = ["measure"]


def measure(
    topic: str, count: int, seed: int = 0, fixed: Mapping[str, str] | None = None
) -> dict[str, float]:
    """The share of each trait that the judge reads right on true renderings.

    Args:
        fixed: traits that all of them have.
    """
    fixed = fixed or {}
    rng = random.Random(f"judge {seed}")
    right: dict[str, list[bool]] = {}
    for _ in range(count):
        traits = {**draw_traits(rng, topic), **fixed}
        seen = read(Panel(topic, traits, rng.randrange(2**31)).render(), topic, **fixed)
        for name, values in stated_right([traits], [seen]).items():
            right.setdefault(name, []).extend(values)
    return {name: float(np.mean(values)) for name, values in right.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="renderings of each kind")
    args = parser.parse_args(argv)
    kinds: list[tuple[str, dict[str, str]]] = [
        (topic, {}) for topic in TOPICS if topic != "character"
    ]
    for style in TRAITS["style"]:
        kinds += [("character", {"style": style, "weather": w}) for w in TRAITS["weather"]]
    for topic, fixed in kinds:
        scores = measure(topic, args.count, 0, fixed)
        print(topic, *fixed.values(), {k: round(v, 4) for k, v in scores.items()}, flush=True)


if __name__ == "__main__":
    main()
