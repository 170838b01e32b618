"""One page to look at, with the pictures inside, and one file of figures for machines."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from iclora import __version__
from iclora.evaluate.figures import Row, Table
from iclora.evaluate.intervals import Estimate
from iclora.evaluate.setup import Setup
from iclora.files import write_text
from iclora.pages.page import STYLE, picture_tag
from iclora.sets.images import open_image

__all__ = ["as_text", "write_report"]

_SIDE = 384
"""Longest side of a picture on the page, px."""
_MOST_PICTURES = 240
"""On one page; more would be slow to open."""
_OWN_STYLE = """
body { max-width: none } h2 { font-size: 1.2rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .3rem .9rem; text-align: left;
       vertical-align: top; border-bottom: 1px solid #ddd6cb; font-variant-numeric: tabular-nums }
.figures td, .figures th { white-space: nowrap }
td small { color: #6b645a; display: block } b { color: #a33 }
.sets img { max-width: 300px; border-radius: 4px; display: block }
.seeds { display: flex; flex-wrap: wrap; gap: .5rem } .sets td { min-width: 10rem }
.sets .words { max-width: 22rem; font-size: .88rem } .scroll { overflow-x: auto }
"""


def write_report(setup: Setup, table: Table, facts: Mapping[str, Any]) -> None:
    """Write OUT/report.html and OUT/evaluation.json. Raises: StorageError.

    Args:
        facts: what else decided the figures, for the reader: base, device, steps and on.
    """
    first = setup.arms[0].name
    arms = {
        arm.name: {
            "adapter": str(arm.adapter.path) if arm.adapter else None,
            "sha256": arm.adapter.sha256 if arm.adapter else "",
            "mode": arm.mode,
        }
        for arm in setup.arms
    }
    data = {
        "iclora": __version__,
        **facts,
        "arms": arms,
        "compared with": first,
        "metrics": table.sources,
        "notes": table.notes,
        "figures": table.to_json(first),
    }
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    write_text(setup.out / "evaluation.json", text)
    write_text(setup.out / "report.html", _page(setup, table, facts))


def as_text(setup: Setup, table: Table) -> str:
    """The table for a terminal: a block per figure, a line per arm."""
    first, lines = setup.arms[0].name, []
    wide = max(len(arm.name) for arm in setup.arms)
    for row in table.rows.values():
        lines.append(row.name)
        for arm in setup.arms:
            less = None if arm.name == first else row.difference(arm.name, first)
            shown = f"  {arm.name:<{wide}}  {_said(row.estimate(arm.name)):<28}{_less(less)}"
            lines.append(shown.rstrip())
    return "\n".join(lines)


def _page(setup: Setup, table: Table, facts: Mapping[str, Any]) -> str:
    count = len(setup.cases)
    prompts = len({case.name for case in setup.cases})
    about = "; ".join(f"{name} {value}" for name, value in facts.items())
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    sources = "".join(
        f"<li>{html.escape(name)}: {html.escape(source)}</li>"
        for name, source in table.sources.items()
    )
    first = html.escape(setup.arms[0].name)
    shown = max(1, min(count, _MOST_PICTURES // len(setup.arms)))
    more = "" if shown == count else f"<p class='note'>The first {shown} of {count} are shown.</p>"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Evaluation: {html.escape(setup.recipe.name)}</title><style>{STYLE}{_OWN_STYLE}</style>
<h1>{html.escape(setup.recipe.name)}: {len(setup.arms)} arms, {count} sets each</h1>
<p class="note">{html.escape(about)}</p>
<h2>Figures</h2><div class="scroll">{_figures(setup, table)}</div>
<p class="note">Means with 95% bootstrap intervals over {prompts}
{"prompts" if prompts > 1 else "prompt, whose sets are drawn: they say nothing of other prompts"}.
Below each: the difference to {first} at the same prompts and seeds, in red
if its interval leaves zero out. Read consistency beside diversity: four copies of one picture
are consistent.</p>
<h2>Where the figures come from</h2><ul>{sources}</ul>{f"<ul>{notes}</ul>" if notes else ""}
<h2>Sets</h2>{more}<div class="scroll">{_sets(setup, shown)}</div>
</html>
"""


def _figures(setup: Setup, table: Table) -> str:
    first = setup.arms[0].name
    head = "".join(f"<th>{html.escape(arm.name)}</th>" for arm in setup.arms)
    body = "".join(
        f"<tr><td>{html.escape(row.name)}<small>{_wrapped(row.meaning)}</small></td>"
        + "".join(_cell(row, arm.name, first) for arm in setup.arms)
        + "</tr>"
        for row in table.rows.values()
    )
    return f'<table class="figures"><tr><th>figure</th>{head}</tr>{body}</table>'


def _wrapped(text: str, width: int = 60) -> str:
    """Broken into lines by hand, for the table's cells do not wrap."""
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "<br>".join(html.escape(each) for each in [*lines, line])


def _cell(row: Row, arm: str, first: str) -> str:
    found = row.estimate(arm)
    if found is None:
        return "<td>-</td>"
    less = None if arm == first else row.difference(arm, first)
    said = html.escape(_less(less))
    if less is not None and less.telling:
        said = f"<b>{said}</b>"
    return f'<td title="{found.count} values">{html.escape(_said(found))}<small>{said}</small></td>'


def _sets(setup: Setup, shown: int) -> str:
    """A row for each prompt, a column for each arm, the seeds side by side."""
    head = "".join(f"<th>{html.escape(arm.name)}</th>" for arm in setup.arms)
    rows = []
    numbered = enumerate(setup.cases[:shown])
    for name, group in groupby(numbered, lambda item: item[1].name):
        cases = list(group)
        first = cases[0][1]
        given = ", ".join(map(str, sorted(first.given)))
        said = f"; given: panel {given}" if given else ""
        cells = ""
        for arm in setup.arms:
            pictures = "".join(
                picture_tag(
                    open_image(setup.folder(arm, number) / "composite.png"),
                    _SIDE,
                    title=f"{arm.name}: {case.key}",
                )
                for number, case in cases
            )
            cells += f'<td><div class="seeds">{pictures}</div></td>'
        rows.append(
            f'<tr><td class="words"><small>{html.escape(name)}{said}</small>'
            f"{html.escape(first.prompt)}</td>{cells}</tr>"
        )
    return f'<table class="sets"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4g}" if abs(value) >= 10 else f"{value:{sign}.3f}"


def _said(found: Estimate | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return _number(found.mean)
    return f"{_number(found.mean)} ({_number(found.low)} to {_number(found.high)})"


def _less(found: Estimate | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return _number(found.mean, "+")
    low, high = _number(found.low, "+"), _number(found.high, "+")
    return f"{_number(found.mean, '+')} ({low} to {high})"
