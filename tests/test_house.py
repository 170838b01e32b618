"""The house stays one that a newcomer can read: its size, its rules, its words."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "iclora"
FILES = sorted(SRC.rglob("*.py"))


def trees():
    return [(path.relative_to(SRC), ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]


def test_the_package_shows_at_most_sixteen_rooms():
    rooms = [p.name for p in SRC.iterdir() if not p.name.startswith(("__", "py.typed"))]
    assert len(rooms) <= 16, sorted(rooms)


def test_a_file_of_more_than_400_lines_says_why_in_its_head():
    long = [path for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    silent = [
        path.name
        for path in long
        if "long on purpose" not in (ast.get_docstring(ast.parse(path.read_text())) or "").lower()
    ]
    assert silent == []


def length(function: ast.FunctionDef) -> int:
    """Lines without the docstring, which is read where the function is called."""
    first = function.body[0]
    said = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    spared = first.end_lineno - first.lineno + 1 if said else 0
    return function.end_lineno - function.lineno + 1 - spared


def test_no_function_is_longer_than_a_screen_of_60_lines():
    found = [
        f"{path}: {node.name} has {length(node)}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and length(node) > 60
    ]
    assert found == []


def test_the_formatter_is_switched_off_in_fewer_than_20_places():
    assert sum(path.read_text(encoding="utf-8").count("# fmt: skip") for path in FILES) < 20


def test_nothing_opens_a_pickle_or_runs_code_of_a_file():
    unsafe = re.compile(
        r"pickle\.load|torch\.load\(|trust_remote_code=True|yaml\.load\(|shell=True"
    )
    found = [str(p.relative_to(SRC)) for p in FILES if unsafe.search(p.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "word",
    [
        "anew",
        "make no sense",
        "learnt by heart",
        "Mend ",
        "is no hub",
        "is no precision",
        "is no model",
    ],
)
def test_words_that_newcomers_stumbled_over_are_gone(word):
    found = [
        str(path.relative_to(SRC)) for path in FILES if word in path.read_text(encoding="utf-8")
    ]
    assert found == []


def test_benchmarks_import_what_there_is():
    # They are run by hand and seldom, so a move of what they use would not show.
    for path in sorted((SRC.parents[1] / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("iclora"):
                for name in (alias.name for alias in node.names):
                    there = hasattr(importlib.import_module(node.module), name)
                    assert there or find_spec(f"{node.module}.{name}"), (path.name, name)
