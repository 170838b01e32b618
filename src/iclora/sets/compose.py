"""Image sets joined into composites that any trainer reads."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import tomli_w

from iclora import files
from iclora.errors import CaptionError, DatasetError
from iclora.progress import Progress
from iclora.sets.canvas import compose
from iclora.sets.check import Problem, TrainingSet, accept, check_dataset
from iclora.sets.dataset import LAYOUT_KEY, MANIFEST, Dataset, ImageSet
from iclora.sets.images import write_png
from iclora.sets.recipe import Recipe, load_recipe, recipe_names
from iclora.settings import RESOLUTIONS

__all__ = ["compose_dataset"]


def compose_dataset(
    source: Dataset,
    out: str | Path,
    *,
    resolution: int = RESOLUTIONS[-1],
    progress: Progress | None = None,
) -> list[Problem]:
    """Write every set as one composite with its caption, and a manifest, into a new folder.

    Each panel is resized once, to its box on a canvas of the set's own pixels but at most
    `resolution` squared; nothing is cropped. The canvas's layout goes into the PNG, so its panels
    are found again exactly. Training fits every panel again to the grid of the base it is given.

    Args:
        out: a folder that does not exist yet or is empty.
        resolution: side of a square of the largest canvas's area, px.
        progress: told of each composite as it is written, its name as the note and its layout as
            a value.
    Returns: captions that are missing or do not parse, as problems to fix before training.
    Raises: DatasetError if `out` is not empty or a set cannot be composed, before anything is
        written; StorageError, and nothing is left behind.
    """
    out, progress = Path(out), progress or Progress()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(
            f"{out} is not an empty folder", "Choose another `out`, or remove it.", setting="out"
        )
    # The smallest usual training size beside it, or every set would count as too small for it.
    sizes = (min(min(RESOLUTIONS), resolution), resolution)
    reports = list(check_dataset(source, resolutions=sizes))
    found = accept(source, reports, captions=False)
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        for done, (image_set, checked) in enumerate(zip(source.sets, found, strict=True), 1):
            layout = checked.layouts[-1]
            _write_composite(image_set, checked, work)
            progress("composing", done, len(found), checked.name, layout=layout)
        _write_manifest(work, source.recipe)
        work.rename(out)
    except OSError as error:
        raise files.storage_error(out, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [*source.problems, *(p for report in reports for p in report.problems)]


def _write_composite(image_set: ImageSet, checked: TrainingSet, out: Path) -> None:
    layout = checked.layouts[-1]
    recorded = {LAYOUT_KEY: json.dumps(layout.to_json())}
    write_png(out / f"{checked.name}.png", compose(layout, checked.load().panels), recorded)
    # What is wrong with a caption is among the problems; many are written after composing.
    with suppress(CaptionError, DatasetError):
        files.write_text(out / f"{checked.name}.txt", image_set.caption())


def _write_manifest(out: Path, recipe: Recipe) -> None:
    name = recipe.name
    if recipe.name not in recipe_names() or load_recipe(recipe.name) != recipe:
        # A recipe of the user's own travels with the sets made by it.
        name = "recipe.toml"
        content = recipe.model_dump(mode="json", exclude_defaults=True)
        files.write_text(out / name, tomli_w.dumps(content))
    note = "# The task these sets belong to; read by iclora.\n"
    files.write_text(out / MANIFEST, note + tomli_w.dumps({"recipe": name}))
