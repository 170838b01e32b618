"""A server in this process on a folder of its own, with an engine without torch."""

from __future__ import annotations

import functools
import io
import time

import pytest
from PIL import Image
from starlette.testclient import TestClient

from iclora.serve.app import make_app
from iclora.serve.server import Server
from iclora.settings import ServeSettings
from tests.serve.fake import FakeEngine

PLANNED = {
    **{"text": "plan", "run_file": "[train]", "memory": 12 * 10**9, "usable": 10**10},
    **{"peak": 10**9, "seconds": [1.0, 2.0], "here": True, "precision": "full"},
    **{"recomputed": 0, "blocks": 4},
}
"""A plan as `counting` answers."""
ENDED = {"succeeded", "failed", "cancelled"}


def picture(colour="red", size=(16, 16), kind="PNG"):
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, kind)
    return held.getvalue()


@functools.cache
def one_app():
    """One app for all tests, which takes a tenth of a second to build its routes; each its server.

    What an app keeps of a server would be found by the tests of restarts.
    """
    return make_app(None)


class Opened:
    """A server and a client that has its token."""

    def __init__(self, folder, engine=None, **settings):
        self.engine = engine or FakeEngine()
        self.server = Server(ServeSettings(folder=str(folder), **settings), "toyland", self.engine)
        self.app = one_app()
        self.app.state.server = self.server
        self.token = (folder / ".iclora" / "token").read_text().strip()
        self.client = TestClient(self.app, "http://localhost:7860", follow_redirects=False)
        self.client.headers["Authorization"] = f"Bearer {self.token}"

    def __enter__(self):
        self.client.__enter__()
        return self

    def __exit__(self, *_):
        self.client.__exit__(None, None, None)

    def post(self, kind="generate", headers=None, **more):
        told = more.pop("input", {"prompt": ["a fox"]})
        body = {"kind": kind, "input": told, **more}
        return self.client.post("/api/v1/jobs", json=body, headers=headers)

    def ended(self, job, seconds=200.0):
        """The job once it has ended."""
        return self.until(job, ENDED, seconds)

    def until(self, job, statuses, seconds=200.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.client.get(f"/api/v1/jobs/{job}").json()
            if found["status"] in statuses:
                return found
            time.sleep(0.005)
        raise AssertionError(f"{found['status']} after {seconds} s")

    def upload(self, data, name="a.png"):
        return self.client.post("/api/v1/assets", files={"file": (name, data)})


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def opened(folder):
    with Opened(folder) as found:
        yield found
