"""What people read and attach to issues."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from iclora.errors import SettingsError
from iclora.jobs.bench.book import Book, Outcome, anonymous, shown
from iclora.jobs.bench.machine import describe, home
from iclora.jobs.bench.telling import Bench, goal


def book(folder, keep=False):
    about = {**describe("abc"), "command": "iclora bench", "began": "2026-11-29", "card": {}}
    return Book(folder, about, keep)


def test_numbers_have_four_digits_that_count():
    assert [shown(x) for x in (0.012345, 12.3456, 1234.56, 7, "inf")] == [
        "0.01235",
        "12.35",
        "1235",
        "7",
        "inf",
    ]


def test_a_goal_is_met_missed_or_not_set_and_no_number_meets_none():
    assert goal(2.0, 1.6, None) == {"target": "at least 1.6", "met": True}
    assert goal(1.1, 0.95, 1.05) == {"target": "at least 0.95 and at most 1.05", "met": False}
    assert goal(float("nan"), None, 3)["met"] is False
    assert goal(None, 1, None)["met"] is False
    assert goal(1, None, None) == {}


def test_no_folder_of_this_machine_stands_in_what_is_attached_to_issues(tmp_path):
    paths = f"{home()}/src/x.py {sys.prefix}/lib {Path.home()}/.cache /home/ada/x /Users/ada/y"
    text = anonymous(paths)
    assert text.startswith("REPOSITORY/src/x.py PYTHON/lib ")
    assert "ada" not in text
    assert str(Path.home()) not in text


def test_signs_of_tables_and_terminals_are_harmless(tmp_path):
    own = book(tmp_path)
    figure = {"what": "a | b\x1b[31m", "value": None, "unit": "", "note": "two\nlines"}
    own.add(Outcome("x", "about", "failed", 1.0, [figure], "why | not\n# no heading"))
    text = (tmp_path / "bench.md").read_text()
    assert r"| | a \| b\x1b[31m | - |  | two<br>lines |" in text
    assert "    why | not\n    # no heading" in text


def test_results_of_another_kind_are_not_taken_for_ours(tmp_path):
    (tmp_path / "bench.json").write_text('{"bench": 1}')
    with pytest.raises(SettingsError, match="holds no results"):
        book(tmp_path, keep=True)
    (tmp_path / "bench.json").write_text("not json")
    with pytest.raises(SettingsError):
        book(tmp_path, keep=True)


def test_what_a_row_tells_is_on_disk_at_once(tmp_path):
    bench = Bench("cpu", tmp_path, tmp_path / "r.json")
    bench.tell("a", float("inf"), "s", most=3, must=True)
    said = json.loads((tmp_path / "r.json").read_text())
    assert said["figures"] == [
        {"what": "a", "value": "inf", "unit": "s", "target": "at most 3", "met": False}
    ]
    assert said["broken"] == ["a: inf s, at most 3"]
