"""The process that counts what a run takes."""

from __future__ import annotations

import json

import pytest

from iclora.serve.counting import answer


@pytest.fixture
def run_file(tmp_path):
    def write(**settings):
        told = {"base": "tiny", "data": "DATA", "out": "RUN", "resolutions": [64], **settings}
        lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
        (tmp_path / "run.toml").write_text("\n".join(["[train]", *lines]))
        return str(tmp_path / "run.toml")

    return write


def test_a_card_that_is_not_here_has_its_memory_and_no_time(run_file):
    fixed = {"batch": 1, "recompute": 0, "micro_tokens": 0, "preview_every": 0}
    found = answer(run_file(vram=12, device="cuda", **fixed))
    assert (found["memory"], found["here"], found["seconds"]) == (12 * 10**9, False, None)
    assert 0 < found["peak"] < found["usable"] < found["memory"]


def test_what_cannot_be_counted_is_said_with_the_setting_that_it_concerns(run_file):
    assert answer(run_file(rank=0))["setting"] == "rank"
