"""A contact sheet: every set with its words, on one self-contained page to look through."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from iclora.errors import CaptionError, IcloraError
from iclora.files import write_text
from iclora.pages.page import STYLE, picture_tag
from iclora.sets.canvas import compose
from iclora.sets.caption import JointCaption
from iclora.sets.check import SetReport
from iclora.sets.dataset import Dataset, ImageSet

__all__ = ["write_review"]

_SIDE = 720
"""Longest side of a picture on the page, px."""
_OWN_STYLE = """
nav { position: sticky; top: 0; background: #f7f5f1ee; padding: .6rem 0; z-index: 1;
      border-bottom: 1px solid #ddd6cb } nav a, nav label { margin-right: 1rem }
nav a { color: #a33 }
section { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr);
      gap: 1.6rem; padding: 1.6rem 0; border-bottom: 1px solid #ddd6cb; align-items: start }
section > .whole { max-width: 100%; max-height: 86vh; border-radius: 4px }
h2 { font-size: 1.05rem; margin: 0 0 .5rem } .tokens { font-weight: 400; color: #6b645a }
.panel { display: grid; grid-template-columns: 104px 1fr; gap: .8rem; margin: .7rem 0;
         align-items: start } .panel img { max-width: 104px; max-height: 104px; border-radius: 3px }
.marker { font: 600 .78rem ui-monospace, monospace; color: #6b645a; display: block }
.problem { background: #fde6df; border-left: 4px solid #c4442a; padding: .4rem .7rem;
           margin: .4rem 0; font-size: .92rem }
.warning { background: #fdf3d7; border-color: #d09a1c }
pre { white-space: pre-wrap; font-size: .85rem }
body:has(#only:checked) section:not(.bad) { display: none }
@media (max-width: 760px) { section { grid-template-columns: 1fr } }
"""


def write_review(
    dataset: Dataset, reports: Sequence[SetReport], out: Path, limit: int = 512
) -> None:
    """Write the contact sheet of a dataset.

    Args:
        reports: of `check_dataset`, one per set.
        out: the page, one HTML file with the pictures inside.
        limit: tokens the base reads.
    Raises: StorageError.
    """
    rows = zip(dataset.sets, reports, strict=True)
    body = "".join(_section(dataset, image_set, report, limit) for image_set, report in rows)
    bad = [r for r in reports if r.problems]
    links = " ".join(f'<a href="#{_anchor(r.name)}">{html.escape(r.name)}</a>' for r in bad)
    captioned = sum(s.caption_file is not None for s in dataset.sets)
    odd = "".join(f'<p class="problem">{html.escape(str(p))}</p>' for p in dataset.problems)
    write_text(
        out,
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Review of {html.escape(dataset.path.name)}</title><style>{STYLE}{_OWN_STYLE}</style>
<h1>{html.escape(dataset.path.name)}: {len(dataset.sets)} sets of {html.escape(dataset.recipe.name)}
</h1><p class="note">{captioned} with a caption; {len(bad)} with something to look at.
Correct a caption in its file, then make this page again.</p>{odd}
<nav><label><input type="checkbox" id="only"> only sets with something to look at</label>{links}
</nav>{body}</html>
""",
    )


def _section(dataset: Dataset, image_set: ImageSet, report: SetReport, limit: int) -> str:
    problems = "".join(
        f'<p class="problem {p.severity}">{html.escape(p.text)}. {html.escape(p.advice)}</p>'
        for p in report.problems
    )
    try:
        panels = image_set.load(dataset.recipe).panels
    except IcloraError:
        panels = ()
    tokens = "no caption" if report.tokens is None else f"{report.tokens} of {limit} tokens"
    return (
        f'<section id="{_anchor(report.name)}" class="{"bad" if report.problems else "good"}">'
        f"{_whole(report, panels)}<div><h2>{html.escape(report.name)} "
        f'<span class="tokens">{tokens}</span></h2>{problems}'
        f"{''.join(_words(dataset, image_set, panels))}</div></section>\n"
    )


def _whole(report: SetReport, panels: Sequence[Image.Image]) -> str:
    """All panels as one picture, as they are trained."""
    if not panels or report.set is None:
        return "<div></div>"
    try:
        whole = compose(report.set.layouts[-1], panels)
    except IcloraError:
        # What is wrong stands beside it; the panels are shown one by one.
        return "<div></div>"
    return picture_tag(whole, _SIDE, "whole")


def _words(dataset: Dataset, image_set: ImageSet, panels: Sequence[Image.Image]) -> Iterator[str]:
    try:
        text = image_set.caption()
    except IcloraError:
        return
    try:
        caption = JointCaption.parse(text, dataset.recipe.markers)
    except CaptionError:
        yield f"<pre>{html.escape(text)}</pre>"
        return
    yield f"<p>{html.escape(caption.overview)}</p>"
    shown = [picture_tag(panel, 208) for panel in panels] or [""] * len(caption.panels)
    for marker, words, picture in zip(caption.markers, caption.panels, shown, strict=True):
        yield (
            f'<div class="panel">{picture}<div><span class="marker">{html.escape(marker)}</span>'
            f"{html.escape(words.strip())}</div></div>"
        )


def _anchor(name: str) -> str:
    return html.escape(f"set-{name}", quote=True).replace(" ", "-")
