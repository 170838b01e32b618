"""The process that holds a base."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from iclora.serve.children import (
    count_gpus,
    ended_by,
    environment_of,
    gpu_memory,
    gpus,
    own_device,
    start_worker,
)
from iclora.serve.engine import Order
from iclora.serve.keeper import told
from iclora.serve.work import work
from iclora.serve.worker import JobConsole
from tests.conftest import write_dataset
from tests.serve.test_sharing import Notes


def test_what_libraries_print_goes_to_the_log_and_the_end_of_commands_is_the_workers_end(tmp_path):
    environment = environment_of("cpu")
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    # Printed by what starts, and again once the worker has seen to its streams, as libraries do.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "os.write(1, b'hello\\n')\n"
        "def chat():\n"
        "    while not os.path.samestat(os.fstat(0), os.stat(os.devnull)): time.sleep(0.01)\n"
        "    os.write(1, b'chatter\\n')\n"
        "threading.Thread(target=chat, daemon=True).start()\n"
    )
    log = tmp_path / "logs" / "worker.log"
    child = start_worker(environment, log)
    until = time.monotonic() + 200
    while "chatter" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.01)
    child.commands.close()
    assert child.wait() == 0
    assert child.answers.read() == b"hello\n"
    child.answers.close()
    assert "chatter" in log.read_text()
    assert told(b"hello\n") == told(b"7\n") == {"say": None}


def test_a_worker_sees_its_own_gpu_alone_and_no_secret_that_it_does_not_need(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    for name in ("ICLORA_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    second = environment_of("cuda:1")
    assert second["CUDA_VISIBLE_DEVICES"] == "7"
    assert environment_of("cpu:3")["CUDA_VISIBLE_DEVICES"] == ""
    kept = {"HF_TOKEN", "TOKENIZERS_PARALLELISM"}
    assert kept <= set(second)
    assert not {"ICLORA_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"} & set(second)
    assert "WANDB_API_KEY" in environment_of("cpu", keep=frozenset({"WANDB_API_KEY"}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment_of("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"
    assert own_device({"device": "cuda:1", "seed": 1}) == {"device": "cuda", "seed": 1}
    assert own_device({"model_device": "cpu"}) == {"model_device": "cpu"}


def test_gpus_are_counted_without_torch(tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\ncase $1 in -L) echo 'GPU 0: A (UUID: x)'; echo 'GPU 1: B (UUID: y)';;\n"
        "*) echo '0, A, 1024, 2048, 37'; echo '1, B, 3, 4, [N/A]';; esac\n"
    )
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert count_gpus() == 2
    assert gpu_memory() == {"0": 2**30, "1": 3 * 2**20}
    assert [(gpu.name, gpu.total, gpu.load) for gpu in gpus()] == [
        ("A", 2**31, 0.37),
        ("B", 2**22, None),
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert count_gpus() == 1
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert count_gpus() == 0


def test_the_engine_imports_no_torch():
    code = "import sys, iclora.serve.local, iclora.serve.training; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


@pytest.mark.parametrize(
    ("status", "name"), [(-9, "SIGKILL"), (-15, "SIGTERM"), (3, "exit status 3")]
)
def test_what_ended_a_process_is_named(status, name):
    assert ended_by(status) == name


def test_reports_tell_how_far_and_how_long_and_hide_where_the_folder_lies(monkeypatch):
    said, ticks = [], iter((10.0, 10.1, 10.15, 10.19))
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("iclora.serve.worker.time", clock)
    console = JobConsole("/srv/jobs/7", said.append)
    with console.progress() as progress:
        for step in range(4):
            progress("painting", step, 3)
    assert [r["done"] for r in said] == [0, 3]
    assert said[-1]["eta_s"] == 0
    console.warn("/srv/jobs/7/0001 is damaged; see /srv/jobs/7")
    assert said[-1] == {"type": "note", "text": "0001 is damaged; see the folder"}
    console.say("wrote /srv/jobs/7/0001")
    assert len(said) == 3, "what was made is a result, and no note"


def test_datasets_are_checked_and_composed_as_by_the_command_line(tmp_path):
    data = write_dataset(tmp_path / "data", sets=2)
    (data / "0002" / "caption.txt").write_text("no markers")
    found = work(Order("1", "check", {"data": str(data)}, str(tmp_path / "j1"), 1), Notes(), None)
    assert [each["name"] for each in found["checked"]] == ["0001", "0002"]
    assert found["errors"] == 1
    assert "0002" in str(found["checked"][1]["problems"])
    order = Order("2", "compose", {"source": str(data)}, str(tmp_path / "j2"), 1)
    made = work(order, Notes(), None)
    assert (tmp_path / "j2" / "0001.png").is_file()
    # Its second attempt finds it.
    before = (tmp_path / "j2").stat().st_mtime_ns
    assert work(order, Notes(), None)["composed"] == made["composed"] == 2
    assert (tmp_path / "j2").stat().st_mtime_ns == before
    json.dump([found, made], io.StringIO())
