"""Training as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import pytest

from iclora.errors import IcloraError, RunError
from iclora.files.locks import LOCK, alone
from iclora.serve.engine import Order, WorkerDied
from iclora.serve.local import LocalEngine
from iclora.serve.records import Record, alive, started_at
from iclora.serve.runs import state_of
from iclora.serve.trainee import be_trainee
from iclora.serve.training import Training, at_work, start_trainee
from tests import processes
from tests.serve import forked

PROCESSES = []


def start(place, environment, log):
    """Start a trainee as `start_trainee` does, forked where torch is imported."""
    process = processes.start(_train, log.parent, log, dict(environment), place)
    PROCESSES.append(process)
    return process.pid


def _train(place):
    os.setsid()
    forked.stand_still("training")
    return be_trainee(place)


@pytest.fixture(autouse=True)
def _reap():
    yield
    while PROCESSES:
        process = PROCESSES.pop()
        process.kill()
        process.join()


@pytest.fixture
def order(config):
    """The order for a run of the tiny base."""

    def make(**more):
        settings = config(**more)
        told = settings.model_dump(mode="json", exclude_unset=True)
        return Order("job-1", "train", told, settings.out, 1)

    return make


def lines(run):
    return (run / "log.jsonl").read_text().splitlines()


def test_a_run_stopped_and_gone_on_with_ends_with_the_bytes_of_one_that_was_not(order, tmp_path):
    """Stopped after a step by a server, gone on with by another one."""
    logs, whole = tmp_path / "logs", order(out="whole", steps=14, save_every=14)
    done = Training(logs, whole, "cpu", start=start).follow(print)
    assert done.status == "succeeded"
    assert done.result["step"] == 14
    halved = order(out="halved", steps=14, save_every=14)
    first = Training(logs, halved, "cpu", start=start)

    def stop(report):
        if report.get("stage") == "training":
            first.stop()
            (logs / "hold").unlink(missing_ok=True)

    (logs / "hold").touch()
    stopped = first.follow(stop)
    assert stopped.status == "cancelled"
    assert 1 <= stopped.result["step"] < 14
    assert state_of(tmp_path / "halved")["state"] == "stopped"
    again = Order("job-2", "train", {"resume": halved.folder}, halved.folder, 1)
    assert Training(logs, again, "cpu", start=start).follow(print).status == "succeeded"
    name = "adapter.safetensors"
    assert (tmp_path / "halved" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert lines(tmp_path / "halved") == lines(tmp_path / "whole")


def test_a_run_outlives_its_engine_and_the_next_one_finds_it_at_work(order, tmp_path):
    made = order(steps=4000, save_every=4000)
    reports, logs = [], tmp_path / "logs"

    def engine():
        found = LocalEngine(["cpu"], logs=logs, start=forked.start, start_training=start)
        found.start()
        return found

    first, ended = engine(), []

    def run():
        try:
            first.run("cpu", made, reports.append)
        except WorkerDied as died:
            ended.append(died)

    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + 200
    while not any(r.get("stage") == "training" for r in reports) and time.monotonic() < until:
        time.sleep(0.02)
    first.stop()
    thread.join()
    assert ended
    assert at_work(logs, "cpu")
    assert state_of(tmp_path / "run")["state"] == "running"
    second, seen = engine(), []

    def stop(report):
        seen.append(report)
        second.cancel("cpu", "job-1")

    outcome = second.run("cpu", made, stop)
    second.stop()
    assert (outcome.status, len(PROCESSES)) == ("cancelled", 1)
    assert seen[0]["stage"] == "training"
    assert not at_work(logs, "cpu")
    # What it said is kept for whoever asks later.
    assert Training(logs, made, "cpu", start=start).follow(print) == outcome


def test_a_run_whose_process_was_killed_says_so(order, tmp_path):
    training = Training(tmp_path / "logs", order(steps=4000), "cpu", start=start)

    def kill(report):
        if report.get("stage") == "training":
            os.kill(training.pid, signal.SIGKILL)

    with pytest.raises(IcloraError, match="was killed after step"):
        training.follow(kill)


def test_a_run_that_does_not_end_after_its_step_is_killed_at_the_deadline(order, tmp_path):
    made = order(steps=4000)
    training = Training(tmp_path / "logs", made, "cpu", patience=0.5, start=start)

    def hang(report):
        if report.get("stage") == "training":
            os.kill(training.pid, signal.SIGSTOP)
            training.stop()

    assert training.follow(hang).status == "cancelled"
    assert state_of(tmp_path / "run")["state"] == "stopped"


def test_what_is_wrong_with_a_run_is_told_with_its_setting(order, tmp_path):
    made = order()
    shutil.rmtree(made.input["data"])
    outcome = Training(tmp_path / "logs", made, "cpu", start=start).follow(print)
    assert outcome.status == "failed"
    assert (outcome.error["code"], bool(outcome.error["advice"])) == ("DatasetError", True)


def test_a_folder_that_somebody_else_trains_into_is_refused(order, tmp_path):
    made = order()
    training = Training(tmp_path / "logs", made, "cpu", start=start)
    with (
        alone(tmp_path / "run" / LOCK, tmp_path / "run", RunError),
        pytest.raises(RunError, match="another process trains"),
    ):
        training.follow(print)
    assert not PROCESSES


def test_a_process_is_known_by_its_start_beside_its_number():
    mine = started_at(os.getpid())
    assert mine
    assert alive(os.getpid(), mine)
    assert not alive(os.getpid(), "1 since boot")
    assert not alive(os.getpid(), "")
    child = processes.start(_wait, *_here(), {})
    was = started_at(child.pid)
    child.kill()
    child.join()
    assert not alive(child.pid, was)


def _here():
    from pathlib import Path

    return Path.cwd(), Path(os.devnull)


def _wait():
    time.sleep(60)


def test_a_trainee_has_a_session_of_its_own(tmp_path, monkeypatch):
    said = tmp_path / "said"
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" "$SECRET" > {said}.part\nmv {said}.part {said}\nsleep 60\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    pid = start_trainee(tmp_path / "record.json", {"SECRET": "x"}, tmp_path / "log")
    until = time.monotonic() + 200
    while not said.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert said.read_text() == f"-P -m iclora.serve.trainee {tmp_path / 'record.json'} x\n"
    assert os.getsid(pid) == pid
    record = Record("", "job", str(tmp_path), {}, "cpu").at(pid)
    os.killpg(pid, signal.SIGKILL)
    # Whoever follows it asks for its end, so that no zombie is left.
    while not Training.ended(record) and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_damaged_record_is_no_run(tmp_path):
    (tmp_path / "train-x.json").write_text('{"pid": 1}')
    with pytest.raises(RunError, match="no record"):
        Record.read(tmp_path / "train-x.json")
    assert not at_work(tmp_path, "cpu")
