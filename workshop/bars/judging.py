"""What `check` finds in sheets whose boxes are known, and what is said of it in a table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from iclora.files import write_text
from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import Recipe, load_recipe
from workshop.bars.sheets import Sheet, shown_share

__all__ = ["Found", "is_named", "judge", "plain_verdict", "verdicts"]


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
        recipe = _recipe(rows)
        known = Path(folder) / "rows.toml"
        settings = recipe.model_dump(mode="json", exclude_defaults=True)
        write_text(known, tomli_w.dumps(settings))
        for number, sheet in enumerate(sheets):
            ending, options = sheet.facts["encoding"]
            sheet.image.save(Path(folder) / f"{number:05d}.{ending}", **options)
            # Without its words one sheet of several would be taken for a panel.
            write_text(Path(folder) / f"{number:05d}.txt", recipe.example)
        dataset = open_dataset(folder, known)
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
            pixels = np.asarray(sheet.image, dtype=np.float32)
            reach = 1 if sheet.facts["scale"] == 1 else 2
            shown = [
                [shown_share(pixels, box, box, side, reach) > 0.5 for side in range(4)]
                for box in sheet.boxes
            ]
            kept = int(-np.where(shown, off, 0).min(initial=0))
            yield Found(kept, int(off.max(initial=0)), told)


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


def is_named(found: Found) -> bool:
    """True if `check` says that something would be trained, or that a place is a guess."""
    return any("trained" in t or "do not show" in t or "not certain" in t for t in found.told)


def verdicts(sheet: Sheet, found: Found) -> Iterator[str]:
    """What happened to a sheet, in the words of the table."""
    facts = sheet.facts
    bars = any(facts[k] for k in ("gutter", "border", "line", "strip"))
    rest = found.kept >= 2 or facts["round"]
    if found.error:
        yield "refused"
    elif bars or facts["round"]:
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
        yield "picture lost" + (", named" if is_named(found) else "")


def plain_verdict(_: Sheet, found: Found) -> Iterator[str]:
    """What happened to a sheet of one kind, each exactly one of these, but for losses."""
    if found.error:
        yield "refused"
    elif not found.kept and not found.lost:
        yield "exact, named" if is_named(found) else "exact"
    elif is_named(found):
        yield "named"
    elif max(found.kept, found.lost) <= 1:
        yield "1 px off"
    elif found.kept <= 1 and found.lost <= 2:
        yield "2 px lost"
    else:
        yield "silent"
    if found.lost > 2:
        yield "lost"
