import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time

import pytest

from iclora.serve.store import Store
from tests.serve.conftest import Opened
from tests.serve.fake import make_set


class Process:
    """The server as a process of its own."""

    def __init__(self, folder, *more):
        command = [sys.executable, "-m", "tests.serve.serving", str(folder), *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.connections, self.streams = [], []
        self.port = int(self.process.stdout.readline())
        self.token = (folder / ".iclora" / "token").read_text().strip()

    def open(self, method, path, body=None):
        found = http.client.HTTPConnection("127.0.0.1", self.port, timeout=200)
        self.connections.append(found)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        found.request(method, path, body and json.dumps(body), headers)
        return found.getresponse()

    def ask(self, *told):
        answer = self.open(*told)
        with contextlib.closing(self.connections.pop()), answer:
            return json.loads(answer.read())

    def post(self):
        return self.ask("POST", "/api/v1/jobs", {"kind": "generate", "input": {"prompt": ["a"]}})

    def end(self, how=None):
        if how:
            self.process.send_signal(how)
        said = self.process.communicate(timeout=200)[0]
        for answer in self.streams:
            answer.close()
        for connection in self.connections:
            connection.close()
        return said


@pytest.fixture
def start(tmp_path):
    """Starts servers on one folder, and leaves none behind."""
    begun = []

    def start(*more):
        begun.append(Process(tmp_path, *more))
        return begun[-1]

    yield start
    for each in begun:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


def test_a_server_without_torch_is_told_to_end_then_killed_and_loses_no_job(start, tmp_path):
    folder = tmp_path
    first = start("held")
    ids = [first.post()["id"] for _ in range(3)]
    make_set(folder / "out" / "made", {})
    (made,) = first.ask("GET", "/api/v1/sets")["sets"]
    again = {"kind": "reroll", "input": {"set": made["id"], "panel": [1]}}
    ids.append(first.ask("POST", "/api/v1/jobs", again)["id"])
    stream = first.open("GET", "/api/v1/events")
    first.streams.append(stream)
    assert stream.readline() == b"retry: 2000\n"
    first.process.send_signal(signal.SIGTERM)
    stream.read()  # To its end in order: one that held the server up would be cut off.
    assert first.end() == "False\n"
    store = Store(folder / ".iclora" / "serve.sqlite")
    statuses = store.rows("SELECT status, attempt FROM jobs")
    store.close()
    assert {tuple(row) for row in statuses} == {("queued", 0)}

    second = start("held")
    while not any(j["status"] == "running" for j in second.ask("GET", "/api/v1/jobs")["jobs"]):
        time.sleep(0.1)
    second.end(signal.SIGKILL)

    with Opened(folder) as third:
        found = [third.ended(job) for job in ids]
    assert [(job["id"], job["status"]) for job in found] == [(j, "succeeded") for j in ids]
    assert sorted(job["attempt"] for job in found) == [1, 1, 1, 2]
    assert sorted(p.parent.name for p in (folder / "out").glob("*/0*")) == ids
