"""Workers on this machine."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from iclora.cli.main import main
from iclora.making.request import Request
from iclora.serve.children import Child
from iclora.serve.engine import Fit, Order, WorkerDied
from iclora.serve.local import LocalEngine
from tests.conftest import CAPTION
from tests.serve import forked
from tests.serve.conftest import Opened

SMALL = {"prompt": [CAPTION], "size": "96x192", "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One CPU worker with the tiny base; `heard` is called with what it will be told."""
    logs = tmp_path_factory.mktemp("logs")

    def start(environment, log):
        return forked.heard(forked.start_held(environment, log), lambda told: made.heard(told))

    made = LocalEngine(["cpu"], base="tiny", logs=logs, start=start)
    made.heard, made.hold = print, logs / "hold"
    made.start()
    yield made
    made.stop()


@pytest.fixture
def hold(engine):
    """While there is this file, the worker stands still once it paints."""
    engine.hold.touch()
    yield engine.hold
    engine.hold.unlink(missing_ok=True)


@pytest.fixture
def patient(monkeypatch):
    """A client waits as long as a busy machine takes to tell if an adapter fits."""
    monkeypatch.setattr("iclora.serve.keeper._TELLS", 200.0)


def order(folder: Path, kind: str = "generate", **settings) -> Order:
    return Order("job-1", kind, {"base": "tiny", **settings}, str(folder), 1)


def save_with_ghost(lora: Path, path: Path) -> Path:
    """An adapter with a module more, which no base here has."""
    ghost = "transformer.transformer_blocks.7.attn.to_q"
    halves = {"A": torch.zeros(4, 64), "B": torch.zeros(64, 4)}
    more = {f"{ghost}.lora_{half}.weight": value for half, value in halves.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(load_file(lora) | more, path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_worker_makes_the_bytes_of_the_command_line(engine, lora, tmp_path):
    words = ["generate", "--base", "tiny", "--adapter", str(lora), "--prompt", CAPTION]
    words += ["--size", "96x192", "--steps", "2", "--seed", "3", "--out", str(tmp_path / "a")]
    assert main(words) == 0
    said = []
    wanted = order(tmp_path / "b", adapter=[str(lora)], **SMALL)
    outcome = engine.run("cpu", wanted, said.append)
    assert outcome.status == "succeeded", outcome
    assert outcome.result == {"sets": [str(tmp_path / "b" / "0001")]}
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert engine.loaded("cpu") == str(lora)
    painted = [r for r in said if r["type"] == "progress" and r["stage"] == "painting"]
    assert painted[-1]["done"] == painted[-1]["total"] == 2
    assert {"type": "preview", "path": str(tmp_path / "b" / "0001" / "composite.png")} in said
    # The second attempt of a job finds what the first one made.
    before = contents(tmp_path / "b"), (tmp_path / "b" / "0001").stat().st_mtime_ns
    half = tmp_path / "b" / ".0002-0123456789ab.tmp"
    half.mkdir()
    assert engine.run("cpu", wanted, said.append) == outcome
    assert not half.exists()
    assert before == (contents(tmp_path / "b"), (tmp_path / "b" / "0001").stat().st_mtime_ns)


def test_a_job_whose_worker_is_killed_gives_the_same_set_at_its_second_attempt(
    engine, hold, tmp_path
):
    wanted = order(tmp_path / "a", **SMALL | {"recipe": "film-storyboard", "steps": 30})
    killed = []

    def kill(report):
        if report.get("stage") == "painting" and not killed:
            killed.append(engine.pid("cpu"))
            os.kill(engine.pid("cpu"), signal.SIGKILL)
            hold.unlink()

    with pytest.raises(WorkerDied, match="SIGKILL"):
        engine.run("cpu", wanted, kill)
    assert not (tmp_path / "a" / "0001").exists()
    assert engine.run("cpu", wanted, kill).status == "succeeded"
    assert engine.pid("cpu") != killed[0]
    whole = order(tmp_path / "b", **wanted.input)
    assert engine.run("cpu", whole, kill).status == "succeeded"
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_is_wrong_comes_back_as_problem_advice_and_setting(engine, lora, tmp_path):
    def failed(kind, report=print, **settings):
        outcome = engine.run("cpu", order(tmp_path / "out", kind, **settings), report)
        assert outcome.status == "failed"
        return outcome.error

    small = SMALL | {"recipe": "film-storyboard"}
    error = failed("generate", **small | {"seed": "no"})
    assert (error["code"], error["setting"]) == ("SettingsError", "seed")
    error = failed("generate", **small | {"adapter": [str(tmp_path / "no.safetensors")]})
    assert error["code"] == "AdapterError"
    assert "no.safetensors" in error["problem"]
    assert error["advice"]
    more, said = save_with_ghost(lora, tmp_path / "more.safetensors"), []
    other = {"prompt": [CAPTION.replace("Ana", "Eve")]}  # Of which no text is kept.
    error = failed("generate", said.append, **small | other | {"adapter": [str(more)]})
    assert (error["code"], error["setting"]) == ("AdapterError", "adapter")
    assert "does not exist" in error["problem"], "one key that matches nothing"
    assert not [r for r in said if r.get("stage") == "encoding texts"]
    error = failed("generate", **small | {"workers": 2})
    assert error["setting"] == "workers"
    assert "no kind" in failed("dance")["problem"]
    assert not (tmp_path / "out").exists()


def test_a_worker_tells_during_a_job_if_a_base_takes_an_adapter_and_a_dead_one_tells_nothing(
    engine, hold, lora, tmp_path, patient, monkeypatch
):
    other = save_with_ghost(lora, tmp_path / "more.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(lora.read_bytes()[:-1])
    fits = {}

    def ask(report):
        if report.get("stage") == "painting" and not fits:
            fits["good"] = engine.fit("tiny", str(lora))
            fits["ghost"] = engine.fit("tiny", str(other))
            fits["klein"] = engine.fit("tiny-klein", str(lora))
            fits["broken"] = engine.fit("tiny", str(broken))
            fits["nowhere"] = engine.fit(str(tmp_path / "nowhere"), str(lora))
            hold.unlink()

    wanted = order(tmp_path / "a", **SMALL | {"recipe": "film-storyboard"})
    assert engine.run("cpu", wanted, ask).status == "succeeded"
    assert fits["good"] == Fit(known=True)
    assert "does not exist" in fits["ghost"].problem["problem"]
    assert "of the family flux, and" in fits["klein"].problem["problem"]
    assert "cannot be read" in fits["broken"].problem["problem"]
    assert fits["nowhere"] == Fit(known=False)
    asked = []

    def kill(told):
        if told["do"] == "fit":
            asked.append(told["adapter"])
            os.kill(engine.pid("cpu"), signal.SIGKILL)

    monkeypatch.setattr(engine, "heard", kill)
    assert engine.fit("tiny", str(lora)) == Fit(known=False)
    assert asked == [str(lora)]


def test_readyz_waits_for_the_warm_up_and_an_adapter_is_refused_meanwhile(lora, tmp_path, patient):
    folder, logs = tmp_path / "served", tmp_path / "logs"
    save_with_ghost(lora, folder / "adapters" / "more.safetensors")
    late = LocalEngine(
        ["cpu"], base="toyland", warm=[str(lora)], logs=logs, start=forked.start_late
    )
    with Opened(folder, late) as opened:
        refused = opened.post(input={"prompt": [CAPTION], "adapter": ["more"]})
        waits = opened.client.get("/readyz")
        assert (waits.status_code, "is starting" in waits.text) == (503, True)
        assert not (logs / "painted").exists()
        (logs / "go").touch()
        until = time.monotonic() + 200
        while opened.client.get("/readyz").status_code != 200 and time.monotonic() < until:
            time.sleep(0.01)
        assert opened.client.get("/readyz").status_code == 200
        assert (logs / "painted").exists()
    # This one is of the tiny base, whose modules have other widths.
    assert (refused.status_code, "not fit toyland" in refused.text) == (422, True)
    assert "not painted once" in (logs / "worker-cpu.log").read_text()


def test_a_fault_is_told_and_the_next_job_gets_another_process(engine, tmp_path):
    small = SMALL | {"recipe": "film-storyboard"}
    first = engine.run("cpu", order(tmp_path / "a", **small), print)
    before = engine.pid("cpu")
    fault = Order("job-2", "generate", {"prompt": [CAPTION], "share": {}}, str(tmp_path / "b"), 1)
    outcome = engine.run("cpu", fault, print)
    assert outcome.error["code"] == "InternalError"
    assert "KeyError" in outcome.error["problem"]
    assert engine.run("cpu", order(tmp_path / "c", **small), print).status == first.status
    assert engine.pid("cpu") != before


def test_a_fault_that_is_read_late_is_not_laid_to_the_next_process(tmp_path):
    error = {"code": "InternalError", "problem": "p", "advice": "a", "setting": None}
    answers = {
        "start": [{"say": "ready", "problem": None}],
        "run": [
            {"say": "report", "job": "job-1", "report": {"type": "note", "text": "a note"}},
            {
                "say": "outcome",
                "job": "job-1",
                "outcome": {"status": "failed", "error": error},
                "sound": False,
            },
        ],
    }
    started = []

    def start(environment, log):
        """A thread that speaks as a worker does, and ends with its job."""
        (theirs, commands), (heard, said) = os.pipe(), os.pipe()

        def work():
            with os.fdopen(theirs, "rb") as told, os.fdopen(said, "wb", 0) as say:
                for line in told:
                    what = json.loads(line)["do"]
                    for answer in answers[what]:
                        say.write(json.dumps(answer).encode() + b"\n")
                    if what == "run":
                        return

        thread = threading.Thread(target=work)
        thread.start()
        started.append(thread)
        ends = os.fdopen(commands, "wb"), os.fdopen(heard, "rb")
        return Child(2**30, *ends, lambda: thread.join() or 1)

    engine = LocalEngine(["cpu"], logs=tmp_path, start=start)

    def late(report):
        until = time.monotonic() + 200
        while len(started) < 2 or not engine.able("cpu"):
            assert time.monotonic() < until
            time.sleep(0.01)

    engine.start()
    assert engine.run("cpu", order(tmp_path / "a"), late).error == error
    assert engine.able("cpu")
    engine.stop()


def test_cancelling_ends_the_job_it_names_between_two_steps_and_no_other(engine, hold, tmp_path):
    long = SMALL | {"recipe": "film-storyboard", "steps": 900}

    def cancel(report):
        if report.get("stage") == "painting" and hold.exists():
            engine.cancel("cpu", "job-0")
            engine.cancel("cpu", "job-1")
            hold.unlink()

    hold.unlink()
    before = engine.run("cpu", order(tmp_path / "a", **long | {"steps": 1}), print)
    hold.touch()
    same = engine.pid("cpu")
    assert engine.run("cpu", order(tmp_path / "b", **long), cancel).status == "cancelled"
    assert not (tmp_path / "b").exists()
    # The next one is not touched by it, and the base is as warm as it was.
    after = engine.run("cpu", order(tmp_path / "c", **long | {"steps": 1}), print)
    assert (after.status, engine.pid("cpu")) == (before.status, same)


def together(tmp_path, **more):
    """Three jobs for one batch; the last one's prompt lacks markers."""
    small = SMALL | {"recipe": "film-storyboard", **more}
    others = [
        Order("job-2", "generate", small | {"base": "tiny", "seed": 4}, str(tmp_path / "b"), 1),
        Order("job-3", "generate", small | {"prompt": ["[SCENE-1] a"]}, str(tmp_path / "c"), 1),
    ]
    return replace(order(tmp_path / "a", **small), beside=tuple(others))


def test_jobs_of_one_batch_give_the_sets_they_give_alone_but_for_rounding(engine, tmp_path):
    wanted, said = together(tmp_path), []
    first, second, third = engine.run("cpu", wanted, said.append).all
    assert [first.status, second.status, third.status] == ["succeeded", "succeeded", "failed"]
    assert "SCENE" in third.error["problem"]
    assert second.result == {"sets": [str(tmp_path / "b" / "0001")]}
    painted = [r.get("job") for r in said if r.get("stage") == "painting"]
    assert {None, "job-2"} <= set(painted)
    for each, name in ((wanted, "a"), (wanted.beside[0], "b")):
        alone = replace(each, folder=str(tmp_path / f"{name}-alone"), beside=())
        assert engine.run("cpu", alone, print).status == "succeeded"
        mine, other = (Path(f, "0001") for f in (each.folder, alone.folder))
        assert [Request.read(p / "request.json").together for p in (mine, other)] == [2, 1]
        assert Request.read(mine / "request.json").same_pixels(Request.read(other / "request.json"))
        pixels = [np.asarray(Image.open(p / "composite.png")).astype(int) for p in (mine, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
    # A second attempt finds what the first one made.
    assert engine.run("cpu", wanted, print).all[:2] == (first, second)
    # Jobs of several sets fill no larger batches: the setting is what the memory holds.
    many = together(tmp_path / "many", count=2, steps=1)
    many = replace(many, beside=many.beside[:1])
    assert [each.status for each in engine.run("cpu", many, print).all] == 2 * ["succeeded"]
    requests = sorted((tmp_path / "many").glob("*/*/request.json"))
    assert [Request.read(path).together for path in requests] == 4 * [2]


def test_a_batch_goes_on_for_those_that_were_not_cancelled(engine, hold, tmp_path):
    def cancel(*jobs):
        def hear(report):
            if report.get("stage") == "painting":
                for job in jobs:
                    engine.cancel("cpu", job)
                hold.unlink(missing_ok=True)

        return hear

    wanted = together(tmp_path, steps=30)
    wanted = replace(wanted, beside=wanted.beside[:1])
    both = engine.run("cpu", wanted, cancel("job-1", "job-2")).all
    assert [each.status for each in both] == ["cancelled", "cancelled"]
    assert not (tmp_path / "a").exists()
    hold.touch()
    assert engine.run("cpu", wanted, cancel("job-2")).status == "succeeded"
    assert (tmp_path / "a" / "0001").exists()


def test_a_worker_that_does_not_come_to_its_next_step_is_ended(tmp_path):
    logs = tmp_path / "logs"
    engine = LocalEngine(["cpu"], logs=logs, patience=1, start=forked.start_held)

    def hang(report):
        if report.get("stage") == "painting":
            os.kill(engine.pid("cpu"), signal.SIGSTOP)
            engine.cancel("cpu", "job-1")

    logs.mkdir()
    (logs / "hold").touch()
    engine.start()
    try:
        wanted = order(tmp_path / "a", **SMALL | {"recipe": "film-storyboard"})
        began = time.monotonic()
        assert engine.run("cpu", wanted, hang).status == "cancelled"
        assert time.monotonic() - began >= 1
        (logs / "hold").unlink()
        again = replace(wanted, folder=str(tmp_path / "b"))
        assert engine.run("cpu", again, print).status == "succeeded"
    finally:
        engine.stop()


def test_an_engine_that_stops_leaves_no_process(tmp_path):
    engine = LocalEngine(["cpu:0", "cpu:1"], logs=tmp_path / "logs", start=forked.start)
    assert engine.ready() == "worker cpu:0 is starting"
    engine.start()
    until = time.monotonic() + 200
    while engine.ready() and time.monotonic() < until:
        time.sleep(0.01)
    pids = [engine.pid(worker) for worker in engine.workers]
    engine.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_base_that_cannot_be_held_is_why_a_worker_is_not_ready(tmp_path):
    base = str(tmp_path / "nowhere")
    engine = LocalEngine(["cpu"], base=base, logs=tmp_path / "logs", start=forked.start)
    engine.start()
    until = time.monotonic() + 200
    while "is starting" in engine.ready() and time.monotonic() < until:
        time.sleep(0.01)
    assert "nowhere" in engine.ready()
    engine.stop()


def test_workers_share_no_device(tmp_path):
    with pytest.raises(Exception, match="device of its own"):
        LocalEngine(["cpu", "cpu"], logs=tmp_path)
