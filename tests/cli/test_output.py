"""Progress as people see it: lines in a log, a bar in a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from iclora.cli.output import Terminal

CODE = (
    "from iclora.cli.output import Terminal\n"
    "with Terminal().progress() as bar:\n"
    "    for i in range(1, 4): bar('training', i, 3, 'loss 0.5')\n"
)


def test_a_log_gets_the_first_and_the_last_line_with_rate_and_time_left(capsys):
    with Terminal().progress() as bar:
        for i in range(1, 101):
            bar("training", i, 100, "loss 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training 1/100 loss 0.5"
    assert lines[-1].startswith("training 100/100 loss 0.5, 0.00 s each, 0 s left")
    assert len(lines) == 2


def test_a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", CODE], stdout=theirs, env=env)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "3/3" in shown
    assert "loss 0.5" in shown
