"""Image sets joined into composites that any trainer reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from iclora import files
from iclora.errors import CaptionError, DatasetError
from iclora.files.locks import alone
from iclora.progress import Progress
from iclora.sets.canvas import compose
from iclora.sets.check import Problem, SetReport, TrainingSet, accept, check_dataset
from iclora.sets.dataset import LAYOUT_KEY, MANIFEST, Dataset, ImageSet
from iclora.sets.editing import manifest_of
from iclora.sets.images import write_png
from iclora.sets.layout import GRID
from iclora.sets.letterbox import cut_note, with_cuts
from iclora.sets.recipe import Recipe
from iclora.settings import RESOLUTIONS

__all__ = ["compose_dataset"]


def compose_dataset(
    source: Dataset,
    out: str | Path,
    *,
    resolution: int = RESOLUTIONS[-1],
    grid: int = GRID,
    cut_bars: bool = True,
    progress: Progress | None = None,
) -> list[Problem]:
    """Write every set as one composite with its caption, and a manifest, into a new folder.

    Each panel is resized once, to its box on a canvas of the set's own pixels but at most
    `resolution` squared; nothing of a picture is cropped. The canvas's layout goes into the PNG,
    so its panels are found again exactly. Training fits every panel again to its base's grid.

    Args:
        out: a folder that does not exist yet or is empty.
        resolution: side of a square of the largest canvas's area, px.
        grid: edges of panels and sides of the canvas are multiples of so many px.
        cut_bars: True if letterboxes and borders of single files are cut off; see `letterbox`.
        progress: told of each composite as it is written, its name as the note and its layout as
            a value.
    Returns: captions that are missing or do not parse, as problems to fix before training.
    Raises: DatasetError if `out` is not empty or a set cannot be composed, before anything is
        written; StorageError, and nothing is left behind.
    """
    # Beside the folder, which is renamed into its place.
    out, place = _probed(Path(out))
    progress = progress or Progress()
    notes: list[Problem] = []
    # The smallest usual training size beside it, or every set would count as too small for it.
    sizes = (min(min(RESOLUTIONS), resolution), resolution)
    with alone(place, out, partial(DatasetError, setting="out")):
        files.clear_leftovers(out.parent, out.name, alone=True)
        reports = list(check_dataset(source, resolutions=sizes, grid=grid))
        if cut_bars:
            source, reports, notes = _without_bars(source, reports, sizes, grid)
        found = accept(source, reports, captions=False)

        def write(work: Path) -> None:
            for done, (image_set, checked) in enumerate(zip(source.sets, found, strict=True), 1):
                layout = checked.layouts[-1]
                _write_composite(image_set, checked, work)
                progress("composing", done, len(found), checked.name, layout=layout)
            _write_manifest(work, source.recipe)

        _finish(out, write)
    return [*source.problems, *notes, *(p for report in reports for p in report.problems)]


def _without_bars(
    source: Dataset, reports: list[SetReport], sizes: Sequence[int], grid: int
) -> tuple[Dataset, list[SetReport], list[Problem]]:
    """A dataset whose single files lose their bars, its reports, and what to say of it."""
    panels = {r.name: tuple(zip(r.sizes, r.pairs, strict=True)) for r in reports if r.pairs}
    cut = with_cuts(source, panels)
    again = check_dataset(replace(source, sets=tuple(cut)), resolutions=sizes, grid=grid)
    new_sets = {each.name: each for each in cut}
    new_reports = {report.name: report for report in again}
    sets = tuple(new_sets.get(each.name, each) for each in source.sets)
    found = [new_reports.get(report.name, report) for report in reports]
    return replace(source, sets=sets), found, list(cut_note(cut))


def _finish(out: Path, write: Callable[[Path], None]) -> None:
    """Write a folder, whole or not at all; one that a killed process finished is compared.

    Raises: DatasetError if that is another one; StorageError.
    """
    if out.exists() and any(out.iterdir()):
        with TemporaryDirectory(dir=out.parent, prefix=".") as work:
            write(Path(work))
            if _contents(Path(work)) != _contents(out):
                raise _not_empty(out)
        return
    if out.exists():
        out.rmdir()
    with files.work_folder(out) as work:
        write(work)


def _contents(folder: Path) -> dict[str, str]:
    """The hash of every file."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): files.digest(p.read_bytes()) for p in found}


def _not_empty(out: Path) -> DatasetError:
    return DatasetError(
        f"{out} is not an empty folder", "Choose another `out`, a new folder.", setting="out"
    )


def _probed(out: Path) -> tuple[Path, Path]:
    """The real path of the folder to write, and of its lock.

    A lock that nobody holds was left by a process that was killed, perhaps just after it finished:
    then the folder may be full.

    Raises: DatasetError, StorageError if it cannot be written.
    """
    problem = None
    try:
        real = out.resolve()
        place = real.with_name(f".{files.digest(real.name)[:12]}.lock")
        finished = place.exists() and (real / MANIFEST).is_file()
        if real == Path.cwd():
            problem = f"{out} is the folder you are in"
        elif real.is_mount():
            problem = f"{out} is a mount point, which cannot be replaced by a finished folder"
        elif real.exists() and (not real.is_dir() or (any(real.iterdir()) and not finished)):
            raise _not_empty(out)
    except (OSError, RuntimeError, ValueError) as error:
        problem = f"{str(out)!a} cannot be written: {error}"
    if problem:
        raise DatasetError(problem, "Choose another `out`, a new folder.", setting="out")
    files.check_folder(real, "out")
    return real, place


def _write_composite(image_set: ImageSet, checked: TrainingSet, out: Path) -> None:
    layout = checked.layouts[-1]
    recorded = {LAYOUT_KEY: json.dumps(layout.to_json())}
    if (out / f"{checked.name}.png").exists():  # Some disks take A and a for one name.
        raise DatasetError(
            f'two sets have names that are one on this disk: "{checked.name}"', "Rename one."
        )
    write_png(out / f"{checked.name}.png", compose(layout, checked.load().panels), recorded)
    # What is wrong with a caption is among the problems; many are written after composing.
    with suppress(CaptionError, DatasetError):
        files.write_text(out / f"{checked.name}.txt", image_set.caption())


def _write_manifest(out: Path, recipe: Recipe) -> None:
    for name, content in manifest_of(recipe, recipe.name).items():
        files.write_bytes(out / name, content or b"")
