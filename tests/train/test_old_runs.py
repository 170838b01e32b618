"""A run that version 0.2 began goes on, and ends as it would have ended there."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from iclora.train.run import resume_settings, train

OLD = Path(__file__).parents[1] / "data" / "v0.2"


def test_a_run_of_version_0_2_is_resumed_to_the_adapter_it_would_have_become(
    clean, long_texts, tmp_path, monkeypatch
):
    for name in ("run", "sets"):
        shutil.copytree(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    config = resume_settings("run", {"trackers": []})
    assert config.precision == "full"  # version 0.2 wrote "base"
    said: list[str] = []
    result = train(config, clean, resume=True, warn=said.append)
    assert said == [], "the same data, the same base, a whole checkpoint"
    assert (result.finished, result.step) == (True, 8)
    ours, theirs = load_file(result.adapter), load_file(OLD / "adapter.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)
