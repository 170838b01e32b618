"""`python -m workshop.bars`: see the package's own words."""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import workshop.bars
from iclora.sets.canvas import find_panels
from iclora.sets.dataset import open_dataset
from iclora.toyland.tasks import TASKS, draw_set
from workshop.bars.judging import Found, judge, plain_verdict, verdicts
from workshop.bars.sheets import BARE, GUTTERS, Sheet, make_comic, make_sheet, make_sheet_of

_FINE = ("cut", "left, named", "1 px left, named", "1 px left", "exact", "exact, named", "named")


def read_photos(path: Path) -> list[Image.Image]:
    """Every panel of a dataset."""
    dataset = open_dataset(path, "film-storyboard")
    return [p for each in dataset.sets for p in each.load(dataset.recipe).panels]


def main() -> None:
    parser = argparse.ArgumentParser(description=workshop.bars.__doc__)
    parser.add_argument("--sheets", type=int, default=600)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--photos", type=Path, help="a dataset of photos")
    parser.add_argument("--kept", type=Path, help="folder for the sheets that went wrong")
    parser.add_argument("--plain", action="store_true", help="sheets without any bar")
    parser.add_argument("--kinds", action="store_true", help="so many sheets of each of 12 kinds")
    parser.add_argument("--comics", action="store_true", help="pages of comics")
    parser.add_argument("--toyland", type=int, help="so many joined sets of each of its tasks")
    parser.add_argument("--by", default="kind", help="the fact that makes the table's rows")
    parser.add_argument("--set", action="append", default=[], help="a fact, as gutter=3")
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone")
    args = parser.parse_args()
    if args.toyland:
        print(dict(toyland(args.toyland)))
        return
    photos = read_photos(args.photos) if args.photos else []
    given: dict[str, Any] = dict(BARE) if args.plain else {}
    for word in args.set:
        name, value = word.split("=")
        given[name] = int(value) if value.isdigit() else value
    seeds = args.seeds or range(args.start, args.start + args.sheets)
    if args.kinds:
        made = (make_sheet_of(kind, seed, photos) for kind in GUTTERS for seed in seeds)
        show(made, "gutters", plain_verdict, args.kept)
    elif args.comics:
        show((make_comic(seed, photos) for seed in seeds), "rows", plain_verdict, args.kept)
    else:
        show((make_sheet(seed, photos, **given) for seed in seeds), args.by, verdicts, args.kept)


def show(
    made: Iterator[Sheet], by: str, told: Callable[[Sheet, Found], Iterator[str]], kept: Path | None
) -> None:
    """Print a table of what became of sheets, by one of their facts."""
    by_rows: dict[tuple[int, ...], list[Sheet]] = defaultdict(list)
    for sheet in made:
        by_rows[sheet.rows].append(sheet)
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for rows, sheets in by_rows.items():
        for sheet, found in zip(sheets, judge(sheets, rows), strict=True):
            key = str(sheet.facts.get(by))
            table[key]["sheets"] += 1
            for verdict in told(sheet, found):
                table[key][verdict] += 1
                if kept and verdict not in _FINE:
                    _keep(kept, sheet, verdict, found)
    _print(table, by)


def _print(table: dict[str, Counter[str]], by: str) -> None:
    columns = sorted({name for counts in table.values() for name in counts}, reverse=True)
    print("|".join(["", by, *columns, ""]))
    print("|" + "---|" * (len(columns) + 1))
    total: Counter[str] = sum(table.values(), Counter())
    for key, counts in [*sorted(table.items()), ("all", total)]:
        print("|".join(["", key, *(str(counts[c]) for c in columns), ""]))


def _keep(folder: Path, sheet: Sheet, verdict: str, found: Found) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{verdict} {sheet.facts['seed']}".replace(" ", "-").replace(",", "")
    ending, options = sheet.facts["encoding"]
    sheet.image.save(folder / f"{name}.{ending}", **options)
    line = f"{name} kept {found.kept} lost {found.lost} {sheet.facts} {found.told}\n"
    with (folder / "log.txt").open("a") as log:
        log.write(line)


def toyland(count: int) -> Counter[str]:
    """What becomes of joined sets of toyland's drawings, which have no bars at all."""
    verdicts: Counter[str] = Counter()
    for task in TASKS.values():
        canvas = task.small_recipe.canvas
        for seed in range(count):
            drawn = draw_set(task, random.Random(f"floors {seed}"))[0].render()
            found = find_panels(canvas, drawn)
            told = bool(found.unseen or found.doubts or any(found.rest))
            verdicts[_word(canvas.boxes, found.layout.boxes, bool(found.bars), told)] += 1
    return verdicts


def _word(true: Sequence[Any], boxes: Sequence[Any], bars: bool, told: bool) -> str:
    off = np.abs(np.array(true) - np.array(boxes)).max()
    what = "whole" if not off else "taken for bars" if bars else "split at another line"
    return what + (", told" if told else "")


if __name__ == "__main__":
    main()
