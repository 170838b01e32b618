"""Replicas of a Ray cluster that is started on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from iclora.cli.main import main
from iclora.serve.cluster.engine import engine_on
from iclora.serve.cluster.front import Cluster
from iclora.serve.engine import WorkerDied
from iclora.serve.local import LocalEngine
from tests.conftest import CAPTION
from tests.serve.test_local import SMALL, contents, order

pytest.importorskip("ray", reason="ray is not installed: pip install iclora[ray]")
pytestmark = pytest.mark.machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return Cluster(None, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def engine(cluster):
    """One replica on a CPU, with the tiny base."""
    make = partial(LocalEngine, logs=cluster._logs, base="tiny", threads=1)
    made = engine_on(cluster, "cpu", ["ray:0"], make)
    made.start()
    yield made
    made.stop()


def processes(words: str) -> list[int]:
    """Numbers of the processes of this user that run with these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line:
            found.append(int(path.parent.name))
    return found


def below(pid: int) -> set[int]:
    """The process and all that it started, directly or not."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_a_replica_makes_the_bytes_of_the_command_line_also_after_kills(engine, cluster, tmp_path):
    words = ["generate", "--base", "tiny", "--prompt", CAPTION, "--size", "96x192"]
    words += ["--recipe", "film-storyboard", "--steps", "40", "--seed", "3"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    wanted = order(tmp_path / "b", **SMALL | {"recipe": "film-storyboard", "steps": 40})
    for what in ("iclora.serve.worker", "ray::Replica"):
        killed = []

        def kill(report, what=what, killed=killed):
            if report.get("stage") == "painting" and not killed:
                killed.extend(set(processes(what)) & below(cluster._head.pid))
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

        with pytest.raises(WorkerDied, match=r"SIGKILL|the end of its replica"):
            engine.run("ray:0", wanted, kill)
        assert killed
        assert not list((tmp_path / "b").glob("0*"))
    outcome = engine.run("ray:0", wanted, lambda report: None)
    assert outcome.status == "succeeded", outcome
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_evaluation_on_a_cluster_has_the_sets_and_figures_of_one_process(
    engine, cluster, tmp_path, monkeypatch
):
    words = ["evaluate", "--base", "tiny", "--prompt", CAPTION, "--size", "96x192", "--seeds", "2"]
    words += ["--recipe", "film-storyboard", "--steps", "1", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    for name, value in cluster._secret.items():
        monkeypatch.setenv(name, value)
    words += ["--engine", "ray", "--cluster", cluster.found]
    assert main([*words, "--out", str(tmp_path / "b")]) == 0

    def figures(out):
        found = json.loads((out / "evaluation.json").read_text())["figures"]
        return {name: row for name, row in found.items() if name not in ("seconds", "memory")}

    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    for name in ("0001", "0002"):
        places = [tmp_path / out / "base" / name for out in ("a", "b")]
        assert contents(places[0]) == contents(places[1])
    assert not list((tmp_path / "b").glob(".workers*"))


def test_nobody_without_the_token_gets_into_the_cluster(engine, cluster):
    ask = "import sys, ray; ray.init(sys.argv[1], configure_logging=False); print('in')"
    environment = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
    asked = subprocess.run(
        [sys.executable, "-c", ask, cluster.found],
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert asked.returncode != 0
    assert "in\n" not in asked.stdout
    assert "authentication" in asked.stderr.lower(), asked.stderr


def test_a_cluster_that_is_killed_takes_its_workers_along_and_another_one_is_started(
    engine, cluster, tmp_path
):
    # Ray's own agents take a minute to notice; they hold no base.
    workers = set(processes("iclora.serve.worker")) & below(cluster._head.pid)
    bridge = engine.pid("ray:0")
    assert workers
    os.kill(cluster._head.pid, signal.SIGKILL)
    until = time.monotonic() + 300
    while engine.pid("ray:0") in (bridge, None) or any(map(lives, workers)):
        assert time.monotonic() < until, engine.ready()
        time.sleep(0.1)
    wanted = order(tmp_path / "b", **SMALL | {"recipe": "film-storyboard"})
    assert engine.run("ray:0", wanted, lambda report: None).status == "succeeded"


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
