"""A picture world with known truth: traits, panels, canvases.

Everything follows from a `random.Random`: the same seed gives the same panels.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from iclora.sets.recipe import load_recipe
from iclora.toyland.drawing import COLOURS, GROUNDS, SIZE, draw

__all__ = [
    "ARRANGEMENTS",
    "IDENTITY",
    "TOPICS",
    "TRAITS",
    "Arrangement",
    "Canvas",
    "Panel",
    "draw_canvas",
    "draw_traits",
]

TRAITS: dict[str, tuple[str, ...]] = {
    "kind": ("cat", "rabbit", "bear", "elephant", "frog", "bird"),
    "colour": tuple(COLOURS),
    "headwear": ("none", "hat", "crown", "beanie", "party hat", "bow"),
    "scene": ("meadow", "beach", "night", "city", "desert", "forest", "snow", "studio"),
    "position": ("left", "middle", "right"),
    "pose": ("still", "waving", "cheering"),
    "style": ("flat", "photo"),
    "weather": ("clear", "sandstorm"),
    "shape": ("star", "moon", "heart", "drop", "bolt", "flower"),
    "carrier": ("paper", "mug", "bag", "shirt", "sign"),
    "letter": tuple("ACEHLOST"),
    "stroke": ("thin", "bold", "outlined"),
    "slant": ("upright", "slanted"),
    "ground": tuple(GROUNDS),
    "slide": ("title", "chart", "list", "picture"),
    "motif": ("circles", "stripes", "triangles"),
    "room": ("living room", "bedroom", "kitchen", "study"),
    "wall": ("plain", "striped", "panelled"),
    "floor": ("planks", "tiles", "carpet"),
}
"""Every trait and its values."""

TOPICS: dict[str, tuple[str, ...]] = {
    "character": ("kind", "colour", "headwear", "scene", "position", "pose", "style", "weather"),
    "emblem": ("shape", "colour", "carrier"),
    "letter": ("letter", "colour", "stroke", "slant", "ground"),
    "slide": ("slide", "colour", "motif", "ground"),
    "room": ("room", "colour", "wall", "floor"),
}
"""What a panel can show, and the traits it then has."""

IDENTITY: dict[str, tuple[str, ...]] = {
    "character": ("kind", "colour", "headwear"),
    "emblem": ("shape", "colour"),
    "letter": ("colour", "stroke", "slant", "ground"),
    "slide": ("colour", "motif", "ground"),
    "room": ("colour", "wall", "floor"),
}
"""The traits that make two panels show "the same"."""


@dataclass(frozen=True)
class Panel:
    """One picture and the truth about it."""

    topic: str
    traits: Mapping[str, str]
    seed: int
    """Decides the small accidents that are no trait."""

    def render(self) -> Image.Image:
        """SIZE x SIZE px RGB."""
        return draw(self.topic, self.traits, self.seed)


@dataclass(frozen=True)
class Arrangement:
    """How panels lie on a canvas, and what the recipes call them."""

    per_row: tuple[int, ...]
    markers: tuple[str, ...]

    @property
    def panels(self) -> int:
        return sum(self.per_row)

    @property
    def size(self) -> tuple[int, int]:
        """Canvas width and height, px."""
        return max(self.per_row) * SIZE, len(self.per_row) * SIZE

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Left and top of every panel, px."""
        return [(c * SIZE, r * SIZE) for r, n in enumerate(self.per_row) for c in range(n)]

    def compose(self, panels: Sequence[Image.Image]) -> Image.Image:
        canvas = Image.new("RGB", self.size)
        for panel, corner in zip(panels, self.corners, strict=True):
            canvas.paste(panel, corner)
        return canvas


def _as_in(recipe: str) -> Arrangement:
    task = load_recipe(recipe)
    return Arrangement(task.layout.per_row, task.markers)


ARRANGEMENTS: dict[str, Arrangement] = {
    "single": Arrangement((1,), ()),
    "side by side": _as_in("portrait-illustration"),
    "stacked": _as_in("sandstorm-effect"),
    "storyboard": _as_in("film-storyboard"),
    "grid": _as_in("portrait-photography"),
}


@dataclass(frozen=True)
class Canvas:
    """Panels on one canvas, and how they are related."""

    arrangement: str
    """Key of `ARRANGEMENTS`."""
    panels: tuple[Panel, ...]
    relation: str = ""
    """"" for panels that have nothing to do with each other, else "same", "storm" or "drawn"."""

    def render(self) -> Image.Image:
        return ARRANGEMENTS[self.arrangement].compose([panel.render() for panel in self.panels])


def draw_traits(rng: random.Random, topic: str) -> dict[str, str]:
    """A value for every trait of a topic, all equally likely; plain style and weather prevail."""
    traits = {name: rng.choice(TRAITS[name]) for name in TOPICS[topic]}
    if topic == "character":
        traits["style"] = "photo" if rng.random() < 0.25 else "flat"
        traits["weather"] = "sandstorm" if rng.random() < 0.2 else "clear"
    return traits


_TOPIC_SHARES = {"character": 0.5, "emblem": 0.12, "letter": 0.18, "slide": 0.08, "room": 0.12}
_ARRANGEMENT_SHARES = {
    "character": {
        "single": 0.2,
        "side by side": 0.18,
        "stacked": 0.14,
        "storyboard": 0.34,
        "grid": 0.14,
    },
    "emblem": {
        "single": 0.2,
        "side by side": 0.6,
        "stacked": 0.05,
        "storyboard": 0.05,
        "grid": 0.1,
    },
    "letter": {
        "single": 0.2,
        "side by side": 0.1,
        "stacked": 0.05,
        "storyboard": 0.05,
        "grid": 0.6,
    },
    "slide": {"single": 0.2, "side by side": 0.1, "stacked": 0.05, "storyboard": 0.05, "grid": 0.6},
    "room": {"single": 0.2, "side by side": 0.1, "stacked": 0.05, "storyboard": 0.05, "grid": 0.6},
}


def _weighted(rng: random.Random, shares: Mapping[str, float]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def draw_canvas(
    rng: random.Random, topic: str | None = None, arrangement: str | None = None
) -> Canvas:
    """A canvas as the base is pre-trained on it: about half of those with panels are related."""
    topic = topic or _weighted(rng, _TOPIC_SHARES)
    arrangement = arrangement or _weighted(rng, _ARRANGEMENT_SHARES[topic])
    count = ARRANGEMENTS[arrangement].panels
    traits = [draw_traits(rng, topic) for _ in range(count)]
    seeds = [rng.randrange(2**31) for _ in range(count)]
    relation = ""
    if count > 1 and rng.random() < 0.55:
        relation = "same"
        if topic == "character":
            chances = {"same": 0.5, "storm": 0.25, "drawn": 0.25}
            relation = _weighted(rng, chances) if count == 2 else "same"
        shared = {
            "same": IDENTITY[topic],
            "storm": (*IDENTITY["character"], "scene", "position", "pose", "style"),
            "drawn": (*IDENTITY["character"], "position", "pose"),
        }[relation]
        for other in traits[1:]:
            other.update({name: traits[0][name] for name in shared})
        if relation == "storm":
            traits[0]["weather"], traits[1]["weather"] = "clear", "sandstorm"
            seeds[1] = seeds[0]
        elif relation == "drawn":
            traits[0].update(style="photo", weather="clear")
            traits[1].update(style="flat", weather="clear", scene="studio")
        elif topic == "character" and rng.random() < 0.75:
            # As in a film or a session: one style, one weather.
            for other in traits[1:]:
                other.update({name: traits[0][name] for name in ("style", "weather")})
    panels = tuple(Panel(topic, t, s) for t, s in zip(traits, seeds, strict=True))
    return Canvas(arrangement, panels, relation)
