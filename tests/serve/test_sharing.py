"""Sets shared among processes."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, nullcontext

import pytest

from iclora.cli.main import main
from iclora.errors import SettingsError
from iclora.jobs import evaluating
from iclora.jobs.opening import Opener
from iclora.progress import Progress
from iclora.serve.sharing import crowded, devices_for, make_shared, share_evaluation
from iclora.settings import CompleteSettings, EvaluateSettings, GenerateSettings, settings_of
from tests.conftest import CAPTION, picture
from tests.serve import forked
from tests.serve.test_local import contents

PROMPTS = [CAPTION, CAPTION.replace("Ana", "Eva"), CAPTION.replace("Ana", "Ida")]


class Notes:
    """A console that keeps what it is told."""

    def __init__(self):
        self.said, self.events = [], []

    def say(self, text):
        self.said.append(text)

    warn = say

    def show(self, picture):
        pass

    @contextmanager
    def progress(self):
        yield Progress(self.events.append)


@pytest.fixture
def start():
    """Starts workers, and knows their processes."""
    started = []

    def start(environment, log):
        child = forked.start(environment, log)  # Threads do it at the same time.
        started.append(child)
        return child

    start.pids = lambda: [child.pid for child in started]
    return start


def test_two_workers_fill_the_folders_of_one_also_if_one_of_them_is_killed(lora, tmp_path, start):
    picture(96, 64).save(tmp_path / "shot.png")
    (tmp_path / "p.txt").write_text("\n\n".join(PROMPTS))
    told = {"adapter": [str(lora)], "prompts": str(tmp_path / "p.txt"), "steps": 8}
    told |= {"size": "96x192", "given": [f"1={tmp_path / 'shot.png'}"]}
    words = ["complete", "--adapter", str(lora), "--prompts", told["prompts"]]
    words += ["--steps", "8", "--size", "96x192", "--given", told["given"][0]]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    console, at_work = Notes(), threading.Event()

    def start_first(environment, log):
        """The first one stands still once it has a share, and no other one comes before that."""
        child = start(environment, log)
        if child.pid != start.pids()[0]:
            assert at_work.wait(200)
            return child

        def hear(told):
            if told["do"] == "run":
                os.kill(child.pid, signal.SIGSTOP)
                at_work.set()

        return forked.heard(child, hear)

    def kill(event):
        console.events.append(event)
        if event.done == 1:  # The other one's.
            os.kill(start.pids()[0], signal.SIGKILL)

    console.progress = lambda: nullcontext(Progress(kill))
    settings = settings_of(CompleteSettings, told | {"workers": 2, "out": str(tmp_path / "two")})
    folders = make_shared(settings, console, start_first)
    assert [folder.name for folder in folders] == ["0001", "0002", "0003"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert any("SIGKILL" in text for text in console.said)
    assert console.events[-1].done == console.events[-1].total == 3
    # A set that is gone is made again in its place, and the others are left alone.
    for file in (tmp_path / "two" / "0003").iterdir():
        file.unlink()
    (tmp_path / "two" / "0003").rmdir()
    count = len(start.pids())
    assert make_shared(settings, Notes(), start) == folders
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(start.pids()) == count + 1


def test_an_evaluation_by_two_workers_has_the_sets_of_one(lora, tmp_path, start):
    told = {"adapter": [str(lora)], "prompt": PROMPTS[:1], "steps": 1, "size": "96x192"}

    def run(name, make=None, **more):
        settings = settings_of(EvaluateSettings, told | {"out": str(tmp_path / name)} | more)
        share = make and (lambda *how: make(settings, Notes(), *how, start=start))
        return evaluating.evaluate(settings, Notes(), Opener(), share)[0]

    one, two = run("one"), run("two", share_evaluation, workers=2)
    assert len(start.pids()) == 2
    for arm in one.arms:
        assert contents(one.folder(arm, 0)) == contents(two.folder(arm, 0))
    assert (tmp_path / "two" / "report.html").is_file()


def test_what_a_worker_refuses_is_the_error_of_the_command(lora, tmp_path, start):
    (tmp_path / "base").mkdir()
    told = {"adapter": [str(lora)], "prompt": PROMPTS, "workers": 2, "size": "96x192", "steps": 1}
    settings = settings_of(GenerateSettings, told | {"out": str(tmp_path / "out")})

    def without_adapter(environment, log):
        lora.unlink(missing_ok=True)
        return start(environment, log)

    with pytest.raises(Exception, match=r"adapter\.safetensors"):
        make_shared(settings, Notes(), without_adapter)
    assert not list((tmp_path / "out").glob("*"))


def test_more_workers_than_gpus_are_refused():
    assert devices_for("cpu", 2) == ["cpu:0", "cpu:1"]
    with pytest.raises(SettingsError):
        devices_for("cuda", 2)


def test_more_threads_than_cores_are_said_with_what_can_be_set():
    assert "set `workers` to 2" in crowded(4, 1, 2)
    assert "OMP_NUM_THREADS to 1 in" in crowded(4, 2, 2)
    assert "OMP_NUM_THREADS to 4 in" in crowded(2, 8, 8)
