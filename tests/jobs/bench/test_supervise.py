"""Whatever a row does, the others are measured, and what was measured is on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iclora.jobs.bench import supervise
from iclora.jobs.bench.rows import Row
from iclora.jobs.bench.supervise import bench
from iclora.settings import BenchSettings

HERE = "tests.jobs.bench.rows"
CHILD = ("-m", HERE)


def row(name: str, limit: int = 200, on: str = "any", takes: int = 1, **told) -> Row:
    call = f"{HERE}:{name.partition('-')[0]}"
    return Row(name, f"about {name}", call, told, limit, takes, on, packages=())


LOOK = row("look")


class Said:
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    warn = say


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    # -P leaves the folder out in which the tests are.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    # The package takes a second to import on a busy machine.
    monkeypatch.setattr(supervise, "OPENING", 200.0)


def run(out, *rows, child=CHILD, **settings):
    said = Said()
    told = BenchSettings(out=str(out), device="cpu", **settings)
    book = bench(told, said, "iclora bench", child, (LOOK, *rows))
    return book, said


def written(out):
    return {row["row"]: row for row in json.loads((out / "bench.json").read_text())["rows"]}


def test_rows_that_fail_hang_or_die_cost_themselves_alone(tmp_path):
    wrong = ("misses", "raises", "memory", "absent", "killed", "leaves")
    rows = [row(name) for name in wrong]
    book, _ = run(tmp_path, *rows, row("hangs", limit=2), row("sound", value=3.0))
    found = written(tmp_path)
    assert [found[r]["status"] for r in ("look", "sound")] == ["measured", "measured"]
    assert [found[r]["status"] for r in wrong] == ["failed"] * len(wrong)
    assert book.failed == [*wrong, "hangs"]
    # What a row told before it went wrong stays.
    assert found["raises"]["figures"][0]["value"] == 1.0
    assert found["killed"]["figures"][0]["value"] == 3.0
    assert found["misses"]["figures"][1]["value"] == 1
    assert "distance: 0.5" in found["misses"]["why"]
    assert "ValueError: no such thing" in found["raises"]["why"]
    assert "rows.py" in found["raises"]["why"]
    assert "out of memory" in found["memory"]["why"]
    assert "no_such_package" in found["absent"]["why"]
    assert "SIGKILL" in found["killed"]["why"]
    assert found["killed"]["log"].endswith("about to go")
    assert "exit status 3" in found["leaves"]["why"]
    hung = found["hangs"]
    assert (hung["status"], hung["figures"][0]["value"]) == ("ended", 2.0)
    assert "in hangs" in hung["log"].splitlines()[0]
    text = (tmp_path / "bench.md").read_text()
    assert "no such thing" in text
    assert "| | speed | 3 m/s | at least 2 | as told; 3 to 4, 2 times |" in text
    assert "== killed" in (tmp_path / "bench.log").read_text()


def test_a_card_that_never_answers_is_left_alone_after_two_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "OPENING", 0.5)
    rows = [row("sound-1", value=1.0), row("sound-2", value=1.0), row("sound-3", value=1.0)]
    began = time.monotonic()
    run(tmp_path, *rows, child=(*CHILD, "silent"))
    found = written(tmp_path)
    assert [found[r]["status"] for r in ("look", "sound-1")] == ["ended", "ended"]
    assert "did not open the device" in found["look"]["why"]
    assert [found[f"sound-{n}"]["status"] for n in (2, 3)] == ["not begun"] * 2
    assert "no longer answers" in found["sound-2"]["why"]
    assert time.monotonic() - began < 30


def test_rows_without_time_left_are_named_and_kept_ones_are_not_run_again(tmp_path):
    late = row("lasts", seconds=0.1, takes=500)
    small = row("sound", value=5.0, takes=0)
    run(tmp_path, late, small, row("sound-card", on="card"), minutes=5)
    found = written(tmp_path)
    assert found["lasts"]["status"] == "not begun"
    assert "it takes about 500" in found["lasts"]["why"]
    assert found["sound"]["status"] == "measured"  # A later one for which there was time.
    assert found["sound-card"]["status"] == "left out"
    date = found["sound"]["date"]
    _, said = run(tmp_path, row("sound", value=6.0), keep=True)
    assert written(tmp_path)["sound"]["date"] == date
    assert "sound: kept" in said.lines
    whole = json.loads((tmp_path / "bench.json").read_text())
    whole["about"]["source"] = "other code"
    (tmp_path / "bench.json").write_text(json.dumps(whole))
    _, said = run(tmp_path, row("sound", value=6.0), keep=True)
    assert any("nothing is kept" in line for line in said.lines)
    assert written(tmp_path)["sound"]["figures"][0]["value"] == 6.0


KILLED = """
import sys
from pathlib import Path
from tests.jobs.bench.test_supervise import row, run
run(Path(sys.argv[1]), row("sound", value=1.0), row("hangs"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process ends with its parent on Linux")
def test_a_bench_killed_by_sigkill_leaves_what_it_measured_and_no_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], start_new_session=True
    )
    log = tmp_path / "bench.log"
    until = time.monotonic() + 200
    while not (log.exists() and b"== sound" in log.read_bytes()):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    children = []
    while not children:
        assert time.monotonic() < until
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
        children = [int(pid) for pid in listed.stdout.split()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert written(tmp_path)["sound"]["status"] == "measured"
    while any(alive(pid) for pid in children):
        assert time.monotonic() < until
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
