"""Draw a few small storyboards to try iclora on: the same sun and boat through three scenes.

    python examples/draw_storyboards.py FOLDER [SETS]

Writes FOLDER/0001/1.png, 2.png, 3.png and caption.txt, and so on: a folder per set.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw

NAMES = ("Mira", "Tove", "Anselm", "Ida", "Jonas", "Ravi", "Lena", "Oskar")
SAILS = {"red": "#c8553d", "white": "#f4efe6", "yellow": "#e9b44c", "green": "#5b8e7d"}
SKIES = (("#f7d9c4", "#9fc6d4"), ("#f9e7b8", "#7fb0c9"), ("#e8c7d0", "#8a9bc4"))
WIDTH, HEIGHT, SCALE = 480, 224, 3


def scene(sail: str, sky: tuple[str, str], sun: float, boat: float, size: float) -> Image.Image:
    """One panel. `sun` and `boat` are places from left (0) to right (1)."""
    w, h = WIDTH * SCALE, HEIGHT * SCALE
    image = Image.new("RGB", (w, h), sky[0])
    draw = ImageDraw.Draw(image)
    x, y, r = sun * w, h * (0.62 - 0.4 * (1 - (2 * sun - 1) ** 2)), h * 0.11
    draw.ellipse((x - r, y - r, x + r, y + r), fill="#fff4d6")
    draw.rectangle((0, h * 0.62, w, h), fill=sky[1])
    for i in range(5):
        top = h * (0.68 + 0.06 * i)
        left = (x + (i % 2) * 60) % w - r
        draw.line((left, top, left + 2 * r, top), fill="#ffffff", width=2 * SCALE)
    bx, by, s = boat * w, h * 0.72, h * size
    draw.polygon(
        [(bx - s, by), (bx + s, by), (bx + 0.6 * s, by + 0.35 * s), (bx - 0.6 * s, by + 0.35 * s)],
        fill="#4a3b32",
    )
    draw.polygon([(bx, by - 1.7 * s), (bx, by - 6), (bx + 0.9 * s, by - 6)], fill=SAILS[sail])
    draw.polygon([(bx - 8, by - 1.4 * s), (bx - 8, by - 6), (bx - 0.6 * s, by - 6)], fill="#fbf7ef")
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def draw(folder: Path, sets: int) -> None:
    """Write that many sets of three panels and a caption each into a folder."""
    for number in range(1, sets + 1):
        rng = random.Random(number)
        name, sail, sky = rng.choice(NAMES), rng.choice(list(SAILS)), rng.choice(SKIES)
        target = folder / f"{number:04d}"
        target.mkdir(parents=True, exist_ok=True)
        for panel, (sun, boat, size) in enumerate(
            [(0.15, 0.2, 0.12), (0.5, 0.5, 0.3), (0.85, 0.8, 0.18)], 1
        ):
            shift = rng.uniform(-0.06, 0.06)
            scene(sail, sky, sun, boat + shift, size).save(target / f"{panel}.png")
        (target / "caption.txt").write_text(
            f"[MOVIE-SHOTS] A calm day at sea in flat colours follows a boat with a {sail} sail, "
            f"[SCENE-1] <{name}> leaves the bay small on the left as the sun comes up, "
            f"[SCENE-2] at noon the boat of <{name}> fills the picture, "
            f"[SCENE-3] and finally <{name}> heads home on the right as the sun goes down.\n",
            encoding="utf-8",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the sets are written")
    parser.add_argument("sets", type=int, nargs="?", default=8, help="how many (default 8)")
    args = parser.parse_args()
    if args.sets < 1:
        parser.error(f"sets: {args.sets} is not a number from 1")
    draw(args.folder, args.sets)


if __name__ == "__main__":
    main()
