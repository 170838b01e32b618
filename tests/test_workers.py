"""Several processes on one run: the same gradient, one writer, any number on resuming."""

import subprocess
import sys

import pytest
from safetensors.torch import load_file

from iclora.train import train


def launch(folder, count, *words):
    program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run(
        [sys.executable, *program, "-m", "iclora", "train", *words],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def weights(path):
    return load_file(path)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_train_what_one_would(clean, config, tmp_path, count):
    one = train(config(batch=4, lr=0.01), clean)
    settings = config("many", batch=4, lr=0.01)
    file = tmp_path / "run.toml"
    file.write_text(settings.to_toml())
    done = launch(tmp_path, count, str(file), "--device", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
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
