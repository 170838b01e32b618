"""Image sets joined into composites that any trainer reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tomli_w

from iclora import files
from iclora.errors import CaptionError, DatasetError
from iclora.sets.dataset import LAYOUT_KEY, MANIFEST, Dataset, ImageSet, Problem, check_dataset
from iclora.sets.images import write_png
from iclora.sets.layout import Layout
from iclora.sets.recipe import Recipe, load_recipe, recipe_names

__all__ = ["compose_dataset"]

# FLUX.1, FLUX.2, Qwen-Image and Z-Image all read 16 px tokens. Composites are written on this
# grid; training fits every panel again to the grid of the base it is given.
_COMPOSE_GRID = 16


def compose_dataset(
    source: Dataset,
    out: str | Path,
    *,
    resolution: int = 1536,
    progress: Callable[[str, Layout], None] | None = None,
) -> list[Problem]:
    """Write every set as one composite with its caption, and a manifest, into a new folder.

    Each panel is resized once, to its box on a canvas of the set's own pixels but at most
    `resolution` squared; nothing is cropped. The canvas's layout goes into the PNG, so its panels
    are found again exactly.

    Args:
        out: a folder that does not exist yet or is empty.
        progress: called with each set's name and layout as it is written.
    Returns: captions that are missing or do not parse, as problems to mend before training.
    Raises: DatasetError if `out` is not empty or a set cannot be composed, before anything is
        written; StorageError, and nothing is left behind.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} is not an empty folder", "Choose another --out, or remove it.")
    # The smallest usual training size beside it, or every set would count as too small for it.
    sizes = (min(512, resolution), resolution)
    reports = list(check_dataset(source, resolutions=sizes, grid=_COMPOSE_GRID))
    problems = [*source.problems, *(p for r in reports for p in r.problems)]
    broken = [p for p in problems if p.severity == "error" and not p.caption]
    if broken:
        raise DatasetError(
            f"{len(broken)} problem{'s' * (len(broken) > 1)} in {source.path}:\n"
            + "\n".join(f"  {p}" for p in broken),
            "Nothing was written. Mend these and run it again.",
        )
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        for image_set in source.sets:
            layout = _write_composite(image_set, source.recipe, work, resolution)
            if progress:
                progress(image_set.name, layout)
        _write_manifest(work, source.recipe)
        work.rename(out)
    except OSError as error:
        raise files.storage_error(out, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return problems


def _write_composite(image_set: ImageSet, recipe: Recipe, out: Path, resolution: int) -> Layout:
    panels = image_set.load(recipe)
    area = min(panels.area, resolution**2)
    layout = recipe.canvas.fit(panels.sizes, area, _COMPOSE_GRID)
    recorded = {LAYOUT_KEY: json.dumps(layout.to_json())}
    write_png(out / f"{panels.name}.png", layout.compose(panels.panels), recorded)
    # What is wrong with a caption is among the problems; many are written after composing.
    with suppress(CaptionError, DatasetError):
        files.write_text(out / f"{panels.name}.txt", image_set.caption())
    return layout


def _write_manifest(out: Path, recipe: Recipe) -> None:
    name = recipe.name
    if recipe.name not in recipe_names() or load_recipe(recipe.name) != recipe:
        # A recipe of the user's own travels with the sets made by it.
        name = "recipe.toml"
        content = recipe.model_dump(mode="json", exclude_defaults=True)
        files.write_text(out / name, tomli_w.dumps(content))
    note = "# The task these sets belong to; read by iclora.\n"
    files.write_text(out / MANIFEST, note + tomli_w.dumps({"recipe": name}))
