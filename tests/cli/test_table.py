"""A table keeps to its terminal, and loses no word for it."""

from __future__ import annotations

import re

from iclora.cli.table import table_lines

ROWS = [
    ("0001", "64x32 64x32 64x32", "ok"),
    ("a-long-name-of-a-set", "a long story of many words that goes on", "warning"),
    ("名前", "x" * 50, "error"),
]


def test_columns_stand_below_each_other_where_there_is_room():
    lines = list(table_lines(("set", "sizes", "state"), ROWS, 200))
    assert len(lines) == 4
    places = [
        line.index(word) for line, word in zip(lines, ("sizes", "64x32", "a long"), strict=False)
    ]
    assert places == [22, 22, 22]
    # Two signs of two cells each stand in place of four letters.
    assert lines[3].index("x" * 50) == 20


def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost():
    lines = list(table_lines(("set", "sizes", "state"), ROWS, 60))
    assert max(map(len, lines)) <= 60
    said = re.findall(r"\w+", "\n".join(lines))
    assert [word for word in ROWS[1][1].split() if word not in said] == []
    assert "\n".join(lines).count("x") == 50 + 3


def test_columns_that_must_stay_whole_are_never_broken():
    lines = list(table_lines(("set", "sizes", "state"), ROWS, 30, whole=1))
    assert lines[0].startswith("set                   sizes")
    assert [line for line in lines if "a-long-name-of-a-set" in line]
