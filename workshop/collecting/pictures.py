"""Pictures of known subjects, some of them again: scaled and compressed otherwise.

    python -m workshop.collecting.pictures FOLDER

Writes NAME.jpg, .png and .webp, names that say nothing, and truth.json: the subject of each, and
the original of each copy.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from PIL import Image

from iclora.toyland.drawing.characters import draw_character
from iclora.toyland.world import draw_traits

__all__ = ["write_pictures"]


def write_pictures(
    folder: Path, subjects: int = 50, each: int = 14, copies: int = 6, seed: int = 0
) -> dict[str, dict[str, str]]:
    """Write pictures of some subjects.

    A subject is a character in a place. Its pictures differ in pose, position and in the window
    through which it is seen.

    Args:
        each: pictures of a subject.
        copies: copies of some of them, beside those.
    Returns: by file name the "subject", and of a copy the "original".
    """
    rng = random.Random(f"pictures {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = list(range(10_000, 100_000))
    rng.shuffle(numbers)
    truth: dict[str, dict[str, str]] = {}
    known: set[tuple[str, ...]] = set()
    for subject in range(subjects):
        looks = _new_subject(rng, known)
        shown: list[tuple[str, Image.Image]] = []
        for _ in range(each):
            own = looks | {k: draw_traits(rng, "character")[k] for k in ("position", "pose")}
            picture = draw_character(own, random.Random(rng.randrange(2**31)))
            side = rng.uniform(0.62, 0.95) * picture.width
            left, top = (rng.uniform(0, picture.width - side) for _ in range(2))
            box = (left, top, left + side, top + side)
            picture = picture.resize((512, 512), Image.Resampling.BICUBIC, box=box)
            name = f"{numbers.pop()}.png"
            picture.save(folder / name, compress_level=1)
            truth[name] = {"subject": str(subject)}
            shown.append((name, picture))
        for name, picture in rng.choices(shown, k=copies):
            scale = rng.choice((0.4, 0.6, 0.75, 1.0, 1.5))
            size = round(512 * scale)
            copy = picture.resize((size, size), Image.Resampling.LANCZOS)
            again = f"{numbers.pop()}.{rng.choice(('jpg', 'webp'))}"
            copy.save(folder / again, quality=rng.choice((35, 50, 75, 92)))
            truth[again] = {"subject": str(subject), "original": name}
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return truth


def _new_subject(rng: random.Random, known: set[tuple[str, ...]]) -> dict[str, str]:
    """A character in a place that no other subject is; elephants are always grey."""
    while True:
        looks = draw_traits(rng, "character") | {"style": "flat", "weather": "clear"}
        colour = "" if looks["kind"] == "elephant" else looks["colour"]
        key = looks["kind"], colour, looks["headwear"], looks["scene"]
        if key not in known:
            known.add(key)
            return looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_pictures(parser.parse_args().folder)


if __name__ == "__main__":
    main()
