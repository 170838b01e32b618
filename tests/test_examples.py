"""The examples run as they are written down."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def draw(*words, cwd):
    code = [sys.executable, str(EXAMPLES / "draw_storyboards.py"), *words]
    return subprocess.run(code, cwd=cwd, capture_output=True, text=True)


def test_the_drawn_storyboards_are_a_dataset(tmp_path):
    from iclora.sets.dataset import open_dataset

    assert draw("sets", "2", cwd=tmp_path).returncode == 0
    dataset = open_dataset(tmp_path / "sets", "film-storyboard")
    assert len(dataset.sets) == 2
    assert not dataset.problems


@pytest.mark.parametrize(
    ("words", "status"), [(["--help"], 0), (["--sets"], 2), ([], 2), (["sets", "0"], 2)]
)
def test_help_and_a_typing_error_draw_nothing(tmp_path, words, status):
    done = draw(*words, cwd=tmp_path)
    assert done.returncode == status
    assert "usage: draw_storyboards.py" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_what_the_readme_imports_is_there():
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    lines = [node for block in blocks for node in ast.parse(block).body]
    imports = [node for node in lines if isinstance(node, ast.ImportFrom)]
    assert len(imports) >= 4
    for node in imports:
        found = importlib.import_module(str(node.module))
        assert all(hasattr(found, each.name) for each in node.names), ast.unparse(node)
