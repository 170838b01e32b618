"""The process between an engine and one replica: `python -m iclora.serve.cluster.bridge TOLD`.

It speaks as a worker on its stdin and stdout, and passes all lines on. It says two more:

    {"say": "waits", "why"}     what the replica waits for
    {"say": "ended", "by"}      what ended the worker or its replica

A process for each replica, so that the server holds nothing of Ray: what ends a cluster ends its
bridges, never the server. Ray ends a replica when its bridge is gone, however that ended.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import ray

from iclora.serve.children import own_pipes
from iclora.serve.cluster.replica import Replica, versions

__all__ = ["main"]

_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
_OFTEN = 5.0
"""Seconds after which it says once more that it waits."""


def main() -> int:
    """Be the bridge that the first argument, JSON, describes. Returns: the exit status."""
    commands, answers = own_pipes()
    return _Bridge(json.loads(sys.argv[1]), answers).work(commands)


class _Bridge:
    def __init__(self, told: dict[str, Any], answers: BinaryIO) -> None:
        self._told, self._answers = told, answers
        self._actor: Any = None
        self._commands: queue.Queue[bytes] = queue.Queue()

    def work(self, commands: BinaryIO) -> int:
        threading.Thread(target=self._listen, args=(commands,), daemon=True).start()
        self._say("waits", why="joins the cluster")
        try:
            ray.init(self._told["address"], log_to_driver=False, configure_logging=False)
            return self._pass_on()
        except ray.exceptions.RayError as error:
            print(error, file=sys.stderr, flush=True)
            where = self._told.get("machine")
            end = f"the end of its replica on {where}" if where else "a replica that did not start"
            return self._end(end)
        except (ConnectionError, RuntimeError) as error:
            print(error, file=sys.stderr, flush=True)
            return self._end(f"the loss of the cluster at {self._told['address']}")

    def _pass_on(self) -> int:
        gpu = self._told["kind"] == "gpu"
        self._actor = (
            ray.remote(Replica)
            .options(
                num_gpus=1 if gpu else 0,
                num_cpus=0 if gpu else 1,
                max_concurrency=2,  # One thread waits for the worker's lines.
                max_restarts=0,  # Whoever started this one starts the next.
                scheduling_strategy="SPREAD",
            )
            .remote()
        )
        told = {
            "log": self._told["log"],
            "nonce": self._told["nonce"],
            "cwd": str(Path.cwd()),
            "versions": versions(),
            "device": "cuda:0" if gpu else "cpu",
            "environment": {name: os.environ[name] for name in _THREADS if name in os.environ},
        }
        begun = self._actor.begin.remote(json.dumps(told))
        while not ray.wait([begun], timeout=_OFTEN)[0]:
            self._say("waits", why=f"waits for a {'GPU' if gpu else 'CPU'} of the cluster")
        about = json.loads(ray.get(begun))
        if about["problem"]:
            return self._end(about["problem"])
        self._told["machine"] = about["machine"]
        self._say("waits", why=f"is starting on {about['machine']}")
        threading.Thread(target=self._tell, daemon=True).start()
        for line in self._actor.lines.options(num_returns="streaming").remote():
            self._answers.write(ray.get(line))
            self._answers.flush()
        return self._end(ray.get(self._actor.ended.remote()))

    def _listen(self, commands: BinaryIO) -> None:
        """Keep commands until the replica stands; their end is its end."""
        for line in commands:
            self._commands.put(line)
        if self._actor is not None:
            ray.kill(self._actor)
        os._exit(0)

    def _tell(self) -> None:
        """Pass commands on, one after the other."""
        while True:
            try:
                ray.get(self._actor.tell.remote(self._commands.get()))
            except ray.exceptions.RayError:
                return  # The other thread hears so, and says it.

    def _say(self, say: str, **what: Any) -> None:
        self._answers.write(json.dumps({"say": say, **what}).encode() + b"\n")
        self._answers.flush()

    def _end(self, by: str) -> int:
        self._say("ended", by=by)
        return 1


if __name__ == "__main__":
    # Ray's own threads may wait for a cluster that is gone.
    os._exit(main())
