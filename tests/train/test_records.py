"""The logs of a run: its own rows are kept, and nothing else crashes it."""

from __future__ import annotations

import json
import math
import os

import pytest

from iclora.train.plots import plot_validation
from iclora.train.records import cut, read_losses, read_measures
from iclora.train.validation import LEVELS, best_step


def loss(step, value=0.5):
    return json.dumps({"step": step, "loss": value, "sets": ["0001", "é"]}).encode()


def measure(step, panels=3):
    found = {"loss": 0.5, "by_level": [0.1] * len(LEVELS), "by_panel": [0.2] * panels}
    return json.dumps({"step": step, "held out": found, "trained": found}).encode()


STRANGE = [
    b"1",
    b"null",
    b"[1, 2]",
    b'"step"',
    b"\xff\xfe{}",
    b"\0" * 40,
    b"{}",
    b'{"step": 2}',
    b'{"step": "2", "loss": 1, "sets": []}',
    b'{"step": true, "loss": 1, "sets": []}',
    b'{"step": -1, "loss": 1, "sets": []}',
    b'{"step": 2, "loss": NaN, "sets": []}',
    b'{"step": 2, "loss": 1, "sets": [1]}',
    b'{"step": 2, "loss": "1", "sets": []}',
    b"9" * 5000,
    b'{"step": ' + b"9" * 5000 + b', "loss": 1, "sets": []}',
    b'{"step": 2, "loss": ' + b"9" * 500 + b', "sets": []}',
    b"[" * 100_000,
    b"hello \xc3",
]


@pytest.mark.parametrize("strange", STRANGE, ids=lambda line: repr(line[:24]))
@pytest.mark.parametrize("where", ["between", "at the end", "cut short"])
def test_lines_that_are_no_rows_are_set_aside_and_said_and_the_others_stay(
    tmp_path, strange, where
):
    path, said = tmp_path / "log.jsonl", []
    rows = [loss(1), loss(2)]
    lines = [rows[0], strange, rows[1]] if where == "between" else [*rows, strange]
    ended = b"" if where == "cut short" else b"\n"
    path.write_bytes(b"\n".join(lines) + ended)
    assert [row["step"] for row in read_losses(path)] == [1, 2]
    cut(path, 2, said.append)
    assert path.read_bytes() == b"\n".join(rows) + b"\n"
    torn = where == "cut short" and strange.startswith(b"{")
    assert len(said) == (not torn)
    if not torn:
        assert (tmp_path / "damaged-log.jsonl").read_bytes() == strange + b"\n"
        cut(path, 2, said.append)
        assert len(said) == 1


def test_a_line_that_was_being_written_is_dropped_without_a_word(tmp_path):
    path, whole = tmp_path / "log.jsonl", loss(3)
    for end in range(1, len(whole)):
        path.write_bytes(loss(1) + b"\n" + whole[:end])
        cut(path, 9, pytest.fail)
        assert path.read_bytes() == loss(1) + b"\n"


def test_later_steps_are_removed_and_doubled_ones_kept_once_in_order(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(map(loss, (1, 2, 3, 2, 3, 4, 1))) + b"\n" + loss(2, 0.25) + b"\n")
    cut(path, 3, pytest.fail)
    assert path.read_bytes() == b"\n".join([loss(1), loss(2, 0.25), loss(3)]) + b"\n"
    cut(path, -1, pytest.fail)
    assert path.read_bytes() == b""
    cut(tmp_path / "none.jsonl", 3, pytest.fail)
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_measures_have_the_levels_and_panels_of_this_run(tmp_path):
    path, said = tmp_path / "validation.jsonl", []
    other = json.loads(measure(2))
    other["held out"]["by_level"] = [0.1]
    lacking = {k: v for k, v in json.loads(measure(2)).items() if k != "trained"}
    lines = [measure(0), *(json.dumps(row).encode() for row in (other, lacking)), measure(4)]
    path.write_bytes(b"\n".join([*lines, b'{"step": 5, "held out": 3, "trained": null}', b""]))
    assert [row["step"] for row in read_measures(path)] == [0, 4]
    cut(path, 4, said.append)
    assert path.read_bytes() == measure(0) + b"\n" + measure(4) + b"\n"
    assert "(3)" in said[0]
    odd = [measure(0, panels=2), measure(2), measure(4), measure(6, panels=4)]
    path.write_bytes(b"\n".join([*odd, b""]))
    assert [row["step"] for row in read_measures(path)] == [2, 4]


def test_a_measure_that_is_no_number_stays_and_is_not_the_best(tmp_path):
    path = tmp_path / "validation.jsonl"
    odd = json.loads(measure(2))
    odd["held out"]["loss"], odd["held out"]["by_panel"][1] = math.nan, math.inf
    odd["trained"]["by_level"][0] = 0.0
    text = b"\n".join([json.dumps(odd).encode(), measure(4), b""])
    path.write_bytes(text)
    cut(path, 4, pytest.fail)
    assert path.read_bytes() == text
    rows = read_measures(path)
    assert [row["step"] for row in rows] == [2, 4]
    assert best_step(rows) == 4
    assert best_step(rows[:1]) is None
    rows[0]["held out"]["by_level"] = [0.0] * len(LEVELS)
    plot_validation(tmp_path / "plot.png", rows)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_log_that_is_no_file_is_set_aside_and_not_waited_for(tmp_path, kind):
    path, said = tmp_path / "log.jsonl", []
    (os.mkdir if kind == "folder" else os.mkfifo)(path)
    assert read_losses(path) == []
    cut(path, 3, said.append)
    assert [p.name for p in tmp_path.iterdir()] == ["damaged-log.jsonl"]
    assert "damaged-log.jsonl" in said[0]
