"""Checks of image sets: problems to fix, and all that training needs to know of good sets.

`check_dataset` decodes every picture once, fits its training canvases once, and hands both on as
a TrainingSet: planning, describing and encoding take these and look at no file again, but for the
pixels that are encoded.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from iclora.errors import CaptionError, DatasetError, ImageError, LayoutError
from iclora.sets.caption import (
    APART,
    SHORTEN,
    TOKEN_LIMIT,
    check_budget,
    estimate_tokens,
    unknown_note,
)
from iclora.sets.dataset import Dataset, ImageSet, Measured, PanelSet, Problem
from iclora.sets.edges import Edges
from iclora.sets.layout import GRID, MOST_STRETCH, Layout, Size
from iclora.sets.leftovers import told_leftovers
from iclora.sets.recipe import Recipe
from iclora.sets.residue import residue_in
from iclora.settings import RESOLUTIONS, TextKind, foreign_words

__all__ = [
    "Problem",
    "SetReport",
    "TrainingSet",
    "accept",
    "check_dataset",
    "training_layouts",
    "twin",
    "typical_layout",
    "usual_resolutions",
]


@dataclass(frozen=True)
class TrainingSet:
    """One set whose pictures are right."""

    name: str
    digest: str
    """Content hash of its image files."""
    sizes: tuple[Size, ...]
    """Panel sizes in px as they lie there."""
    layouts: tuple[Layout, ...]
    """The distinct canvases it trains at, smallest first."""
    caption: str
    """Its joint caption; empty if that is missing or wrong."""
    _load: Callable[[], PanelSet] = field(repr=False, compare=False)
    scene: str = ""
    """What it was cut from, if it was collected; sets of one scene are held out together."""

    def load(self) -> PanelSet:
        """Decode its panels again, without searching for seams again.

        Raises: ImageError, DatasetError if its files have changed since they were checked.
        """
        panels = self._load()
        if tuple(panels.sizes) != self.sizes:
            raise DatasetError(
                f'the pictures of set "{self.name}" have changed since they were checked',
                "Run it again.",
            )
        return panels


@dataclass(frozen=True)
class SetReport:
    """The findings about one set."""

    name: str
    set: TrainingSet | None
    """The set; None if its pictures cannot be read or have no canvas."""
    tokens: int | None
    """Tokens of the caption, or of the longest text that is read apart; an estimate if they were
    not counted; None without a caption."""
    problems: tuple[Problem, ...]
    pairs: tuple[Edges, ...] = ()
    """Bars at opposite edges of each panel of single files; `compose` cuts them off."""
    by_text: tuple[int, ...] = ()
    """Tokens of each text that is encoded: the caption, or one for each panel."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Panel sizes in px as they lie there; empty if they cannot be read."""
        return self.set.sizes if self.set else ()


def check_dataset(
    dataset: Dataset,
    *,
    count_tokens: Callable[[str], int] | None = None,
    limit: int = TOKEN_LIMIT,
    unknown: Callable[[str], float] | None = None,
    resolutions: Sequence[int] = RESOLUTIONS,
    upscale: bool = False,
    grid: int = GRID,
    text: TextKind = "joint",
) -> Iterator[SetReport]:
    """Read every image and caption, and report each set as it is done.

    Args:
        count_tokens: the base's tokenizer. Without it the number is estimated, and only a caption
            of more words than `limit` is known to be too long: every word is at least one token.
        limit: tokens the base reads.
        unknown: share of a text's letters that the base's tokenizer does not know; without it
            letters that FLUX.1's hardly knows are warned of.
        resolutions: training resolutions (side of a square of the same area, px).
        upscale: True if sets are enlarged to them.
        grid: token edge of the base, px.
        text: what a panel will read; each text that is encoded may have `limit` tokens.
    Yields: one report per set, in order; errors in it stop `train`.
    """
    twins: dict[str, str] = {}
    for image_set in dataset.sets:
        problems: list[Problem] = []
        words, tokens = _judge_caption(
            dataset.recipe, image_set, _Budget(count_tokens, limit, text), problems
        )
        problems += _judge_words(image_set.name, words, unknown)
        pictures: list[Problem] = []
        found, pairs = None, tuple[Edges, ...]()
        try:
            panels = image_set.measure(dataset.recipe)
            layouts = training_layouts(
                dataset.recipe.canvas, panels.sizes, resolutions, grid, upscale
            )
            pictures += _judge_sizes(panels, layouts, min(resolutions))
            pictures += _judge_twins(image_set, twins)
            pairs = panels.pairs
            found = TrainingSet(
                image_set.name,
                image_set.digest,
                tuple(panels.sizes),
                tuple(layouts),
                words,
                partial(image_set.load, dataset.recipe, panels.found),
                origin.scene if (origin := dataset.origins.get(image_set.name)) else "",
            )
        except (ImageError, DatasetError, LayoutError) as error:
            pictures.append(Problem(image_set.name, error.problem, error.advice))
        yield SetReport(
            image_set.name, found, max(tokens, default=None), (*pictures, *problems), pairs, tokens
        )


def accept(
    dataset: Dataset,
    reports: Iterable[SetReport],
    warn: Callable[[str], None] | None = None,
    captions: bool = True,
) -> list[TrainingSet]:
    """Take the sets of a dataset in which nothing is wrong.

    Args:
        reports: of `check_dataset`.
        warn: told of warnings, and of errors in captions if these may be wrong.
        captions: False if captions may be wrong or missing, as before they are written.
    Raises: DatasetError with every error.
    """
    reports = list(reports)
    problems = [*dataset.problems, *(p for report in reports for p in report.problems)]
    errors = [p for p in problems if p.severity == "error" and (captions or not p.caption)]
    dataset.refuse(errors)
    if warn:
        for problem in problems:
            warn(str(problem))
    return [report.set for report in reports if report.set]


@dataclass(frozen=True)
class _Budget:
    """How long a text may be."""

    count: Callable[[str], int] | None
    """The base's tokenizer; without it a text of more words than `limit` is known to be too long,
    and others are estimated."""
    limit: int
    kind: TextKind

    def take(self, text: str, name: str) -> int:
        """Count a text, or estimate it. Raises: CaptionError if it is too long."""
        advice = APART if self.kind == "joint" else SHORTEN
        if self.count:
            return check_budget(text, self.count, self.limit, name, advice)
        check_budget(text, lambda t: len(t.split()), self.limit, name, advice)
        return estimate_tokens(text)


def _judge_caption(
    recipe: Recipe, image_set: ImageSet, budget: _Budget, problems: list[Problem]
) -> tuple[str, tuple[int, ...]]:
    """The caption and the tokens of its texts, both empty if it is wrong; what is wrong joins
    `problems`."""
    name = f'the caption of "{image_set.name}"'
    try:
        text = image_set.caption()
        recipe.parse(text)
        read = recipe.texts(text, budget.kind)
        names = [name]
        if budget.kind != "joint":
            names = [f'what panel {n} of "{image_set.name}" reads' for n in range(1, len(read) + 1)]
        tokens = tuple(map(budget.take, read, names))
    except (CaptionError, DatasetError) as error:
        problems.append(Problem(image_set.name, error.problem, error.advice, caption=True))
        return "", ()
    if budget.count is None and max(tokens) > budget.limit:
        problems.append(
            Problem(
                image_set.name,
                f"the caption may be too long, some {max(tokens)} tokens of {budget.limit}",
                "Name the `base`, whose tokenizer counts them.",
                "warning",
            )
        )
    return text, tokens


def _judge_words(
    name: str, words: str, unknown: Callable[[str], float] | None
) -> Iterator[Problem]:
    """Warnings of words that a base cannot read, or would learn though nobody means them."""
    if note := unknown_note(words, unknown):
        advice = "Write captions in a language that the base knows; FLUX.1 reads English best."
        yield Problem(name, note, advice, "warning", caption=True)
    if left := residue_in(words) or foreign_words(words):
        note = f'its caption holds "{left}", which would be learnt as words'
        advice = "Leave out what markup, models and other tools write around words."
        yield Problem(name, note, advice, "warning", caption=True)


def twin(name: str, other: str) -> Problem:
    """What is said of a set that has the pictures of another."""
    return Problem(
        name, f'the same images as set "{other}"', "Remove one, or it counts double.", "warning"
    )


def _judge_twins(image_set: ImageSet, seen: dict[str, str]) -> Iterator[Problem]:
    other = seen.setdefault(image_set.digest, image_set.name)
    if other != image_set.name:
        yield twin(image_set.name, other)


def _judge_sizes(panels: Measured, layouts: Sequence[Layout], least: int) -> Iterator[Problem]:
    if panels.unseen_seams:
        yield Problem(
            panels.name,
            f"{panels.unseen_seams} of the borders between its panels do not show in the picture, "
            "so it is split where they would usually be",
            "Look at it; a folder with one file per panel leaves no doubt.",
            "warning",
        )
    if panels.bars:
        yield Problem(
            panels.name,
            f"bars of one colour, up to {panels.bars} px wide, lie around or between its panels; "
            "it is cut inside them",
            "Look at the panels with `iclora review`.",
            "warning",
        )
    for name in panels.blank:
        yield Problem(
            panels.name,
            f"image {name} is transparent, and nothing of it shows on its background",
            "Fill it yourself, or compose the sets with another `background`, such as auto.",
            "warning",
        )
    yield from _judge_bars(panels)
    if rest := told_leftovers(panels.rest):
        yield Problem(
            panels.name,
            f"what may be no picture is left and would be trained: {rest}",
            "Look at the panels with `iclora review`, and crop off what is none.",
            "warning",
        )
    worst = max(max(layout.stretch(panels.sizes)) for layout in layouts)
    if worst > MOST_STRETCH:
        yield Problem(
            panels.name,
            f"a panel is {100 * (worst - 1):.0f}% off the shape of its box, and nothing is cropped",
            "Bring it into that shape, or use a recipe of rows and larger resolutions.",
        )
    elif worst > 1.06:
        yield Problem(
            panels.name,
            f"a panel is stretched by {100 * (worst - 1):.0f}% at a training size, since its edges "
            "move to the token grid",
            "Use larger resolutions, or panels of less extreme shape.",
            "warning",
        )
    if _side(panels.area) < least:
        yield Problem(
            panels.name,
            f"only {panels.area / 1e6:.2f} megapixels in all, less than the smallest training size "
            f"of {least}x{least}",
            "It trains at its own size; larger originals would teach more.",
            "warning",
        )


def _judge_bars(panels: Measured) -> Iterator[Problem]:
    if panels.strips:
        yield Problem(
            panels.name,
            f"{'; '.join(panels.strips)}, are cut off",
            "Look at the panels with `iclora review`; files of single panels keep theirs.",
            "warning",
        )
    if panels.doubts:
        yield Problem(
            panels.name,
            f"where its panels end is not certain: {'; '.join(panels.doubts)}",
            "Look at them with `iclora review`; a folder with one file per panel leaves no doubt.",
            "warning",
        )
    for number, (edges, pairs) in enumerate(zip(panels.edges, panels.pairs, strict=True), 1):
        if any(edges):
            ways = "`iclora compose` cuts them off, alike in all pictures of a size"
            if edges != pairs:
                ways = (
                    "Crop them off, alike in all sets, unless they belong to the picture; `iclora "
                    "compose` cuts only bars that lie opposite each other"
                )
            yield Problem(
                panels.name,
                f"panel {number} has bars of one colour at its edges ({edges.told}), which would "
                "be trained",
                f"{ways}.",
                "warning",
            )


def training_layouts(
    canvas: Layout,
    sizes: Sequence[Size],
    resolutions: Sequence[int] = RESOLUTIONS,
    grid: int = GRID,
    upscale: bool = False,
) -> list[Layout]:
    """The distinct canvases a set trains at, smallest first.

    A resolution beyond the set's own pixels falls back to these (unless `upscale`), and
    resolutions that come to the same canvas count once, so no size is seen double.

    Args:
        resolutions: sides of squares of the wanted areas, px.
    """
    own = sum(width * height for width, height in sizes)
    areas = sorted({r * r if upscale else min(r * r, own) for r in resolutions})
    return list(dict.fromkeys(canvas.fit(sizes, area, grid) for area in areas))


def _side(area: int) -> int:
    """The side of the smallest square that has an area, px."""
    return math.isqrt(area - 1) + 1


def usual_resolutions(recipe: Recipe) -> tuple[int, ...]:
    """Training resolutions to judge a recipe's sets by if nobody names any.

    A recipe whose canvas is smaller than all of them, as toyland's are, has sets of that size.
    """
    own = _side(recipe.canvas.width * recipe.canvas.height)
    return RESOLUTIONS if own >= min(RESOLUTIONS) else (own,)


def typical_layout(canvas: Layout, sizes: Sequence[Sequence[Size]], grid: int) -> Layout:
    """The canvas for sets like these: the area of `canvas`, each panel of its median shape.

    Args:
        sizes: panel sizes of each set, px.
        grid: token edge, px.
    """
    if not canvas.per_row:
        return canvas
    ratios = [statistics.median(w / h for w, h in column) for column in zip(*sizes, strict=True)]
    shapes = [(round(1000 * ratio), 1000) for ratio in ratios]
    return canvas.fit(shapes, canvas.width * canvas.height, grid)
