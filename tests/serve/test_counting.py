"""The process that counts what a run takes; what is counted is tested with `iclora.train.plan`."""

from __future__ import annotations

import json

import pytest
import torch

from iclora.serve.counting import answer
from iclora.train import plan
from iclora.train.canvases import Canvases
from iclora.train.card import Card


@pytest.fixture
def run_file(tmp_path):
    def write(**settings):
        told = {"base": "tiny", "data": "DATA", "out": "RUN", **settings}
        lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
        (tmp_path / "run.toml").write_text("\n".join(["[train]", *lines]))
        return str(tmp_path / "run.toml")

    return write


def test_a_plan_is_told_in_figures_that_survive_json(run_file, monkeypatch):
    card = Card(12 * 10**9, "cuda", torch.bfloat16)

    def planned(settings, *, here):
        canvases = Canvases((((64, 64),),), "a test")
        return plan.Plan(settings, card, canvases, {"loading": 5, "training": 9}, 2, 6, "one", None)

    monkeypatch.setattr(plan, "plan_run", planned)
    found = json.loads(json.dumps(answer(run_file(vram=12, rank=4))))
    assert (found["memory"], found["usable"]) == (card.memory, card.usable)
    assert (found["peak"], found["recomputed"], found["blocks"]) == (9, 2, 6)
    assert (found["here"], found["seconds"]) == (False, None)
    assert "rank = 4" in found["run_file"]


def test_what_cannot_be_counted_is_said_with_the_setting_that_it_concerns(run_file):
    assert answer(run_file(rank=0))["setting"] == "rank"
