"""The examples run as they are written down."""

from __future__ import annotations

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
