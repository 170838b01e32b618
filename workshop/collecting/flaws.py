"""Pictures with known flaws: text that an edge cuts, marks that many pictures share.

    python -m workshop.collecting.flaws STORYBOARDS.zip

Draws 400 pages, of which each is judged whole and cut through a line of text, puts marks on the
panels of real storyboards, and looks for both flaws in the storyboards as they are, too.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from iclora.sets.collect.cut_text import cut_text
from iclora.sets.collect.marks import find_mark, has_mark
from iclora.sets.dataset import open_dataset

__all__ = ["cut_page", "draw_page", "marked", "measure_marks", "measure_text"]

Box = tuple[float, float, float, float]
_WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "Season", "Garden"]
_FONTS = [
    name
    for name in sorted(Path(matplotlib.get_data_path(), "fonts/ttf").glob("DejaVu*.ttf"))
    if "Display" not in name.name
]


def draw_page(rng: random.Random) -> tuple[Image.Image, list[Box]]:
    """A page of lines of text, sometimes with a box of another colour, and the lines' boxes."""
    size = rng.choice([(960, 540), (800, 1000), (640, 640)])
    level = rng.choice([rng.randrange(200, 256), rng.randrange(0, 60)])
    ground = tuple(max(0, min(255, level + rng.randrange(-15, 16))) for _ in range(3))
    ink = tuple(255 - level for level in ground)
    page = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(page)
    height, margin = rng.randrange(16, 44), rng.randrange(30, 70)
    font = ImageFont.truetype(str(rng.choice(_FONTS)), height)
    lines: list[Box] = []
    top = margin
    while top < size[1] - margin - 1.5 * height:
        text = rng.choice(_WORDS)
        while True:
            longer = f"{text} {rng.choice(_WORDS)}"
            if pen.textlength(longer, font=font) > size[0] - 2 * margin:
                break
            text = longer
        pen.text((margin, top), text, font=font, fill=ink)
        lines.append(pen.textbbox((margin, top), text, font=font))
        top += int(height * rng.choice((1.3, 1.5, 2)))
    if rng.random() < 0.4:
        corner = (
            rng.randrange(size[0] // 2, size[0] - 60),
            rng.randrange(size[1] // 2, size[1] - 60),
        )
        colour = tuple(rng.randrange(256) for _ in range(3))
        pen.rectangle((*corner, *size), fill=colour)
        lines = [line for line in lines if line[3] < corner[1]]
    return page, lines


def cut_page(
    page: Image.Image, lines: list[Box], side: str, rng: random.Random
) -> Image.Image | None:
    """A page cut through one of its lines; None if too little is left."""
    left, top, right, bottom = rng.choice(lines)
    through = top + (bottom - top) * rng.uniform(0.25, 0.75)
    box = {
        "left": (left + rng.randrange(3, 60), 0, page.width, page.height),
        "right": (0, 0, right - rng.randrange(3, 60), page.height),
        "top": (0, through, page.width, page.height),
        "bottom": (0, 0, page.width, through),
    }[side]
    first, low, last, high = (round(edge) for edge in box)
    cut = page.crop((first, low, last, high))
    return cut if min(cut.size) >= 150 else None


def measure_text(pages: int = 400) -> dict[str, Any]:
    """Pages cut through a line, found; whole pages, wrongly told."""
    rng = random.Random("pages")
    told: Counter[str] = Counter()
    for _ in range(pages):
        page, lines = draw_page(rng)
        told["whole pages"] += 1
        told["wrongly told"] += bool(cut_text(page))
        side = rng.choice(("left", "top", "right", "bottom"))
        if cut := cut_page(page, lines, side, rng):
            told["cut pages"] += 1
            told["found"] += side in cut_text(cut)
            told["another side told"] += bool(set(cut_text(cut)) - {side})
    return dict(told)


def marked(picture: Image.Image, strength: float, place: tuple[float, float]) -> Image.Image:
    """A picture with a white name on it, `strength` 0 to 1, at a place from 0 to 1."""
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    font = ImageFont.truetype(str(_FONTS[0]), 28)
    at = place[0] * picture.width, place[1] * picture.height
    ImageDraw.Draw(layer).text(
        at, "StockPhoto", font=font, fill=(255, 255, 255, int(255 * strength))
    )
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def measure_marks(panels: list[Image.Image], draws: int = 100) -> dict[str, Any]:
    """Marks of four strengths at three places, found in 10 panels or more, and without any."""
    told: Counter[str] = Counter()
    for strength in (1, 0.5, 0.35, 0.25):
        for place in ((0.05, 0.05), (0.4, 0.5), (0.75, 0.88)):
            for count in (10, 20, len(panels)):
                some = [marked(panel, strength, place) for panel in panels[:count]]
                mark = find_mark(some)
                told["sources with a mark"] += 1
                told["found"] += mark is not None
                if mark:
                    told["pictures"] += 2 * len(panels)
                    told["pictures right"] += sum(
                        has_mark(mark, marked(p, strength, place)) + (not has_mark(mark, p))
                        for p in panels
                    )
    rng = random.Random("draws")
    told["sources without"] = draws
    told["wrongly told"] = sum(find_mark(rng.sample(panels, 12)) is not None for _ in range(draws))
    return dict(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storyboards", type=Path)
    dataset = open_dataset(parser.parse_args().storyboards, "film-storyboard")
    panels = [panel for each in dataset.sets for panel in each.load(dataset.recipe).panels]
    cut = sum(bool(cut_text(panel)) for panel in panels)
    alike = [panel.resize((1080, 480)) for panel in panels]
    found = {
        "text": measure_text(),
        "official panels with cut text": f"{cut} of {len(panels)}",
        "marks": measure_marks(alike),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
