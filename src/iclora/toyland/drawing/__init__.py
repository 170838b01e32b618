"""How toyland looks: every panel is drawn at four times its size, then scaled down."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from PIL import Image

from iclora.toyland.drawing.characters import backdrop, cut_out, draw_character, in_dust
from iclora.toyland.drawing.pen import COLOURS, GROUNDS, SCALE, SIZE
from iclora.toyland.drawing.rooms import draw_room
from iclora.toyland.drawing.things import draw_emblem, draw_letter, draw_slide

__all__ = ["COLOURS", "GROUNDS", "SIZE", "backdrop", "cut_out", "draw", "in_dust"]

_TOPICS: dict[str, Callable[[Mapping[str, str], random.Random], Image.Image]] = {
    "character": draw_character,
    "emblem": draw_emblem,
    "letter": draw_letter,
    "slide": draw_slide,
    "room": draw_room,
}


class _Calm(random.Random):
    """No accidents: every draw is the middle of its range."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def draw(topic: str, traits: Mapping[str, str], seed: int | None) -> Image.Image:
    """Draw one panel, SIZE x SIZE px RGB.

    Args:
        topic: what kind of picture, see `world.TOPICS`.
        traits: a value for every trait of the topic.
        seed: decides the small accidents (a pixel to the left, another dust streak); None
            draws the ideal picture without any.
    """
    rng = _Calm(0) if seed is None else random.Random(seed)
    image = _TOPICS[topic](traits, rng)
    return image.reduce(SCALE)
