"""Workers for a server that is a process of its own, forked where torch is imported already.

The server asks over a socket, and hands over the ends of its pipes: it, its workers and what is
between them are as they are in use; what is saved is Python's imports, seconds for each start.
"""

from __future__ import annotations

import array
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from iclora.serve.children import Child


@contextmanager
def broker(place: Path) -> Iterator[list[int]]:
    """Start workers for whoever asks at this socket.

    Yields: the numbers of their processes, as they are started.
    """
    pids: list[int] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen()
        threading.Thread(target=_serve, args=(listening, pids), daemon=True).start()
        yield pids


def start(place: str, environment: dict[str, str], log: Path) -> Child:
    """Start a worker as `start_worker` does, by the broker at this socket."""
    log.parent.mkdir(parents=True, exist_ok=True)
    theirs, commands = os.pipe()
    answers, said = os.pipe()
    asked = socket.socket(socket.AF_UNIX)
    asked.connect(place)
    told = json.dumps([str(log), environment]).encode()
    asked.sendall(len(told).to_bytes(4, "big"))
    fds = array.array("i", [theirs, said])
    asked.sendmsg([told], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    os.close(theirs)
    os.close(said)
    told_back = asked.makefile()
    pid = int(told_back.readline())

    def wait() -> int:
        status = int(told_back.readline())
        asked.close()
        return status

    return Child(pid, os.fdopen(commands, "wb"), os.fdopen(answers, "rb"), wait)


def _serve(listening: socket.socket, pids: list[int]) -> None:
    while True:
        try:
            asked, _ = listening.accept()
        except OSError:  # It was closed.
            return
        threading.Thread(target=_fork, args=(asked, pids), daemon=True).start()


def _fork(asked: socket.socket, pids: list[int]) -> None:
    from tests import processes
    from tests.serve import forked

    with asked:
        size = int.from_bytes(asked.recv(4), "big")
        told, fds, _, _ = socket.recv_fds(asked, size, 2)
        while len(told) < size:
            told += asked.recv(size - len(told))
        log, environment = json.loads(told)
        ends = Connection(fds[0], writable=False), Connection(fds[1], readable=False)
        folder = Path(log).parent
        process = processes.start(forked.be_one, folder, log, environment, *ends)
        for end in ends:
            end.close()
        pids.append(process.pid)
        # Whoever asked may have been killed meanwhile.
        try:
            asked.sendall(f"{process.pid}\n".encode())
            process.join()
            asked.sendall(f"{process.exitcode}\n".encode())
        except OSError:
            process.join()
