"""The grammar of captions: a canvas in words that say part of its truth; one rng, one text."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from iclora.sets.caption import JointCaption
from iclora.toyland.world import ARRANGEMENTS, IDENTITY, TOPICS, TRAITS, Canvas

__all__ = ["NAMES", "Caption", "draw_caption", "idea_of", "phrases", "traits_said", "write_caption"]

_PREFIXES = ("[MOVIE-SHOTS]", "[SANDSTORM-PSA]", "[FOUR-PANEL]")

_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "kind": {
        "cat": ("cat", "kitten"),
        "rabbit": ("rabbit", "bunny", "hare"),
        "bear": ("bear",),
        "elephant": ("elephant",),
        "frog": ("frog",),
        "bird": ("bird", "chick"),
    },
    "colour": {
        **{name: (name,) for name in TRAITS["colour"]},
        "purple": ("purple", "violet"),
        "grey": ("grey", "gray"),
    },
    "headwear": {
        "none": ("with a bare head", "without a hat", "bareheaded"),
        "hat": ("in a top hat", "with a black hat", "wearing a top hat"),
        "crown": ("with a crown", "wearing a golden crown"),
        "beanie": ("in a beanie", "with a knitted cap", "wearing a knitted beanie"),
        "party hat": ("in a party hat", "wearing a pointed party hat"),
        "bow": ("with a bow", "wearing a red bow"),
    },
    "scene": {
        "meadow": ("in a meadow", "on a green hill", "in the grass"),
        "beach": ("on a beach", "by the sea", "at the seaside"),
        "night": ("at night", "under the moon", "beneath the stars"),
        "city": ("in the city", "in front of tall houses", "in a street"),
        "desert": ("in the desert", "among dunes"),
        "forest": ("in a forest", "among fir trees", "in the woods"),
        "snow": ("in the snow", "before snowy mountains", "in winter"),
        "studio": ("in a studio", "before a plain backdrop", "on a plain ground"),
    },
    "position": {
        "left": ("on the left", "at the left edge", "to the left"),
        "middle": ("in the middle", "in the centre"),
        "right": ("on the right", "at the right edge", "to the right"),
    },
    "pose": {
        "still": ("stands still", "waits", "keeps still"),
        "waving": ("waves", "raises a hand", "says hello"),
        "cheering": ("cheers", "throws both arms up", "raises both arms"),
    },
    "style": {
        "flat": ("drawn", "illustrated", "in flat shapes"),
        "photo": ("photographed", "in a photograph", "in soft studio light"),
    },
    "weather": {
        "clear": ("in clear air", "in fair weather"),
        "sandstorm": ("in a sandstorm", "while sand blows past", "in blowing dust"),
    },
    "shape": {name: (name,) for name in TRAITS["shape"]},
    "carrier": {
        "paper": ("on paper", "on a plain sheet", "large and alone"),
        "mug": ("on a mug", "printed on a cup"),
        "bag": ("on a bag", "on a tote bag"),
        "shirt": ("on a shirt", "printed on a shirt"),
        "sign": ("on a sign", "on a shop sign"),
    },
    "letter": {name: (f'"{name}"',) for name in TRAITS["letter"]},
    "stroke": {
        "thin": ("thin", "fine"),
        "bold": ("bold", "heavy"),
        "outlined": ("outlined", "hollow"),
    },
    "slant": {"upright": ("upright",), "slanted": ("slanted", "italic")},
    "ground": {name: (f"on {name}", f"on a {name} ground") for name in TRAITS["ground"]},
    "slide": {
        "title": ("a title slide", "the opening slide"),
        "chart": ("a bar chart", "a slide with a chart"),
        "list": ("a list of points", "the agenda"),
        "picture": ("a slide with a picture", "a picture slide"),
    },
    "motif": {
        "circles": ("with circles", "with round shapes"),
        "stripes": ("with a striped edge", "with stripes"),
        "triangles": ("with a triangle", "with a cut corner"),
    },
    "room": {
        "living room": ("a living room", "a room with a sofa"),
        "bedroom": ("a bedroom", "a room with a bed"),
        "kitchen": ("a kitchen", "a kitchen with a stove"),
        "study": ("a study", "a room with a desk"),
    },
    "wall": {
        "plain": ("with plain walls", "with bare walls"),
        "striped": ("with striped wallpaper", "with striped walls"),
        "panelled": ("with panelled walls", "with wall panels"),
    },
    "floor": {
        "planks": ("over oak planks", "on a wooden floor"),
        "tiles": ("over chequered tiles", "on a tiled floor"),
        "carpet": ("over a soft carpet", "on a carpet"),
    },
}

NAMES = (
    "Mira",
    "Anselm",
    "Toni",
    "Juna",
    "Bo",
    "Lio",
    "Enna",
    "Rafi",
    "Sol",
    "Kato",
    "Nele",
    "Ida",
)

_CUES: dict[str, dict[str, tuple[str, ...]]] = {
    "same": {
        "character": (
            "the same character in every picture",
            "always the same character",
            "one and the same character throughout",
        ),
        "emblem": ("the same logo each time", "always the same logo"),
        "letter": ("all in the same typeface", "always the same typeface"),
        "slide": ("all from the same deck", "always the same template"),
        "room": ("all in the same home", "always the same style"),
    },
    "storm": {
        "character": (
            "the same picture before and in a sandstorm",
            "the same scene, then the storm",
        )
    },
    "drawn": {
        "character": (
            "the same character as a photograph and as a drawing",
            "the same character, photographed and drawn",
        )
    },
}
"""What a caption says if panels are related. Without it they are independent, mostly: so the base
knows panels and can be consistent, but is not unless it is told."""

_OPENINGS: dict[str, tuple[str, ...]] = {
    "character": (
        "A little story",
        "Pictures of animals",
        "A few scenes",
        "Friendly pictures",
        "A day outside",
        "Portraits",
        "A short tale",
    ),
    "emblem": ("A brand", "A logo and its use", "Pictures of a brand", "A small company"),
    "letter": ("Letters", "A typeface", "Samples of lettering"),
    "slide": ("A slide deck", "Slides", "A presentation template"),
    "room": ("Rooms", "A home", "Pictures of rooms", "A small flat"),
}


@dataclass(frozen=True)
class Caption:
    """A joint caption and what it says."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Start and end in `text` of every panel's words, its marker included; a single panel has the
    whole text."""
    said: tuple[Mapping[str, str], ...]
    """For every panel the traits that the caption states, in its own words or for all."""
    shared: Mapping[str, str]
    """The traits the overview states."""
    cued: bool
    """True if it says how the panels are related."""


class _Writer:
    """Words for one caption; a trait is put the same way all through it."""

    def __init__(self, rng: random.Random, name: str = "") -> None:
        self._rng = rng
        self._name = name

    def _put(self, trait: str, value: str) -> str:
        return self._rng.choice(_WORDS[trait][value])

    def clause(self, topic: str, said: Mapping[str, str]) -> str:
        return {
            "character": self._character,
            "emblem": self._emblem,
            "letter": self._letter,
            "slide": self._slide,
            "room": self._room,
        }[topic](said)

    def _character(self, said: Mapping[str, str]) -> str:
        rng = self._rng
        words = {trait: self._put(trait, value) for trait, value in said.items()}
        noun = words.get("kind") or rng.choice(("character", "animal", "figure"))
        subject = " ".join(w for w in (words.get("colour"), noun) if w)
        article = "an" if subject[0] in "aeiou" else "a"
        subject = f"{article} {subject}"
        looks = {"kind", "colour", "headwear"} & set(said)
        if "headwear" in words:
            subject += f" {words['headwear']}"
        if self._name:
            subject = f"<{self._name}>, {subject}," if looks else f"<{self._name}>"
        verb = words.get("pose") or rng.choice(("is seen", "appears", "can be seen"))
        tail = [words[t] for t in ("position", "scene", "style", "weather") if t in words]
        rng.shuffle(tail)
        if "scene" in words and rng.random() < 0.25:
            tail.remove(words["scene"])
            subject = f"{words['scene']} {subject}"
        return " ".join([subject, verb, *tail])

    def _emblem(self, said: Mapping[str, str]) -> str:
        words = {trait: self._put(trait, value) for trait, value in said.items()}
        noun = words.get("shape")
        what = " ".join(w for w in (words.get("colour"), noun or "logo") if w)
        article = "an" if what[0] in "aeiou" else "a"
        if noun is None and "colour" not in words:
            article = "the"
        return " ".join(w for w in (article, what, words.get("carrier")) if w)

    def _letter(self, said: Mapping[str, str]) -> str:
        words = {trait: self._put(trait, value) for trait, value in said.items()}
        looks = [words[t] for t in ("stroke", "slant", "colour") if t in words]
        parts = ["the", *looks, "letter", words.get("letter"), words.get("ground")]
        return " ".join(w for w in parts if w)

    def _slide(self, said: Mapping[str, str]) -> str:
        words = {trait: self._put(trait, value) for trait, value in said.items()}
        parts = [words.get("slide") or "a slide", words.get("motif")]
        if "colour" in words:
            parts.append(f"in {words['colour']}")
        parts.append(words.get("ground"))
        return " ".join(w for w in parts if w)

    def _room(self, said: Mapping[str, str]) -> str:
        words = {trait: self._put(trait, value) for trait, value in said.items()}
        parts = [words.get("room") or "a room"]
        if "colour" in words:
            parts.append(f"in {words['colour']}")
        return " ".join([*parts, *(words[t] for t in ("wall", "floor") if t in words)])

    def shared(self, topic: str, said: Mapping[str, str]) -> str:
        """What the overview says of all panels, as a phrase behind "of" or "with"."""
        if topic == "character":
            words = {trait: self._put(trait, value) for trait, value in said.items()}
            noun = words.get("kind") or "character"
            subject = " ".join(w for w in (words.get("colour"), noun) if w)
            article = "an" if subject[0] in "aeiou" else "a"
            tail = [words[t] for t in said if t not in ("kind", "colour")]
            return " ".join(["of", article, subject, *tail])
        return "of " + self.clause(topic, said)


def write_caption(
    rng: random.Random,
    canvas: Canvas,
    said: Sequence[Collection[str]],
    shared: Collection[str] = (),
    *,
    cue: bool = False,
    prefix: str = "",
    name: str = "",
    opening: str | None = None,
) -> Caption:
    """Put a canvas into words.

    Args:
        said: for every panel the traits its own words state.
        shared: traits the overview states, of all panels at once.
        cue: let the overview say how the panels are related.
        prefix: a task's tag to begin with.
        name: what the character is called; none if empty.
        opening: the overview's first words; by default any that fit.
    """
    topic = canvas.panels[0].topic
    writer = _Writer(rng, name)
    markers = ARRANGEMENTS[canvas.arrangement].markers
    own = [
        {t: p.traits[t] for t in TOPICS[topic] if t in chosen}
        for p, chosen in zip(canvas.panels, said, strict=True)
    ]
    common = {t: canvas.panels[0].traits[t] for t in TOPICS[topic] if t in shared}
    clauses = [writer.clause(topic, traits) for traits in own]
    everything = tuple({**common, **traits} for traits in own)
    if not markers:
        text = " ".join(part for part in (prefix, clauses[0]) if part)
        return Caption(text, ((0, len(text)),), everything, {}, False)
    overview = opening or rng.choice(_OPENINGS[topic])
    if common:
        overview += f" {writer.shared(topic, common)}"
    if cue and canvas.relation:
        overview += f", {rng.choice(_CUES[canvas.relation][topic])}"
    join = rng.choice((",", ";", "."))
    texts = [f"{clause}{join}" for clause in clauses[:-1]] + [f"{clauses[-1]}."]
    joint = JointCaption.join(f"{overview}{rng.choice((',', ';', ':'))}", texts, markers, prefix)
    spans = []
    at = len(joint.overview)
    for marker, words in zip(joint.markers, joint.panels, strict=True):
        spans.append((at, at + len(marker) + len(words)))
        at = spans[-1][1]
    return Caption(joint.render(), tuple(spans), everything, common, bool(cue and canvas.relation))


def draw_caption(rng: random.Random, canvas: Canvas) -> Caption:
    """A caption as in pre-training: sometimes everything is said, often no identity at all."""
    topic = canvas.panels[0].topic
    names, identity = TOPICS[topic], IDENTITY[topic]
    count = len(canvas.panels)
    shared: set[str] = set()
    rest = rng.choice((0.5, 0.8, 1.0))

    def free() -> set[str]:
        return {t for t in names if t not in identity and rng.random() < rest}

    said = [free() for _ in range(count)]
    way = rng.random()
    if canvas.relation:
        if way < 0.12:
            shared = {t for t in identity if rng.random() < 0.8}
        elif way < 0.22:
            for chosen in said:
                chosen |= set(identity)
        elif way < 0.32:
            said[0] |= set(identity)
    elif way < 0.55:
        for chosen in said:
            chosen |= set(identity)
    elif way < 0.8:
        for chosen in said:
            chosen |= {t for t in identity if rng.random() < 0.5}
    for panel, chosen in zip(canvas.panels, said, strict=True):
        # A picture that departs from the ordinary says so, as captions do.
        if panel.traits.get("weather") == "sandstorm":
            chosen.add("weather")
        elif rng.random() < 0.8:
            chosen.discard("weather")
        if panel.traits.get("style") == "photo":
            chosen.add("style")
        elif rng.random() < 0.7:
            chosen.discard("style")
    named = topic == "character" and count > 1 and rng.random() < 0.5
    return write_caption(
        rng,
        canvas,
        said,
        shared,
        cue=rng.random() < 0.92,
        prefix=rng.choice(_PREFIXES) if rng.random() < 0.3 else "",
        name=rng.choice(NAMES) if named else "",
    )


def idea_of(rng: random.Random, topic: str, said: Mapping[str, str]) -> str:
    """A short wish for a set that shares these traits, as a person would type it."""
    return _Writer(rng).shared(topic, said).removeprefix("of ")


def traits_said(text: str, topic: str) -> dict[str, str]:
    """The traits some words state, longest phrases first; the inverse of writing them."""
    found: dict[str, str] = {}
    known = [
        (phrase, trait, value)
        for trait in TOPICS[topic]
        for value, ways in _WORDS[trait].items()
        for phrase in ways
    ]
    for phrase, trait, value in sorted(known, key=lambda k: -len(k[0])):
        pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
        if re.search(pattern, text):
            found.setdefault(trait, value)
            # Or "wearing a red bow" would also be a red character.
            text = re.sub(pattern, "-", text)
    return {trait: found[trait] for trait in TOPICS[topic] if trait in found}


@lru_cache(maxsize=1)
def phrases() -> tuple[str, ...]:
    """Every phrase a caption can hold; a tokenizer must know their words."""
    found = [w for trait in _WORDS.values() for words in trait.values() for w in words]
    found += [w for by_topic in _CUES.values() for words in by_topic.values() for w in words]
    found += [w for words in _OPENINGS.values() for w in words]
    return (*found, *_PREFIXES, *(f"<{name}>" for name in NAMES))
