"""Sets of datasets as the page shows them: what `check` finds, and their pictures.

Both are made of files that may change at any time, so each is kept under a stamp of the files.
"""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from iclora import files
from iclora.errors import IcloraError
from iclora.serve.catalog import Catalog
from iclora.serve.problems import Refused
from iclora.serve.tokens import Tokens
from iclora.sets.canvas import compose
from iclora.sets.check import Problem, SetReport, check_dataset, twin, usual_resolutions
from iclora.sets.dataset import Dataset, ImageSet, open_dataset
from iclora.sets.images import read_image

__all__ = ["Look", "Looks", "View", "stamp"]

View: TypeAlias = Literal["trained", "file", "panel"]
"""The canvas that is trained on; a file as it lies there; a panel as it is read."""

_FRESH = 2.0
"""Seconds for which a dataset that was opened is not listed again for pictures of it."""
_REPORTS = 4000
_SMALL = 512 * 512
"""Pixels up to which pictures are sent without loss."""
_MOST_BYTES = 2 * 10**9
"""Of pictures that are kept; the oldest go first."""


@dataclass(frozen=True)
class Look:
    """A set's findings."""

    report: SetReport
    problems: tuple[Problem, ...]
    """Of the report, and that another set has the same pictures."""


class Looks:
    """Opens datasets, and keeps what was seen of their sets."""

    def __init__(self, catalog: Catalog, tokens: Tokens) -> None:
        self._catalog, self._tokens = catalog, tokens
        self._home = catalog.home / "looks"
        self._opened: dict[tuple[str, str | None], tuple[float, Dataset]] = {}
        self._reports: OrderedDict[tuple[str, ...], SetReport] = OrderedDict()
        self._lock = threading.Lock()
        self._written = 0

    def dataset(self, name: str, recipe: str | None = None, *, fresh: bool = True) -> Dataset:
        """A dataset of the served folder.

        Args:
            fresh: False if it may be as it was a moment ago.
        Raises: Refused with 404; DatasetError, RecipeError.
        """
        key, now = (name, recipe), time.monotonic()
        known = self._opened.get(key)
        if known and not fresh and now - known[0] < _FRESH:
            return known[1]
        places = self._catalog.datasets()
        if name not in places:
            raise Refused(404, f'there is no dataset "{name[:80]}"', "List the datasets.")
        chosen = self._catalog.recipe(recipe)[1] if recipe is not None else None
        found = open_dataset(places[name], chosen)
        with self._lock:
            self._opened = {k: v for k, v in self._opened.items() if now - v[0] < _FRESH}
            self._opened[key] = (now, found)
        return found

    def changed(self) -> None:
        """Forget what was opened a moment ago."""
        with self._lock:
            self._opened = {}

    def look(self, dataset: Dataset, image_set: ImageSet) -> Look:
        """What `check` finds at a set. Raises nothing: what cannot be read is a finding."""
        report = self._report(dataset, image_set)
        return Look(report, (*report.problems, *self._twins(dataset, image_set, report)))

    def _key(self, dataset: Dataset, image_set: ImageSet) -> tuple[str, ...]:
        recipe = files.digest(dataset.recipe.model_dump_json())
        return (
            str(dataset.path),
            image_set.name,
            stamp(dataset, image_set),
            _words(image_set),
            recipe,
        )

    def _report(self, dataset: Dataset, image_set: ImageSet) -> SetReport:
        key = self._key(dataset, image_set)
        with self._lock:
            if key in self._reports:
                self._reports.move_to_end(key)
                return self._reports[key]
        counter = self._tokens.counter()
        alone = replace(dataset, sets=(image_set,))
        (report,) = check_dataset(
            alone,
            count_tokens=counter.count if counter.exact else None,
            limit=counter.limit,
            resolutions=usual_resolutions(dataset.recipe),
        )
        with self._lock:
            self._reports[key] = report
            while len(self._reports) > _REPORTS:
                self._reports.popitem(last=False)
        return report

    def _twins(self, dataset: Dataset, image_set: ImageSet, report: SetReport) -> list[Problem]:
        """Sets before this one that have the same pictures, among those that were looked at."""
        if report.set is None:
            return []
        before = [each.name for each in dataset.sets]
        before = before[: before.index(image_set.name)]
        with self._lock:
            known = {
                key[1]: each.set.digest
                for key, each in self._reports.items()
                if key[0] == str(dataset.path) and each.set
            }
        same = next((name for name in before if known.get(name) == report.set.digest), None)
        return [] if same is None else [twin(image_set.name, same)]

    def picture(
        self, dataset: Dataset, image_set: ImageSet, view: View, number: int, side: int
    ) -> Path:
        """A WebP of a set, made once.

        Args:
            number: of the panel or file, counted from 1.
            side: px that neither of its sides is longer than.
        Raises: Refused with 404; ImageError, DatasetError, LayoutError.
        """
        key = files.digest(*self._key(dataset, image_set), view, f"{number}", f"{side}")
        path = self._home / f"{key[:40]}.webp"
        if not path.is_file():
            picture = self._draw(dataset, image_set, view, number)
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            held = io.BytesIO()
            small = picture.width * picture.height <= _SMALL
            picture.save(held, "WEBP", quality=88, method=2, lossless=small)
            files.write_bytes(path, held.getvalue())
            self._written += 1
            if self._written % 100 == 0:
                self._prune()
        return path

    def _draw(self, dataset: Dataset, image_set: ImageSet, view: View, number: int) -> Image.Image:
        if view == "trained":
            found = self._report(dataset, image_set).set
            if found is None:
                raise Refused(404, "this set has no canvas yet", "See what is wrong with it.")
            return compose(found.layouts[-1], found.load().panels)
        if view == "file":
            if not 1 <= number <= len(image_set.images):
                raise _no_panel(number)
            name = image_set.images[number - 1]
            return read_image(image_set.read(number - 1), name)
        panels = image_set.load(dataset.recipe).panels if image_set.composite else None
        if not 1 <= number <= (len(panels) if panels else len(image_set.images)):
            raise _no_panel(number)
        return panels[number - 1] if panels else image_set.panel(number - 1)

    def _prune(self) -> None:
        """Keep the folder small; what is gone is made again."""
        kept = sorted(self._home.glob("*.webp"), key=lambda path: -path.stat().st_mtime)
        total = 0
        for path in kept:
            total += path.stat().st_size
            if total > _MOST_BYTES:
                path.unlink(missing_ok=True)


def _no_panel(number: int) -> Refused:
    return Refused(404, f"there is no panel {number}", "Count panels from 1.")


def stamp(dataset: Dataset, image_set: ImageSet) -> str:
    """Changes whenever a set's picture files do: their names, sizes and times."""
    told: list[str] = []
    places = [dataset.path]
    if dataset.path.is_dir():
        places = [dataset.path / name for name in image_set.images]
    for place in places:
        try:
            found = place.stat()
            told.append(f"{place.name} {found.st_size} {found.st_mtime_ns}")
        except OSError:
            told.append(f"{place.name} gone")
    return files.digest(*image_set.images, *told)[:24]


def _words(image_set: ImageSet) -> str:
    try:
        return files.digest(image_set.caption_bytes())
    except IcloraError:
        return "unread"
