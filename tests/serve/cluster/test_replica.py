"""The actor that runs a worker process; what Ray calls is called here."""

from __future__ import annotations

import json

import pytest

from iclora.serve.cluster import replica
from iclora.serve.cluster.replica import SHARED, Replica, versions
from tests.serve import forked


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What `begin` is told, on a machine where all is well."""
    started = []

    def start(environment, log, cwd):
        started.append((environment, cwd))
        return forked.start(environment, log)

    monkeypatch.setattr(replica, "start_worker", start)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    (tmp_path / SHARED).write_text("nonce")
    told = {"log": str(tmp_path / "log"), "nonce": "nonce", "cwd": str(tmp_path), "device": "cpu"}
    told |= {"versions": versions(), "environment": {"OMP_NUM_THREADS": "1"}}
    return told, started


@pytest.mark.machine
def test_a_replica_passes_lines_to_a_worker_with_the_threads_of_the_front(told):
    told, started = told
    actor = Replica()
    assert json.loads(actor.begin(json.dumps(told)))["problem"] is None
    [(environment, cwd)] = started
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "RAY_AUTH_TOKEN" not in environment
    assert cwd == told["cwd"]
    actor.tell(json.dumps({"do": "start", "base": None, "machine": {}}).encode() + b"\n")
    lines = actor.lines()
    assert json.loads(next(lines)) == {"say": "ready", "problem": None}
    actor._child.commands.close()
    assert list(lines) == []
    assert actor.ended() == "exit status 0"
    actor.tell(b"{}\n")


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"nonce": "another"}, "does not see"),
        ({"log": "/nowhere/log"}, "does not see /nowhere"),
        ({"cwd": "/nowhere"}, "does not see /nowhere"),
        ({"versions": {"iclora": "0.0.1"}}, "not 0.0.1"),
    ],
)
def test_a_machine_that_would_make_other_sets_starts_no_worker(told, other, problem):
    told, started = told
    assert problem in json.loads(Replica().begin(json.dumps(told | other)))["problem"]
    assert not started
