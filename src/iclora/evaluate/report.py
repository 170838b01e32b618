"""One page to look at, with the pictures inside, and one file of figures for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from iclora import __version__
from iclora.evaluate.figures import Row, Table
from iclora.evaluate.intervals import Estimate
from iclora.evaluate.setup import Arm, Case, Setup
from iclora.files import write_text
from iclora.pages.page import data_url, render
from iclora.sets.images import open_image

__all__ = ["as_text", "write_report"]

_SIDE = 384
"""Longest side of a picture on the page, px."""
_MOST_PICTURES = 240
"""On one page; more would be slow to open."""


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
            "strength": arm.adapter.strength if arm.adapter else 1.0,
            "beside": [
                {"adapter": str(each.path), "sha256": each.sha256, "strength": each.strength}
                for each in (arm.adapter.beside if arm.adapter else ())
            ],
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
    """The table for a terminal: a block per figure with its meaning and unit, a line per arm.

    Recipes are not told apart.
    """
    first = setup.arms[0].name
    lines = [f"Means with 95% intervals, then the difference to {first}"]
    wide = max(len(arm.name) for arm in setup.arms)
    for row in table.ordered():
        if row.recipe:
            continue
        lines.append(f"{row.name} ({row.meaning})" if row.meaning else row.name)
        for arm in setup.arms:
            less = None if arm.name == first else row.difference(arm.name, first)
            shown = f"  {arm.name:<{wide}}  {_said(row.estimate(arm.name)):<28}{_less(less)}"
            lines.append(shown.rstrip())
    return "\n".join(lines)


def _page(setup: Setup, table: Table, facts: Mapping[str, Any]) -> str:
    count, first = len(setup.cases), setup.arms[0].name
    shown = max(1, min(count, _MOST_PICTURES // len(setup.arms)))
    rows = [
        {
            "name": row.name,
            "meaning": row.meaning,
            "cells": [_cell(row, arm.name, first) for arm in setup.arms],
        }
        for row in table.ordered()
    ]
    return render(
        "report",
        recipe=facts["recipe"],
        outside=setup.outside,
        arms=[arm.name for arm in setup.arms],
        count=count,
        prompts=len({case.name for case in setup.cases}),
        facts=facts,
        rows=rows,
        sources=table.sources,
        notes=table.notes,
        shown=shown,
        groups=list(_groups(setup, shown)),
    )


def _cell(row: Row, arm: str, first: str) -> dict[str, Any]:
    """One arm's figure, and how far it is from the first arm's."""
    found = row.estimate(arm)
    difference = None if arm == first else row.difference(arm, first)
    return {
        "count": found.count if found else 0,
        "said": _said(found),
        "difference": _less(difference),
        "telling": bool(difference and difference.telling),
    }


def _groups(setup: Setup, shown: int) -> Iterator[dict[str, Any]]:
    """The sets of each prompt: for each arm those of all seeds."""
    numbered = enumerate(setup.cases[:shown])
    for name, group in groupby(numbered, lambda item: item[1].name):
        cases = list(group)
        first = cases[0][1]
        yield {
            "name": name,
            "given": sorted(first.given),
            "prompt": first.prompt,
            "arms": [
                [_picture(setup, arm, number, case) for number, case in cases] for arm in setup.arms
            ],
        }


def _picture(setup: Setup, arm: Arm, number: int, case: Case) -> dict[str, str]:
    composite = open_image(setup.folder(arm, number) / "composite.png")
    return {"picture": data_url(composite, _SIDE), "title": f"{arm.name}: {case.key}"}


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
