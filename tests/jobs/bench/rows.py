"""Rows that go wrong in every way a row can, in processes that import no torch."""

from __future__ import annotations

import os
import signal
import sys
import time

from iclora.jobs.bench.child import be_row


def look(bench):
    bench.machine = {"cuda": False, "name": ""}
    bench.tell("answer", 42, "things")


def sound(bench, value):
    bench.tell("speed", value, "m/s", least=2.0, note="as told", all=[value, value + 1])


def misses(bench):
    bench.tell("distance", 0.5, most=0.1, must=True)
    bench.tell("the rest", 1)


def raises(bench):
    bench.tell("before", 1.0, "s")
    raise ValueError("no such thing | at all")


def memory(bench):
    raise MemoryError


def absent(bench):
    import no_such_package  # noqa: F401


def hangs(bench):
    bench.tell("before", 2.0, "s")
    time.sleep(600)


def killed(bench):
    bench.tell("before", 3.0, "s")
    print("about to go", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(bench):
    """End at once without a word, as a library may."""
    os._exit(3)


def lasts(bench, seconds):
    time.sleep(seconds)
    bench.tell("lasted", seconds, "s")


if __name__ == "__main__":
    if "silent" in sys.argv:  # A card that never answers.
        time.sleep(600)
    sys.exit(be_row("", preloaded=()))
