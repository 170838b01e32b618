"""What a server knows of a Ray cluster; no ray is needed."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from iclora.errors import SettingsError
from iclora.serve.children import Child
from iclora.serve.cluster import front
from iclora.serve.cluster.engine import on_cluster
from iclora.serve.cluster.front import Cluster
from iclora.serve.cluster.replica import SHARED
from iclora.serve.local import LocalEngine
from iclora.settings import ServeSettings, settings_of


@pytest.fixture
def heads(monkeypatch):
    """Processes that would be started, each with what it is told and its environment."""
    started = []

    def start(said, module, words, environment, log):
        started.append((module.rpartition(".")[2], list(words), environment))
        answer = json.dumps(said).encode() + b"\n"
        return Child(os.getpid(), io.BytesIO(), io.BytesIO(answer), lambda: 0)

    def answering(**said):
        monkeypatch.setattr(front, "start_module", partial(start, said))
        return started

    monkeypatch.setattr(front, "find_spec", lambda name: object())
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    return answering


def test_without_ray_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(front, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="ray") as caught:
        Cluster(None, tmp_path)
    assert "iclora[ray]" in caught.value.advice


def test_a_cluster_is_started_closed_and_joined_with_its_own_token_alone(
    heads, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:1")
    started = heads(address="10.0.0.1:6379", gpus=0, cpus=2)
    for address in (None, "10.0.0.1:6379"):
        cluster = Cluster(address, tmp_path)
        assert (tmp_path / SHARED).read_text()
        cluster.close()
        assert not (tmp_path / SHARED).exists()
    (own, joined) = started
    assert own[1][0] == "local"
    assert not Path(own[1][1]).exists()
    assert joined[1] == ["10.0.0.1:6379"]
    for _, _, environment in started:
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert "RAY_ADDRESS" not in environment
    assert len(own[2]["RAY_AUTH_TOKEN"]) == 64
    assert joined[2]["RAY_AUTH_TOKEN"] == "of another"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SettingsError, match="RAY_AUTH_MODE is disabled"):
        Cluster(None, tmp_path)


def test_what_a_head_refuses_is_said_and_leaves_nothing(heads, tmp_path):
    heads(problem="takes calls without a token", advice="Start it anew.")
    with pytest.raises(SettingsError, match="without a token") as caught:
        Cluster("auto", tmp_path)
    assert caught.value.setting == "cluster"
    assert not (tmp_path / SHARED).exists()


@pytest.mark.parametrize(
    ("told", "there", "workers"),
    [
        ({}, (0, 2), 1),
        ({"cpus": 2}, (0, 2), 2),
        ({"gpus": "all"}, (3, 8), 3),
        ({"device": "cpu", "cpus": 8}, (3, 8), 8),
        ({"gpus": 4}, (3, 8), "`gpus`|GPU each"),
        ({"cpus": 3}, (0, 2), "CPU each"),
        ({"cpus": 2}, (1, 2), "`cpus` is given"),
        ({"gpus": 2, "device": "cpu"}, (3, 8), "`gpus` is given"),
        ({"device": "cuda"}, (0, 8), "GPU each"),
        ({"device": "cuda:1"}, (3, 8), "Ray chooses"),
    ],
)
def test_each_replica_has_a_gpu_or_a_cpu_of_the_cluster(heads, tmp_path, told, there, workers):
    heads(address="10.0.0.1:6379", gpus=there[0], cpus=there[1])
    settings = settings_of(ServeSettings, {"engine": "ray", **told})
    said = []
    console = type("Console", (), {"say": said.append})
    begin = partial(on_cluster, settings, console, tmp_path, partial(LocalEngine, logs=tmp_path))
    if isinstance(workers, str):
        with pytest.raises(SettingsError, match=workers):
            begin()
    else:
        engine = begin()
        assert engine.workers == tuple(f"ray:{n}" for n in range(workers))
        engine.stop()
        assert f"{workers} replicas" in said[-1]


def test_a_cluster_that_ended_is_started_again_before_the_next_replica(heads, tmp_path):
    started = heads(address="10.0.0.1:6379", gpus=0, cpus=2)
    cluster = Cluster(None, tmp_path)
    while cluster._head:  # The head of this test has ended at once.
        pass
    child = cluster.start("cpu", {"OMP_NUM_THREADS": "1"}, tmp_path / "log")
    assert replace(child) == child
    assert [name for name, _, _ in started] == ["head", "head", "bridge"]
    told = json.loads(started[2][1][0])
    assert told["address"] == "10.0.0.1:6379"
    assert started[2][2]["OMP_NUM_THREADS"] == "1"
    assert started[2][2]["RAY_AUTH_TOKEN"] == started[1][2]["RAY_AUTH_TOKEN"]
    cluster.close()
