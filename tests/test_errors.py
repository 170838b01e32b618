"""Errors: they name settings by field, so that every door can say them its own way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import iclora

SRC = Path(iclora.__file__).parent


def is_door(path: Path) -> bool:
    """True for the command line, and for a program with a parser of its own."""
    return path.relative_to(SRC).parts[0] == "cli" or "import argparse" in path.read_text("utf-8")


ROOMS = sorted(path for path in SRC.rglob("*.py") if not is_door(path))
OPTION = re.compile(r"(?<![-\w])--[a-z]")


def strings(tree: ast.AST) -> list[tuple[int, str]]:
    """Every string literal with its line; docstrings, of fields too, are left out."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
    ]


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: str(path.relative_to(SRC)))
def test_no_string_of_the_library_names_an_option(room):
    found = strings(ast.parse(room.read_text(encoding="utf-8")))
    assert not [f"{line}: {text}" for line, text in found if OPTION.search(text)]


def test_the_search_sees_options_in_plain_and_formatted_strings_but_not_in_docstrings():
    code = 'def f():\n    "see --base"\n    raise E(f"pass --{x}", "or --seed", "a--b")\n'
    found = [text for _, text in strings(ast.parse(code)) if OPTION.search(text)]
    assert found == ["or --seed"]
