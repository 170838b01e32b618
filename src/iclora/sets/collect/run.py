"""A collection from its sources to a folder of sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from iclora import files
from iclora.errors import DatasetError, IcloraError
from iclora.files.locks import alone
from iclora.progress import Progress
from iclora.sets.canvas import find_panels, split
from iclora.sets.collect.choosing import spread_out, without_twins
from iclora.sets.collect.likeness import Seer
from iclora.sets.collect.looks import Looks
from iclora.sets.collect.marks import marked_sets
from iclora.sets.collect.picture import Found, Look
from iclora.sets.collect.provenance import Pool, write_origins
from iclora.sets.collect.quality import Quality, judge
from iclora.sets.collect.sources import Wanted, read_source
from iclora.sets.dataset import MANIFEST
from iclora.sets.kinds import IMAGE_SUFFIXES, kind_of
from iclora.sets.listing import Problem
from iclora.sets.origins import ORIGINS
from iclora.sets.recipe import Recipe, load_recipe, recipe_names
from iclora.settings import CollectSettings

__all__ = ["Collected", "collect"]

_BATCH = 8
"""Sets that are judged between two looks at whether the collection is to stop."""
_MARKED = 0.4
"""What a mark makes of a score: it is learnt with the pictures."""


@dataclass(frozen=True)
class Collected:
    """What came of a collection."""

    out: Path
    sets: int
    """In the folder."""
    found: int
    """In the sources, before any was left out."""
    problems: tuple[Problem, ...]
    """What was refused, left out or guessed."""
    notes: tuple[str, ...] = ()
    """What came of each source."""


def collect(
    settings: CollectSettings, progress: Progress | None = None, seer: Seer | None = None
) -> Collected:
    """Make image sets of what people have, and write them into a folder.

    A collection that was stopped goes on when it is called with the same settings.

    Args:
        seer: compares pictures, opened as the settings' `likeness` says.
    Raises: IcloraError if nothing can be collected; Cancelled.
    """
    progress = progress or Progress()
    out = Path(settings.out).resolve()
    files.check_folder(out, "out")
    recipe = load_recipe(settings.recipe)
    place = out.with_name(f".{files.digest(out.name)[:12]}.lock")
    with alone(place, out, partial(DatasetError, setting="out")):
        pool = Pool(out, {"recipe": recipe.model_dump(mode="json"), **_told(settings)})
        if pool.done:
            pool.finish()  # It may have been killed before all was freed.
            there = len((out / ORIGINS).read_text(encoding="utf-8").splitlines())
            note = f"{out} holds this collection already, ended; remove it to collect again"
            return Collected(out, there, there, (), (note,))
        return _collect(settings, recipe, pool, progress, seer)


def _told(settings: CollectSettings) -> dict[str, Any]:
    told = settings.model_dump(mode="json", exclude={"out", "recipe", "review"})
    # Collections of before it was a setting go on.
    return told if settings.likeness else {k: v for k, v in told.items() if k != "likeness"}


def _collect(
    settings: CollectSettings, recipe: Recipe, pool: Pool, progress: Progress, seer: Seer | None
) -> Collected:
    problems: list[Problem] = []
    looks = Looks(problems.append, progress, seer)
    notes: list[str] = []
    how = settings.by, settings.pages
    want = Wanted(recipe, *how, looks, problems.append, notes.append, pool, progress)
    found: list[Found] = []
    for source in settings.sources:
        found += read_source(source, want)
    seen = _looked_at(found, looks)
    if not seen:
        pool.give_up()
        raise DatasetError(
            f"no set of {recipe.canvas.panels} pictures was found"
            + "".join(f"\n  {each}" for each in [*problems, *notes][:20]),
            "Look at what is said of each source.",
            setting="sources",
        )
    scored = _judged(recipe, seen, pool, problems.append, progress)
    scored = _marked(scored, progress)
    kept = _chosen(scored, settings.keep, looks, notes.append)
    names = _write(pool.out, kept, progress)
    write_origins(pool.out, {name: kept[i][::2] for i, name in enumerate(names)})
    _write_manifest(pool.out, recipe)
    pool.finish()
    return Collected(pool.out, len(kept), len(found), tuple(problems), tuple(notes))


Seen = tuple[Found, list[Look]]
Scored = tuple[Found, list[Look], Quality]


def _looked_at(found: Sequence[Found], looks: Looks) -> list[Seen]:
    """Sets of which every picture can be read, with their looks."""
    seen = looks.of_all([picture for each in found for picture in each.pictures])
    rest = iter(seen)
    sets = [(each, [next(rest) for _ in each.pictures]) for each in found]
    return [(each, [x for x in own if x]) for each, own in sets if all(own)]


def _judged(
    recipe: Recipe,
    seen: Sequence[Seen],
    pool: Pool,
    tell: Callable[[Problem], None],
    progress: Progress,
) -> list[Scored]:
    known = pool.judged()
    scored: list[Scored] = []
    # Pillow and numpy do nearly all of it without the interpreter's lock.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as workers:
        for start in range(0, len(seen), _BATCH):
            batch = seen[start : start + _BATCH]
            told = workers.map(partial(_quality, recipe, known), batch)
            for done, (each, quality) in enumerate(zip(batch, told, strict=True), start + 1):
                if isinstance(quality, IcloraError):
                    name = each[0].pictures[0].origin.name
                    tell(Problem(name, quality.problem, quality.advice))
                    continue
                if each[0].key not in known:
                    pool.note(each[0].key, quality)
                scored.append((*each, quality))
                progress("judging sets", done, len(seen), f"score {quality.score:.2f}")
    return scored


def _quality(recipe: Recipe, known: Mapping[str, Quality], seen: Seen) -> Quality | IcloraError:
    """How good a set is, or what is wrong with one of its pictures."""
    found, looks = seen
    if found.key in known:
        return known[found.key]
    try:
        panels = [picture.open() for picture in found.pictures]
        if found.composite:
            panels = split(find_panels(recipe.canvas, panels[0]).layout, panels[0])
    except IcloraError as error:
        return error
    return judge(recipe, panels, looks)


def _marked(scored: Sequence[Scored], progress: Progress) -> list[Scored]:
    """The same, with a word on those whose pictures bear their source's mark."""
    told = marked_sets([each[:2] for each in scored], progress)
    return [
        (found, looks, quality.less(_MARKED, *told[i]) if i in told else quality)
        for i, (found, looks, quality) in enumerate(scored)
    ]


def _chosen(
    scored: Sequence[Scored], keep: int | None, seen: Looks, note: Callable[[str], None]
) -> list[Scored]:
    """Without twins, and of the rest the best that are diverse; in the order of their sources."""
    twins = without_twins([looks for _, looks, _ in scored], [q.score for *_, q in scored])
    for number, other in twins.items():
        names = [scored[each][0].pictures[0].origin.name for each in (number, other)]
        note(f"the set of {names[0]} shows what that of {names[1]} shows, and is left out")
    rest = [each for number, each in enumerate(scored) if number not in twins]
    if keep is None or len(rest) <= keep:
        return rest
    rows = _rows(rest, seen) if seen.seer else None
    order = spread_out([looks for _, looks, _ in rest], [q.score for *_, q in rest], keep, rows)
    return [rest[number] for number in sorted(order)]


def _rows(scored: Sequence[Scored], seen: Looks) -> NDArray[np.float32]:
    """What the model sees in each set: the mean of its pictures', (sets, channels)."""
    found = iter(seen.embedded([picture for each, *_ in scored for picture in each.pictures]))
    own = [[next(found) for _ in each.pictures] for each, *_ in scored]
    # All were opened when they were judged.
    return np.array([np.mean([r for r in rows if r is not None], axis=0) for rows in own])


def _write(out: Path, kept: Sequence[Scored], progress: Progress) -> list[str]:
    """Write sets that are not there yet. Returns: their names."""
    _check_begun(out, [found for found, _, _ in kept])
    names = []
    for number, (found, _, _) in enumerate(kept, 1):
        name = f"{number:04d}"
        names.append(name)
        if found.composite:
            _write_joined(out, name, found)
        elif not (out / name).is_dir():
            with files.work_folder(out / name) as work:
                for panel, picture in enumerate(found.pictures, 1):
                    data = picture.read()
                    (work / f"{panel}{_ending(data)}").write_bytes(data)
                _write_words(work, found)
        progress("writing sets", number, len(kept), name)
    return names


def _check_begun(out: Path, kept: Sequence[Found]) -> None:
    """Refuse to go on beside sets of other pictures: a source changed since they were written."""
    for entry in out.iterdir():
        number = entry.name.split(".")[0]
        if not (number.isascii() and number.isdigit()):
            continue
        lying = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        there = [file.read_bytes() for file in lying if file.suffix in IMAGE_SUFFIXES]
        found = kept[int(number) - 1] if 0 < int(number) <= len(kept) else None
        if there and (not found or there != [picture.read() for picture in found.pictures]):
            raise DatasetError(
                f"{entry} has other pictures than the sources have now: one of them changed since "
                "this collection was begun",
                "Remove that folder of sets and collect again, or choose another `out`.",
                setting="out",
            )


def _write_joined(out: Path, name: str, found: Found) -> None:
    data = found.pictures[0].read()
    files.write_bytes(out / f"{name}{_ending(data)}", data)
    if found.caption:
        files.write_text(out / f"{name}.txt", found.caption)


def _write_words(work: Path, found: Found) -> None:
    """A joint caption, or a text for each panel; words of some panels alone stay in sets.jsonl."""
    if found.caption:
        files.write_text(work / "caption.txt", found.caption + "\n")
    elif all(picture.words for picture in found.pictures):
        for panel, picture in enumerate(found.pictures, 1):
            files.write_text(work / f"{panel}.txt", picture.words + "\n")


def _ending(data: bytes) -> str:
    """The ending of a picture's kind, whatever its file was called."""
    kind = (kind_of(data[:64]) or "PNG").lower()
    ending = {"jpeg": ".jpg", "tiff": ".tif"}.get(kind, f".{kind}")
    if data[:2] == b"BM":
        return ".bmp"
    return ending if ending in IMAGE_SUFFIXES else PurePosixPath(f"x{ending}").suffix


def _write_manifest(out: Path, recipe: Recipe) -> None:
    name = recipe.name
    if recipe.name not in recipe_names() or load_recipe(recipe.name) != recipe:
        name = "recipe.toml"
        content = recipe.model_dump(mode="json", exclude_defaults=True)
        files.write_text(out / name, tomli_w.dumps(content))
    note = "# The task these sets belong to; read by iclora.\n"
    files.write_text(out / MANIFEST, note + tomli_w.dumps({"recipe": name}))
