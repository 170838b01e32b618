"""How well bars are found: sheets of pictures joined at random, with and without bars, measured.

    python -m workshop.bars --sheets 600 [--photos SETS.zip] [--kept FOLDER]

A sheet's true boxes are known, so that it shows what is trained of its gutters, borders, frames,
round corners and captions, whether `check` says so, and what is lost of the pictures.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.layout import Box
from iclora.sets.recipe import Recipe, load_recipe
from iclora.toyland.tasks import TASKS, draw_set

__all__ = ["COLOURS", "Found", "Sheet", "judge", "make_sheet", "pictures"]

COLOURS = (
    *("white", "black", "gray", "#c0c0c0", "#202020", "#f4ead5", "#c03050", "magenta"),
    *("#336699", "#00a060", "#ffd000", "#101840", "#7a5230"),
)
ROWS = ((1, 1, 1), (2, 2), (3,), (2,), (1, 1), (3, 3, 3))
KINDS = ("photo", "grain", "smooth", "sky", "night", "drawing")
ENCODINGS: tuple[tuple[str, dict[str, int]], ...] = (
    *(("png", {}), ("jpg", {"quality": 95}), ("jpg", {"quality": 85}), ("jpg", {"quality": 75})),
    *(("jpg", {"quality": 60}), ("webp", {"quality": 80}), ("jpg", {"quality": 90})),
)
CAPTION = "Text beneath: a man walks to the sea and stands there for a while"


@dataclass
class Sheet:
    """A joined picture and the truth about it."""

    image: Image.Image
    boxes: list[Box]
    """The pictures alone, without anything that was laid around them."""
    rows: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)


# -- pictures -----------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, width: int, height: int, cells: int) -> np.ndarray:
    seeds = rng.integers(0, 256, (cells, cells + 1, 3), dtype=np.uint8)
    grown = Image.fromarray(seeds).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(grown, dtype=np.float32)


def _grain(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    scale = ((4, 0.5), (9, 0.25), (24, 0.15), (60, 0.1))
    made = sum(share * _noise(rng, width, height, cells) for cells, share in scale)
    return np.asarray(made + rng.normal(0, 5, (height, width, 1)))


def _smooth(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    return _noise(rng, width, height, 6)


def _sky(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A calm sky over ground."""
    top, low = rng.integers(90, 256, (2, 1, 1, 3))
    share = np.linspace(0, 1, height)[:, None, None]
    sky = top * (1 - share) + low * share + rng.normal(0, 1.2, (height, width, 3))
    ground = _grain(rng, width, height) * 0.7
    line = height * rng.uniform(0.35, 0.7) + 12 * np.sin(np.linspace(0, 7, width))
    return np.where((np.arange(height)[:, None] > line)[..., None], ground, sky)


def _night(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    fade = np.clip(np.linspace(-0.5, 1.5, height), 0, 1)[:: int(rng.choice((-1, 1))), None, None]
    return _grain(rng, width, height) * 0.4 * fade + rng.normal(0, 1.5, (height, width, 1))


PAINTERS: Mapping[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "grain": _grain,
    "smooth": _smooth,
    "sky": _sky,
    "night": _night,
}


def pictures(
    kind: str, seed: int, count: int, size: tuple[int, int], photos: Sequence[Image.Image] = ()
) -> list[Image.Image]:
    """Some pictures of a kind; drawings are those of one set of toyland."""
    dice, rng = random.Random(seed), np.random.default_rng(seed)
    if kind == "drawing":
        task = dice.choice(list(TASKS.values()))
        drawn: list[Image.Image] = []
        while len(drawn) < count:
            drawn += [panel.render() for panel in draw_set(task, dice)[0].panels]
        way = dice.choice((Image.Resampling.NEAREST, Image.Resampling.LANCZOS))
        return [each.resize(size, way) for each in drawn[:count]]
    if kind == "photo" and photos:
        return [_part(dice, dice.choice(photos), size) for _ in range(count)]
    paint = PAINTERS.get(kind, _grain)
    made = [np.clip(paint(rng, *size), 0, 255).astype(np.uint8) for _ in range(count)]
    return [Image.fromarray(each) for each in made]


def _part(dice: random.Random, photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A part of a photo, away from its ends."""
    ratio = size[0] / size[1]
    wide = min(photo.width, photo.height * ratio) * dice.uniform(0.5, 0.9)
    left = dice.uniform(0.05, 0.95) * (photo.width - wide)
    top = dice.uniform(0.05, 0.95) * (photo.height - wide / ratio)
    box = (left, top, left + wide, top + wide / ratio)
    return photo.resize(size, Image.Resampling.LANCZOS, box=box)


# -- sheets -------------------------------------------------------------------------------------


def make_sheet(seed: int, photos: Sequence[Image.Image] = (), **given: Any) -> Sheet:
    """A sheet by chance; `given` are facts that are not left to it."""
    dice = random.Random(seed)
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
    } | given
    across = max(facts["rows"])
    wide, high = ((260, 190), (200, 220), (150, 150))[across - 1]
    facts.setdefault("size", (wide + dice.randrange(0, 60), high + dice.randrange(0, 60)))
    count = sum(facts["rows"])
    panels = pictures(facts["kind"], seed, count, facts["size"], photos)
    image, boxes = _join(panels, facts, dice)
    return Sheet(image, boxes, facts["rows"], facts)


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
    width, height = panels[0].size
    rows = facts["rows"]
    step = width + 2 * line + gutter, height + 2 * line + strip + gutter
    size = (max(rows) * step[0] - gutter + 2 * border, len(rows) * step[1] - gutter + 2 * border)
    page = _page(size, facts["colour"], panels, dice)
    draw, boxes, number = ImageDraw.Draw(page), [], 0
    for row, columns in enumerate(rows):
        for column in range(columns):
            left, top = border + column * step[0], border + row * step[1]
            outer = (left, top, left + width + 2 * line - 1, top + height + 2 * line - 1)
            if line:
                draw.rectangle(outer, fill="black")
            mask = Image.new("L", (width, height), 0)
            whole = (0, 0, width - 1, height - 1)
            ImageDraw.Draw(mask).rounded_rectangle(whole, facts["radius"], fill=255)
            page.paste(panels[number], (left + line, top + line), mask)
            boxes.append(Box(left + line, top + line, width, height))
            if strip:
                below = (left, outer[3] + 1, outer[2], outer[3] + strip)
                draw.rectangle(below, fill="white")
                place = (left + 6, outer[3] + 5)
                text = CAPTION[: max(8, width // 7)]
                draw.text(place, text, fill="black", font=ImageFont.load_default(12))
            number += 1
    return page, boxes


# -- judging ------------------------------------------------------------------------------------


@dataclass
class Found:
    """What became of a sheet."""

    kept: int
    """Most px of what is no picture, at some edge of a panel as it would be trained, where the
    picture's own edge shows to the eye."""
    lost: int
    """Most px of a picture cut off at some edge."""
    told: list[str]
    """What `check` says about bars, seams, frames, corners and strips."""
    error: str = ""


def judge(sheets: Sequence[Sheet], rows: tuple[int, ...]) -> Iterator[Found]:
    """What `check` finds in sheets of one arrangement."""
    with tempfile.TemporaryDirectory() as folder:
        for number, sheet in enumerate(sheets):
            ending, options = sheet.facts["encoding"]
            sheet.image.save(Path(folder) / f"{number:05d}.{ending}", **options)
        dataset = open_dataset(folder, "film-storyboard")
        dataset = replace(dataset, recipe=_recipe(rows))
        for sheet, report in zip(sheets, check_dataset(dataset), strict=True):
            told = [p.text for p in report.problems if not p.caption and "megapixel" not in p.text]
            if report.set is None:
                yield Found(0, 0, told, "refused")
                continue
            boxes = report.set.load().found.boxes  # type: ignore[union-attr]
            ends = [
                (b.left - t.left, b.top - t.top, t.right - b.right, t.bottom - b.bottom)
                for b, t in zip(boxes, sheet.boxes, strict=True)
            ]
            off = np.array(ends)
            shown = [[_shows(sheet.image, b, k) for k in range(4)] for b in sheet.boxes]
            kept = int(-np.where(shown, off, 0).min(initial=0))
            yield Found(kept, int(off.max(initial=0)), told)


def _shows(image: Image.Image, box: Box, side: int) -> bool:
    """True if a picture ends visibly at a side: left, top, right, bottom."""
    pixels = np.asarray(image, dtype=np.float32)
    if side % 2 == 0:
        pixels, box = pixels.transpose(1, 0, 2), Box(box.top, box.left, box.height, box.width)
    first, last = (box.top, box.top - 1) if side < 2 else (box.bottom - 1, box.bottom)
    if not 0 <= last < len(pixels):
        return True
    own, other = (pixels[k, box.left : box.right] for k in (first, last))
    return bool((np.abs(own - other).max(axis=1) > 24).mean() > 0.5)


def _recipe(rows: tuple[int, ...]) -> Recipe:
    usual = load_recipe("film-storyboard").model_dump(mode="json")
    count = sum(rows)
    markers = [f"[P-{n}]" for n in range(1, count + 1)]
    size = {"per_row": rows, "width": 512 * max(rows), "height": 384 * len(rows)}
    example = "An overview; " + ", ".join(f"{m} words" for m in markers)
    return Recipe.model_validate(
        usual
        | {"layout": usual["layout"] | size, "markers": markers, "prefix": "", "example": example}
    )


def read_photos(path: Path) -> list[Image.Image]:
    """Every panel of a dataset."""
    dataset = open_dataset(path, "film-storyboard")
    return [p for each in dataset.sets for p in each.load(dataset.recipe).panels]


# -- the table ----------------------------------------------------------------------------------


def is_named(found: Found) -> bool:
    """True if `check` says that something would be trained, or that a place is a guess."""
    return any("trained" in text or "do not show" in text for text in found.told)


def verdicts(sheet: Sheet, found: Found) -> Iterator[str]:
    """What happened to a sheet, in the words of the table."""
    facts = sheet.facts
    bars = any(facts[k] for k in ("gutter", "border", "line", "strip"))
    rest = found.kept >= 2 or facts["radius"]
    if found.error:
        yield "refused"
    elif bars or facts["radius"]:
        if rest:
            yield "left, named" if is_named(found) else "left, silent"
        elif found.kept:
            yield "1 px left, named" if is_named(found) else "1 px left"
        else:
            yield "cut"
        if not rest and not found.kept and is_named(found):
            yield "named for nothing"
    elif found.told and found.lost <= 2:
        yield "false alarm"
    if found.lost > 2:
        yield "picture lost" + (", named" if found.told else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheets", type=int, default=600)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--photos", type=Path, help="a dataset of photos")
    parser.add_argument("--kept", type=Path, help="folder for the sheets that went wrong")
    parser.add_argument("--plain", action="store_true", help="sheets without any bar")
    parser.add_argument("--by", default="kind", help="the fact that makes the table's rows")
    parser.add_argument("--set", action="append", default=[], help="a fact, as gutter=3")
    args = parser.parse_args()
    photos = read_photos(args.photos) if args.photos else []
    given: dict[str, Any] = {}
    if args.plain:
        given = dict.fromkeys(("gutter", "border", "line", "radius", "strip"), 0)
    for word in args.set:
        name, value = word.split("=")
        given[name] = int(value) if value.isdigit() else value
    by_rows = defaultdict(list)
    for seed in range(args.start, args.start + args.sheets):
        sheet = make_sheet(seed, photos, **given)
        sheet.facts["seed"] = seed
        by_rows[sheet.rows].append(sheet)
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for rows, sheets in by_rows.items():
        for sheet, found in zip(sheets, judge(sheets, rows), strict=True):
            key = str(sheet.facts.get(args.by))
            table[key]["sheets"] += 1
            for verdict in verdicts(sheet, found):
                table[key][verdict] += 1
                if args.kept and verdict not in ("cut", "left, named", "1 px left, named"):
                    _keep(args.kept, sheet, verdict, found)
    columns = sorted({name for counts in table.values() for name in counts}, reverse=True)
    print("|".join(["", args.by, *columns, ""]))
    print("|" + "---|" * (len(columns) + 1))
    total = sum(table.values(), Counter())
    for key, counts in [*sorted(table.items()), ("all", total)]:
        print("|".join(["", key, *(str(counts[c]) for c in columns), ""]))


def _keep(folder: Path, sheet: Sheet, verdict: str, found: Found) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{verdict.replace(' ', '-').replace(',', '')}-{sheet.facts['seed']}"
    ending, options = sheet.facts["encoding"]
    sheet.image.save(folder / f"{name}.{ending}", **options)
    line = f"{name} kept {found.kept} lost {found.lost} {sheet.facts} {found.told}\n"
    with (folder / "log.txt").open("a") as log:
        log.write(line)


if __name__ == "__main__":
    main()
