"""Runs that stop and go on without losing a byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iclora.errors import RunError, StorageError
from iclora.train.run import resume_settings, train
from tests.conftest import after_step, picture, stop_after


def test_a_run_stopped_and_resumed_gives_the_same_bytes_as_one_that_was_not(clean, config):
    whole = train(config("whole"), clean)
    result = train(config("parts"), clean, progress=stop_after(3))
    assert (result.finished, result.step) == (False, 3)
    assert not result.adapter.exists()
    result = train(config("parts"), clean, resume=True, progress=stop_after(5))
    assert result.step == 5
    result = train(config("parts"), clean, resume=True)
    assert result.adapter.read_bytes() == whole.adapter.read_bytes()
    logs = [(r.folder / "log.jsonl").read_text() for r in (whole, result)]
    assert logs[0] == logs[1]


def test_a_run_killed_between_checkpoints_takes_the_lost_steps_again(clean, config):
    whole = train(config("whole"), clean)

    def killed():
        raise SystemExit  # nothing after this line runs, as after SIGKILL

    with pytest.raises(SystemExit):
        train(config("parts"), clean, progress=after_step(5, killed))
    result = train(config("parts"), clean, resume=True)
    assert result.adapter.read_bytes() == whole.adapter.read_bytes()
    rows = (result.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in rows] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(clean, config):
    whole = train(config("whole"), clean)
    train(config("parts"), clean, progress=stop_after(5))
    newest = config("parts").out + "/checkpoints/step-000005"
    state = Path(newest, "state.safetensors")
    state.write_bytes(state.read_bytes()[:5000])
    said = []
    result = train(config("parts"), clean, resume=True, warn=said.append)
    assert any("step-000005 is damaged" in s for s in said)
    assert result.adapter.read_bytes() == whole.adapter.read_bytes()


def test_with_no_whole_checkpoint_a_resumed_run_starts_anew(clean, config):
    whole = train(config("whole"), clean)
    train(config("parts"), clean, progress=stop_after(1))
    for state in Path(config("parts").out).rglob("state.safetensors"):
        state.write_bytes(b"")
    said = []
    result = train(config("parts"), clean, resume=True, warn=said.append)
    assert any("no whole checkpoint" in s for s in said)
    assert result.adapter.read_bytes() == whole.adapter.read_bytes()


def test_only_the_newest_checkpoints_are_kept(clean, config):
    result = train(config(save_every=1, keep=2), clean)
    kept = sorted(p.name for p in (result.folder / "checkpoints").iterdir())
    assert kept == ["step-000005", "step-000006"]
    final = load_file(result.adapter)
    last = load_file(result.folder / "checkpoints" / "step-000006" / "adapter.safetensors")
    assert all(torch.equal(final[k], last[k]) for k in final)


def test_the_adapter_is_the_average_of_the_weights_unless_told_otherwise(clean, config):
    averaged = load_file(train(config("a", lr=0.01), clean).adapter)
    result = train(config("b", ema=0, lr=0.01), clean)
    last = load_file(result.adapter)
    assert not all(torch.equal(averaged[k], last[k]) for k in last)
    state = load_file(result.folder / "checkpoints" / "step-000006" / "state.safetensors")
    for key, value in last.items():
        live = state["live/" + key.removeprefix("transformer.")]
        scale = 6 / 4 if "lora_B" in key else 1
        torch.testing.assert_close(value, live * scale)


def test_changed_data_is_noticed_on_resuming(clean, config):
    settings = config()
    train(settings, clean, progress=stop_after(2))
    picture(64, 32, seed=77).save(Path(settings.data, "0001", "1.png"))
    said = []
    train(settings, clean, resume=True, warn=said.append)
    assert any("dataset or its recipe has changed" in s for s in said)


def test_another_base_under_the_same_name_does_not_go_on_with_a_run(clean, config, tmp_path):
    from iclora.models.flux.model import FluxModel
    from iclora.models.tiny import write_tiny

    train(config(), clean, progress=stop_after(2))
    write_tiny(tmp_path / "other", seed=1)
    other = FluxModel(tmp_path / "other", "tiny", clean.device, clean.dtype)
    with pytest.raises(RunError, match="not those this run was started with"):
        train(config(), other, resume=True)


def test_a_damaged_checkpoint_never_pushes_out_a_whole_one(clean, config):
    settings = config(keep=1, save_every=1)
    train(settings, clean, progress=stop_after(4))
    folder = Path(settings.out, "checkpoints")
    (folder / "step-000900").mkdir()
    (folder / "step-1000000").mkdir()
    said = []
    train(settings, clean, resume=True, progress=stop_after(5), warn=said.append)
    kept = sorted(p.name for p in folder.iterdir())
    assert kept == ["damaged-step-000900", "damaged-step-1000000", "step-000005"]
    assert len(said) == 2


def test_a_full_disk_ends_a_run_with_a_clear_error_and_keeps_its_checkpoint(
    clean, config, monkeypatch
):
    import errno
    from pathlib import Path

    settings = config()
    train(settings, clean, progress=stop_after(2))
    real = Path.write_bytes

    def full(self, data):
        if "state" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="disk is full"):
        train(settings, clean, resume=True)
    monkeypatch.undo()
    kept = [p.name for p in Path(settings.out, "checkpoints").iterdir()]
    assert kept == ["step-000002"]
    assert train(settings, clean, resume=True).finished


def test_a_run_is_resumed_from_another_folder_whatever_lies_around(
    clean, config, tmp_path, monkeypatch
):
    (tmp_path / "here" / "film-storyboard").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    settings = config(data="../data", cache="kept", recipe="film-storyboard")
    train(settings, clean, progress=stop_after(2))
    monkeypatch.chdir(tmp_path)
    resumed = resume_settings(settings.out, {})
    assert resumed.recipe == "film-storyboard"
    assert resumed.cache == str(tmp_path / "here" / "kept")
    assert train(resumed, clean, resume=True).finished
    assert not (tmp_path / "kept").exists()
