"""A contact sheet: every set with its words, on one self-contained page to look through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from iclora.errors import CaptionError, IcloraError
from iclora.files import write_text
from iclora.pages.page import data_url, render
from iclora.sets.canvas import compose
from iclora.sets.caption import TOKEN_LIMIT, JointCaption
from iclora.sets.check import SetReport
from iclora.sets.dataset import Dataset, ImageSet
from iclora.sets.edges import Edges
from iclora.sets.recipe import Recipe

__all__ = ["write_review"]

_SIDE = 720
"""Longest side of a composite on the page, px."""
_PANEL_SIDE = 208
"""Longest side of a panel on the page, px."""


def write_review(
    dataset: Dataset, reports: Sequence[SetReport], out: Path, limit: int | None = None
) -> None:
    """Write the contact sheet of a dataset.

    Args:
        reports: of `check_dataset`, one per set.
        out: the page, one HTML file with the pictures inside.
        limit: tokens the base reads; None if no base counted them, so that they are estimates.
    Raises: StorageError.
    """
    sets = [
        _shown(dataset.recipe, image_set, report) | _origin(dataset, image_set)
        for image_set, report in zip(dataset.sets, reports, strict=True)
    ]
    scored = [each for each in sets if each["score"] is not None]
    for rank, each in enumerate(sorted(scored, key=lambda each: each["score"]), 1):
        each["rank"] = rank  # those that want a look come first
    page = render(
        "review",
        name=dataset.path.resolve().name,
        recipe=dataset.recipe.name,
        sets=sets,
        bad=[each for each in sets if each["problems"]],
        scored=len(scored),
        captioned=sum(s.caption_file is not None for s in dataset.sets),
        problems=dataset.problems,
        marked=any(any(edges) for report in reports for edges in report.pairs),
        about="~" if limit is None else "",
        limit=TOKEN_LIMIT if limit is None else limit,
    )
    write_text(out, page)


def _marked(panels: Sequence[Image.Image], pairs: Sequence[Edges]) -> list[Image.Image]:
    """Panels with lines where `compose` would cut off their bars."""
    for picture, edges in zip(panels, pairs, strict=False):
        wide, high = picture.size
        line = max(2, max(wide, high) // 200)
        inner = (edges.left, edges.top, wide - edges.right - 1, high - edges.bottom - 1)
        if any(edges):
            ImageDraw.Draw(picture).rectangle(inner, outline="magenta", width=line)
    return list(panels)


def _origin(dataset: Dataset, image_set: ImageSet) -> dict[str, Any]:
    """Where a collected set came from, and how good it was found."""
    origin = dataset.origins.get(image_set.name)
    if origin is None:
        return {"score": None, "reasons": (), "scene": "", "rank": 0}
    return {"score": origin.score, "reasons": origin.reasons, "scene": origin.scene, "rank": 0}


def _shown(recipe: Recipe, image_set: ImageSet, report: SetReport) -> dict[str, Any]:
    """One set as the page shows it."""
    try:
        panels = _marked(report.set.load().panels, report.pairs) if report.set else ()
        # As it is trained, on its largest canvas.
        whole = data_url(compose(report.set.layouts[-1], panels), _SIDE) if report.set else ""
    except IcloraError:
        # What is wrong stands beside it; the panels are shown one by one.
        whole = ""
    try:
        text = image_set.caption()
    except IcloraError:
        text = ""
    try:
        caption = JointCaption.parse(text, recipe.markers)
    except CaptionError:
        caption = None
    return {
        "name": report.name,
        "anchor": f"set-{report.name}".replace(" ", "-"),
        "tokens": report.tokens,
        "problems": report.problems,
        "panels": [data_url(panel, _PANEL_SIDE) for panel in panels],
        "whole": whole,
        "caption": caption,
        "texts": [(m, t.strip()) for m, t in zip(caption.markers, caption.panels, strict=True)]
        if caption
        else [],
        "raw": text,
    }
