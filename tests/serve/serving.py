"""A server with an engine without torch, as a process of its own: python -m tests.serve.serving."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from iclora.cli.serving import _listen
from iclora.serve.app import make_app
from iclora.serve.local import LocalEngine
from iclora.serve.running import run
from iclora.serve.server import Server
from iclora.settings import ServeSettings
from tests.serve.broker import start
from tests.serve.fake import FakeEngine


def main(folder: str, how: str = "0", base: str = "toyland", broker: str = "") -> None:
    """Print the port, serve, and print at the end if torch was imported.

    Args:
        how: seconds that a job takes; "held" for jobs without an end, "paused" for a paused queue;
            "real" for real workers, which `broker` starts.
        broker: the socket of one, see `tests.serve.broker`.
    """
    engine = FakeEngine()
    if how == "real":
        start_worker = partial(start, broker)
        logs = Path(folder) / ".iclora" / "logs"
        engine = LocalEngine(["cpu"], base=base, logs=logs, threads=1, start=start_worker)
    elif how == "held":
        engine.hold()
    elif how != "paused":
        engine.pace = float(how)
    settings = ServeSettings(folder=folder, paused=how == "paused")
    server = Server(settings, base, engine)
    close = server.close

    def say_and_close() -> None:
        print("torch" in sys.modules, flush=True)
        close()

    server.close = say_and_close
    with _listen(ServeSettings(port=0)) as listening:
        print(listening.getsockname()[1], flush=True)
        run(make_app(server), server, listening)


if __name__ == "__main__":
    main(*sys.argv[1:])
