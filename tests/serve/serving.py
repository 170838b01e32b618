"""A server with an engine without torch, as a process of its own: python -m tests.serve.serving."""

from __future__ import annotations

import socket
import sys

from iclora.serve.app import make_app
from iclora.serve.running import run
from iclora.serve.server import Server
from iclora.settings import ServeSettings
from tests.serve.fake import FakeEngine


def main(folder: str, slow: str = "") -> None:
    """Print the port and serve."""
    engine = FakeEngine()
    if slow:
        engine.hold()
    server = Server(ServeSettings(folder=folder), "toyland", engine)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        run(make_app(server), server, listening)


if __name__ == "__main__":
    main(*sys.argv[1:])
