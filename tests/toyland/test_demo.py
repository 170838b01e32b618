"""The demo: one page that holds everything, and a task list the command line agrees with."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest

from iclora.cli.main import main
from iclora.errors import StorageError
from iclora.toyland import demo
from iclora.toyland.demo import run_demo
from iclora.toyland.tasks import TASKS
from iclora.toyland.verb import DemoSettings


def test_the_command_line_offers_every_toy_task():
    assert get_args(DemoSettings.model_fields["task"].annotation) == tuple(TASKS)


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize(
    "task", ["film-storyboard", pytest.param("visual-identity", marks=pytest.mark.machine)]
)
def test_a_smoke_run_ends_in_a_page_that_needs_no_other_file(tmp_path, capsys, task, monkeypatch):
    # As many pictures as there are, of as few steps as there can be.
    monkeypatch.setattr(demo, "_QUICK", replace(demo._QUICK, tuning=1, steps=1))
    assert main(["demo", "--quick", "--task", task, "--out", str(tmp_path / "d")]) == 0
    page = (tmp_path / "d" / "report.html").read_text(encoding="utf-8")
    assert "A smoke run" in page
    assert re.search(r"and \d+% of what the captions state", page)
    assert not re.search(r'(src|href)="(?!data:)', page)
    # 2 prompts of 2 seeds, made and completed by both arms; 4 tuning sets; the loss
    assert page.count("<img ") == 4 * 4 + 4 + 1
    out = capsys.readouterr().out
    assert "with the adapter" in out
    assert "stated" in out


def test_a_demo_that_was_killed_begins_again_and_an_ended_one_is_left_alone(tmp_path, monkeypatch):
    out, said = tmp_path / "d", []
    settings = DemoSettings(out=str(out))
    ran = []

    def run(*_):
        assert not (out / "tuning").exists()
        (out / "tuning").mkdir()
        ran.append(1)
        if len(ran) == 1:
            raise KeyboardInterrupt
        (out / "report.html").write_text("")

    monkeypatch.setattr("iclora.toyland.demo._run", run)
    with pytest.raises(KeyboardInterrupt):
        run_demo(settings, said.append)
    run_demo(settings, said.append)
    assert said == [f"{out} holds a demo that was stopped; it begins again"]
    with pytest.raises(StorageError, match="exists already"):
        run_demo(settings, said.append)
    assert (out / "tuning").is_dir()


def test_a_folder_that_exists_is_not_written_into(tmp_path, capsys):
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
