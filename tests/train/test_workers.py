"""Several processes on one run: the same gradient, one writer, any number on resuming."""

import json
import re
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from iclora.errors import RunError
from iclora.train.run import train
from iclora.train.workers import Workers

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node={}")
# On any free port. `--multi_gpu` is its word for several processes; `--device cpu` is ours.
ACCELERATE = (
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes={}",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
    "--main_process_port=0",
)


def launch(folder, count, *words, launcher=TORCHRUN):
    program = [word.format(count) for word in launcher]
    return subprocess.run(
        [sys.executable, "-m", *program, "-m", "iclora", "train", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


SHARDED = """
import torch
from torch.distributed.tensor import DTensor

from iclora.models import load_model
from iclora.train.workers import Workers

torch.set_num_threads(1)
workers = Workers(torch.device("cpu"))
whole, spread = load_model("tiny", device="cpu"), load_model("tiny", device="cpu")
spread.mesh = workers.mesh()


def held(model):
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.denoiser.parameters()]
    return sum(p.numel() for p in local)


z, text = torch.randn(1, 16, whole.channels), whole.encode_text("a boat")
ask = (z, torch.tensor([0.5]), [text], (64, 64), 1.0)
print(f"kept before {held(spread) / held(whole):.3f}")
with torch.no_grad():
    same = torch.equal(whole.velocity(*ask), spread.velocity(*ask))
print(f"same {same}, kept behind {held(spread) / held(whole):.3f}")
"""


def weights(path):
    return load_file(path)


@pytest.mark.parametrize(("count", "launcher"), [(2, ACCELERATE), (4, TORCHRUN)])
def test_processes_together_train_what_one_would(clean, config, tmp_path, count, launcher):
    one = train(config(batch=4, lr=0.01), clean)
    settings = config("many", batch=4, lr=0.01)
    file = tmp_path / "run.toml"
    file.write_text(settings.to_toml())
    done = launch(tmp_path, count, str(file), "--device", "cpu", launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("wrote ") == 1, "one process speaks"
    ours, theirs = weights(one.adapter), weights(tmp_path / "many" / "adapter.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).norm() <= 2e-3 * value.norm() + 1e-6, name
    # One process wrote the log: each step once.
    assert len((tmp_path / "many" / "log.jsonl").read_text().splitlines()) == 6


def test_a_run_is_resumed_by_another_number_of_processes(clean, config, tmp_path):
    one = train(config(batch=4, lr=0.01), clean)
    settings = config("many", batch=4, lr=0.01, steps=4)
    file = tmp_path / "run.toml"
    file.write_text(settings.to_toml())
    assert launch(tmp_path, 2, str(file), "--device", "cpu").returncode == 0
    done = launch(tmp_path, 1, "--resume", "many", "--steps", "6")
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = weights(tmp_path / "many" / "adapter.safetensors")
    for name, value in weights(one.adapter).items():
        assert (value - theirs[name]).norm() <= 2e-3 * value.norm() + 1e-6, name


def test_trouble_in_one_process_ends_them_all_with_its_message(config, tmp_path):
    settings = config("many", batch=4)
    (tmp_path / "data" / "0001" / "caption.txt").unlink()
    file = tmp_path / "run.toml"
    file.write_text(settings.to_toml())
    done = launch(tmp_path, 2, str(file), "--device", "cpu")
    assert done.returncode != 0
    assert "has no caption" in done.stderr
    assert not (tmp_path / "many" / "config.toml").exists()


def test_a_spread_base_keeps_half_in_each_of_two_processes_and_computes_the_same(tmp_path):
    file = tmp_path / "spread.py"
    file.write_text(SHARDED)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", file],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("same True") == 2
    shares = [float(word) for word in re.findall(r"kept \w+ ([\d.]+)", done.stdout)]
    # Embedders and the last layer stay whole; they are much of a base as small as this.
    assert len(shares) == 4
    assert max(shares) < 0.65


def test_a_run_with_a_spread_base_trains_what_one_process_would(clean, config, tmp_path):
    settings = {"batch": 4, "lr": 0.01, "held_out": 0.3, "gradient_checkpointing": True}
    one = train(config(**settings), clean)
    many = config("many", **settings, preview_every=3, preview_resolution=64, shard=True)
    file = tmp_path / "run.toml"
    file.write_text(many.to_toml())
    done = launch(tmp_path, 2, str(file), "--device", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = weights(tmp_path / "many" / "adapter.safetensors")
    for name, value in weights(one.adapter).items():
        assert (value - theirs[name]).norm() <= 2e-3 * value.norm() + 1e-6, name
    measured = [
        [
            json.loads(line)
            for line in (tmp_path / run / "validation.jsonl").read_text().splitlines()
        ]
        for run in ("run", "many")
    ]
    assert [row["step"] for row in measured[1]] == [0, 2, 4, 6]
    for ours, spread in zip(*measured, strict=True):
        assert spread["held out"]["loss"] == pytest.approx(ours["held out"]["loss"], rel=1e-3)
    assert len(list((tmp_path / "many" / "previews").iterdir())) == 2


@pytest.mark.parametrize(
    ("count", "batch", "reason"), [(1, 4, "the only one"), (2, 3, "cannot share a batch of 3")]
)
def test_a_base_that_cannot_be_spread_is_refused_before_anything_is_written(
    config, tmp_path, count, batch, reason
):
    file = tmp_path / "run.toml"
    file.write_text(config("many", batch=batch, shard=True).to_toml())
    done = launch(tmp_path, count, str(file), "--device", "cpu")
    assert done.returncode != 0
    assert reason in done.stderr
    assert not (tmp_path / "many").exists()


def test_several_processes_are_refused_one_gpu_between_them(clean, config, monkeypatch):
    monkeypatch.setattr(Workers, "count", 2, raising=False)
    monkeypatch.setattr(Workers, "__init__", lambda self, device: setattr(self, "rank", 0))
    with pytest.raises(RunError, match="2 processes cannot share cuda:1") as caught:
        train(config(device="cuda:1"), clean)
    assert caught.value.setting == "device"
