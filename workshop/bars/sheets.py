"""Sheets of pictures joined by chance, and the truth about each."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from iclora.sets.layout import Box
from workshop.bars.pictures import KINDS, pictures

__all__ = ["BARE", "GUTTERS", "Sheet", "make_comic", "make_sheet", "make_sheet_of"]

COLOURS = (
    *("white", "black", "gray", "#c0c0c0", "#202020", "#f4ead5", "#c03050", "magenta"),
    *("#336699", "#00a060", "#ffd000", "#101840", "#7a5230"),
)
ROWS = ((1, 1, 1), (2, 2), (3,), (2,), (1, 1), (3, 3, 3))
ENCODINGS: tuple[tuple[str, dict[str, int]], ...] = (
    *(("png", {}), ("jpg", {"quality": 95}), ("jpg", {"quality": 85}), ("jpg", {"quality": 75})),
    *(("jpg", {"quality": 60}), ("webp", {"quality": 80}), ("jpg", {"quality": 90})),
)
CAPTION = "Text beneath: a man walks to the sea and stands there for a while"
BARE: Mapping[str, Any] = {
    **dict.fromkeys(("gutter", "border", "line", "radius", "strip", "uneven"), 0),
    "scale": 1.0,
}
"""The facts of a sheet without any bar."""


@dataclass
class Sheet:
    """A joined picture and the truth about it."""

    image: Image.Image
    boxes: list[Box]
    """The pictures alone, without anything that was laid around them, nor a line that scaling has
    blended with it."""
    rows: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def make_sheet(seed: int, photos: Sequence[Image.Image] = (), **given: Any) -> Sheet:
    """A sheet by chance; `given` are facts that are not left to it."""
    dice, more = random.Random(seed), random.Random(f"more {seed}")
    kinds = KINDS if photos else KINDS[1:]
    facts: dict[str, Any] = {
        "rows": dice.choice(ROWS),
        "kind": dice.choice(kinds),
        "gutter": dice.choice((0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24)),
        "border": dice.choice((0, 0, 0, 1, 2, 4, 8, 12, 24)),
        "colour": dice.choice((*COLOURS, "near", "gradient")),
        "line": dice.choice((0, 0, 0, 0, 1, 2, 3)),
        "radius": dice.choice((0, 0, 0, 0, 0, 6, 16)),
        "strip": dice.choice((0, 0, 0, 0, 0, 0, 0, 22)),
        "encoding": dice.choice(ENCODINGS),
        "uneven": more.choice((0, 0, 0, 0.12)),
        "scale": more.choice((1.0, 1.0, 1.0, 1.0, 0.7, 1.3)),
        "paper": more.choice((("white", "black"), ("white", "black"), ("black", "white"))),
        "way": more.choice(("BILINEAR", "BICUBIC", "LANCZOS")),
    } | given
    across = max(facts["rows"])
    wide, high = ((260, 190), (200, 220), (150, 150))[across - 1]
    facts.setdefault("size", (wide + dice.randrange(0, 60), high + dice.randrange(0, 60)))
    facts["seed"] = seed
    sizes = _sizes(facts, more)
    panels = pictures(facts["kind"], seed, len(sizes), facts["size"], photos)
    if facts["uneven"]:
        panels = [_middle(each, size) for each, size in zip(panels, sizes, strict=True)]
    image, boxes = _join(panels, facts, dice)
    facts["round"] = bool(facts["radius"]) and _shows_round(image, boxes, panels, facts["radius"])
    if facts["scale"] != 1:
        image, boxes = _scaled(image, boxes, facts["scale"], facts["way"])
    return Sheet(image, boxes, facts["rows"], facts)


def _sizes(facts: Mapping[str, Any], dice: random.Random) -> list[tuple[int, int]]:
    """Of each picture; uneven rows have heights of their own, and columns of one width in all."""
    (width, height), rows, off = facts["size"], facts["rows"], facts["uneven"]

    def cut(length: int, count: int) -> list[int]:
        shares = [1 - dice.uniform(0, off) if off and count > 1 else 1 for _ in range(count)]
        return [int(length * share) for share in shares]

    heights, widths = cut(height, len(rows)), cut(width, max(rows))
    return [
        (widths[column], high)
        for high, count in zip(heights, rows, strict=True)
        for column in range(count)
    ]


def _middle(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    left, top = (picture.width - size[0]) // 2, (picture.height - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))


def _shows_round(
    image: Image.Image, boxes: Sequence[Box], panels: Sequence[Image.Image], radius: int
) -> bool:
    """True if most pictures have lost a corner in which the eye can tell the page from them."""
    part = max(2, radius // 4)
    shown = 0
    for box, panel in zip(boxes, panels, strict=True):
        there = np.asarray(image.crop(box.corners), dtype=np.float32)
        off = np.abs(there - np.asarray(panel, dtype=np.float32)).max(axis=2)
        tips = (off[:part, :part], off[:part, -part:], off[-part:, :part], off[-part:, -part:])
        shown += any((tip > 48).mean() > 0.6 for tip in tips)
    return 2 * shown > len(boxes)


def _scaled(
    image: Image.Image, boxes: Sequence[Box], factor: float, way: str
) -> tuple[Image.Image, list[Box]]:
    """As a program that shows sheets smaller or larger: edges lie between the px."""
    size = round(image.width * factor), round(image.height * factor)
    across, down = size[0] / image.width, size[1] / image.height
    found = []
    for box in boxes:
        # A line of which a fifth is the bar's is no line of the picture.
        left, top = math.ceil(box.left * across - 0.2), math.ceil(box.top * down - 0.2)
        right, bottom = math.floor(box.right * across + 0.2), math.floor(box.bottom * down + 0.2)
        found.append(Box(left, top, right - left, bottom - top))
    return image.resize(size, Image.Resampling[way]), found


def _page(
    size: tuple[int, int], colour: str, panels: Sequence[Image.Image], dice: random.Random
) -> Image.Image:
    if colour == "near":  # of one line of a picture
        line = np.asarray(panels[0])[-3:].reshape(-1, 3)
        return Image.new("RGB", size, tuple(int(v) for v in line.mean(axis=0)))
    if colour == "gradient":
        ends = [np.array([dice.randrange(256) for _ in range(3)]) for _ in range(2)]
        down = dice.random() < 0.5
        share = np.linspace(0, 1, size[down])[:, None] if down else np.linspace(0, 1, size[0])
        made = ends[0] * (1 - share[..., None]) + ends[1] * share[..., None]
        return Image.fromarray(np.broadcast_to(made, (size[1], size[0], 3)).astype(np.uint8))
    return Image.new("RGB", size, colour)


def _join(
    panels: Sequence[Image.Image], facts: Mapping[str, Any], dice: random.Random
) -> tuple[Image.Image, list[Box]]:
    gutter, border, line, strip = (facts[k] for k in ("gutter", "border", "line", "strip"))
    rows, number, top, places = facts["rows"], 0, border, []
    for columns in rows:
        left = border
        for panel in panels[number : number + columns]:
            places.append((left, top))
            left += panel.width + 2 * line + gutter
        top += panels[number].height + 2 * line + strip + gutter
        number += columns
    page = _page((left - gutter + border, top - gutter + border), facts["colour"], panels, dice)
    draw, boxes = ImageDraw.Draw(page), []
    for panel, (left, top) in zip(panels, places, strict=True):
        width, height = panel.size
        outer = (left, top, left + width + 2 * line - 1, top + height + 2 * line - 1)
        if line:
            draw.rectangle(outer, fill="black")
        mask = Image.new("L", (width, height), 0)
        whole = (0, 0, width - 1, height - 1)
        ImageDraw.Draw(mask).rounded_rectangle(whole, facts["radius"], fill=255)
        page.paste(panel, (left + line, top + line), mask)
        boxes.append(Box(left + line, top + line, width, height))
        if strip:
            paper, ink = facts["paper"]
            draw.rectangle((left, outer[3] + 1, outer[2], outer[3] + strip), fill=paper)
            text = CAPTION[: max(8, width // 7)]
            font = ImageFont.load_default(12)
            draw.text((left + 6, outer[3] + 5), text, fill=ink, font=font)
    return page, boxes


# -- twelve kinds of sheets, each with one thing around its pictures -----------------------------

_PLAIN: Mapping[str, Any] = {**BARE, "encoding": ("png", {})}


def _wide(dice: random.Random) -> dict[str, Any]:
    return {"gutter": dice.choice((4, 6, 8, 12, 16, 24)), "border": dice.choice((0, 4, 8, 16))}


def _any_colour(dice: random.Random) -> dict[str, Any]:
    return {**_wide(dice), "colour": dice.choice(COLOURS)}


GUTTERS: Mapping[str, Callable[[random.Random], dict[str, Any]]] = {
    "white": lambda dice: {**_wide(dice), "colour": "white"},
    "black": lambda dice: {**_wide(dice), "colour": "black"},
    "of another colour": lambda dice: {**_wide(dice), "colour": dice.choice(COLOURS[2:])},
    "of running colours": lambda dice: {**_wide(dice), "colour": "gradient"},
    "of 1 to 3 px": lambda dice: {
        **_any_colour(dice),
        "gutter": dice.choice((1, 2, 3)),
        "border": 0,
    },
    "a border alone": lambda dice: {
        **_any_colour(dice),
        "gutter": 0,
        "border": dice.choice((1, 2, 4, 12, 24)),
    },
    "with a line around each picture": lambda dice: {
        **_any_colour(dice),
        "line": dice.choice((1, 2, 3)),
    },
    "between uneven pictures": lambda dice: {**_any_colour(dice), "uneven": 0.15},
    "scaled after joining": lambda dice: {
        **_any_colour(dice),
        "scale": dice.choice((0.5, 0.7, 0.9, 1.3, 1.6)),
    },
    "JPEG of quality 60 to 95": lambda dice: {
        **_any_colour(dice),
        "encoding": dice.choice([each for each in ENCODINGS if each[0] == "jpg"]),
    },
    "with strips of text": lambda dice: {**_any_colour(dice), "strip": dice.choice((20, 24, 32))},
    "with round corners": lambda dice: {**_any_colour(dice), "radius": dice.choice((6, 12, 20))},
}
"""What each kind of sheet has, by its name in the table."""


def make_sheet_of(kind: str, seed: int, photos: Sequence[Image.Image] = ()) -> Sheet:
    """A clean sheet of one of the kinds: no picture's own end has the colour of a bar beside it."""
    dice = random.Random(f"{kind} {seed}")
    shown = [
        each for each in KINDS if each not in ("night", "drawing") and (photos or each != "photo")
    ]
    while True:
        facts = {**_PLAIN, "kind": dice.choice(shown), **GUTTERS[kind](dice)}
        number = dice.randrange(10**9)
        if is_clean(make_sheet(number, photos, **{**facts, "scale": 1.0})):
            sheet = make_sheet(number, photos, **facts)
            sheet.facts |= {"gutters": kind, "seed": f"{kind} {seed}"}
            return sheet


def is_clean(sheet: Sheet) -> bool:
    """True if every picture ends visibly wherever something lies beside it."""
    pixels = np.asarray(sheet.image, dtype=np.float32)
    radius = sheet.facts["radius"]
    boxes = [
        Box(b.left + radius, b.top + radius, b.width - 2 * radius, b.height - 2 * radius)
        for b in sheet.boxes
    ]
    return all(
        shown_share(pixels, box, inner, side) > 0.9
        for box, inner in zip(sheet.boxes, boxes, strict=True)
        for side in range(4)
    )


def shown_share(pixels: np.ndarray, box: Box, inner: Box, side: int, reach: int = 1) -> float:
    """Share of a picture's end that differs from what lies beside it; 1 where nothing does.

    Args:
        pixels: (height, width, 3), of the sheet.
        box, inner: of the picture, and that part of it whose lines and columns are looked at.
        side: 0 to 3 for left, top, right, bottom.
        reach: how far beside it, px.
    """
    if side % 2 == 0:
        pixels = pixels.transpose(1, 0, 2)
        box, inner = (Box(b.top, b.left, b.height, b.width) for b in (box, inner))
    first, last = (
        (box.top, box.top - reach) if side < 2 else (box.bottom - 1, box.bottom - 1 + reach)
    )
    if not 0 <= last < len(pixels):
        return 1.0
    own, other = (pixels[k, inner.left : inner.right] for k in (first, last))
    return float((np.abs(own - other).max(axis=1) > 24).mean())


# -- pages of comics: rows of different counts and heights, pictures of different widths ---------


def make_comic(seed: int, photos: Sequence[Image.Image] = ()) -> Sheet:
    """A page whose pictures are uneven, but for the width of its rows."""
    dice = random.Random(f"comic {seed}")
    rows = dice.choice(((1, 2), (2, 1), (2, 3), (3, 2, 1), (1, 2, 3), (2, 1, 2)))
    gutter, border, width = dice.choice((4, 8, 12, 16)), dice.choice((0, 8, 16)), 600
    heights = [dice.randrange(170, 240) for _ in rows]
    high = sum(heights) + gutter * (len(rows) - 1) + 2 * border
    page = Image.new("RGB", (width + 2 * border, high), dice.choice(COLOURS))
    boxes: list[Box] = []
    top = border
    for count, height in zip(rows, heights, strict=True):
        room, left = width - gutter * (count - 1), border
        widths = [room // count] * (count - 1)
        if count > 1:
            widths[0] += dice.choice((0, dice.randrange(-30, 30)))
        for own in (*widths, room - sum(widths)):
            kind = dice.choice([k for k in ("photo", "grain", "smooth") if photos or k != "photo"])
            (drawn,) = pictures(kind, seed * 100 + len(boxes), 1, (own, height), photos)
            page.paste(drawn, (left, top))
            boxes.append(Box(left, top, own, height))
            left += own + gutter
        top += height + gutter
    facts: dict[str, Any] = {"seed": seed, "rows": rows, "encoding": ("png", {}), "scale": 1.0}
    return Sheet(page, boxes, rows, facts)
