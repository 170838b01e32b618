"""What people see: messages with their role, lines in a log, a bar in a terminal."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.progress import Progress as Bars

from iclora.cli.output import Terminal, bar_mover, noting, show_error, show_table
from iclora.progress import Event, Progress
from iclora.settings import RunSettings

BAR = (
    "from iclora.cli.output import Terminal\nfrom iclora.settings import RunSettings\n"
    "with Terminal(RunSettings).progress() as progress:\n"
    "    for i in range(1, 4): progress('training', i, 3, 'loss 0.5')\n"
)
ERROR = "from iclora.cli.output import show_error; show_error('it failed', 'Try again.')"


def in_a_terminal(code: str, **env: str) -> str:
    """What a program shows where stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **env}
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # What Linux says at its end; a read gives 4 kB at most.
        while piece := os.read(ours, 100_000):
            shown += piece
    os.close(ours)
    assert done.returncode == 0
    return shown.decode()


@pytest.fixture
def clock(monkeypatch):
    """The time as a log reads it, s, which a test lets go by."""
    now = [1000.0]
    monkeypatch.setattr("iclora.cli.output.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_log_gets_the_first_and_the_last_line_with_rate_and_time_left(capsys, clock):
    with Terminal(RunSettings).progress() as progress:
        for i in range(1, 101):
            progress("training", i, 100, "loss 0.5")
            clock[0] += 0.05
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training 1/100 loss 0.5"
    assert lines[-1].startswith("training 100/100 loss 0.5, 0.05 s each, 0 s left")
    assert len(lines) == 2


def test_a_log_counts_again_where_the_same_work_begins_on_the_next_set(capsys, clock):
    with Terminal(RunSettings).progress() as progress:
        for number, seconds in ((1, 3), (2, 0.25)):
            for i in (1, 2):
                progress("sampling", i, 2, f"set {number} of 2")
                clock[0] += seconds
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("sampling 2/2 set 2 of 2, 0.25 s each")


def test_a_terminal_gets_a_bar():
    shown = in_a_terminal(BAR)
    assert "3/3" in shown
    assert "loss 0.5" in shown


def test_forty_sets_are_one_bar():
    bars = Bars(disable=True)
    progress = Progress(bar_mover(bars))
    for number in range(1, 41):
        for step in range(1, 4):
            progress("sampling", step, 3, f"set {number} of 40")
    progress("decoding", 1, 3)
    one, other = bars.tasks
    assert (one.description, one.completed, one.total) == ("sampling", 3, 3)
    assert one.fields["note"] == "set 40 of 40"
    assert (other.description, other.completed) == ("decoding", 1)


def test_what_a_resumed_run_has_behind_it_does_not_count_as_speed():
    seconds = iter(range(1000))
    bars = Bars(disable=True, get_time=lambda: next(seconds))
    show = bar_mover(bars)
    for step in range(501, 506):
        show(Event("training", step, 1000))
    assert bars.tasks[0].completed == 505
    assert bars.tasks[0].speed < 2


def test_an_error_is_coloured_in_a_terminal_and_plain_elsewhere(capsys):
    show_error("it failed", "Try again.")
    assert capsys.readouterr().err == "error: it failed\nhint: Try again.\n"
    shown = in_a_terminal(ERROR)
    assert "\x1b[1;31merror:\x1b[0m it failed" in shown
    assert "hint:\x1b[0m Try again." in shown


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colour_gets_none(env):
    assert "\x1b" not in in_a_terminal(ERROR, **env)


def test_brackets_in_a_table_are_no_markup(capsys):
    show_table(("set", "state"), [("0001[v2]", "ok"), ("[red]", "ok")])
    out = capsys.readouterr().out
    assert "0001[v2]" in out
    assert "[red]" in out


def test_a_silent_terminal_says_nothing(capsys):
    console = Terminal(RunSettings, silent=True)
    console.say("result")
    console.warn("note")
    with console.progress() as progress:
        progress("training", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_a_note_names_options_and_a_result_stays_as_it_is(capsys):
    console = Terminal(RunSettings)
    console.warn("`micro_batch` has no effect")
    console.say("`micro_batch`")
    said = capsys.readouterr()
    assert said.err == "note: --micro-batch has no effect\n"
    assert said.out == "`micro_batch`\n"


def run_verb(words: list[str], **env: str) -> subprocess.CompletedProcess[bytes]:
    full = {**os.environ, "PYTHONUTF8": "0", **env}
    code = "import sys; from iclora.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=full)


@pytest.mark.parametrize("coding", ["cp1252", "gbk", "ascii"])
def test_a_name_that_a_terminal_cannot_print_is_escaped(tmp_path, coding):
    done = run_verb(["recipes", "\u6d77\u6e2f-\u00e9-\u20ac"], PYTHONIOENCODING=coding)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"there is no recipe" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_stops_nothing(closed):
    code = "import sys; from iclora.cli.main import main; sys.exit(main(['recipes', 'none']))"
    assert (
        subprocess.run(["sh", "-c", f"'{sys.executable}' -c \"{code}\" {closed}"]).returncode == 2
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there are no devices")
def test_output_that_finds_a_full_disk_is_said():
    code = "import sys; from iclora.cli.main import main; sys.exit(main(['recipes']))"
    words = ["sh", "-c", f"'{sys.executable}' -c \"{code}\" > /dev/full"]
    done = subprocess.run(words, capture_output=True)
    assert done.returncode == 2
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


EVIL = "set\x1b]0;owned\x07\x1b[2J\r\x9b1m\u202egnp.exe\u061c\u2028\U000e0041"


def test_control_characters_of_names_are_shown_and_never_sent(capsys):
    console = Terminal(RunSettings)
    console.say(EVIL)
    console.warn(EVIL)
    show_error(EVIL, EVIL)
    show_table(("set",), [(EVIL,)])
    with console.progress() as progress:
        progress("reading", 1, 1, EVIL)
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "\\x1b]0;owned\\x07" in text.replace("\n", "")
        assert not set(text) & set("\x1b\x07\r\x9b\u202e\u061c\u2028\U000e0041")


def test_names_in_a_bar_are_no_markup_and_no_commands():
    shown = in_a_terminal(BAR.replace("loss 0.5", "[bold]x[/bold]\\x1b[2J"))
    assert "[bold]x[/bold]" in shown
    assert "\\x1b[2J" in shown


def test_what_models_say_of_the_machine_is_a_note_while_a_verb_runs(capsys):
    log = logging.getLogger("iclora.models")
    with noting(Terminal(RunSettings)):
        log.info("attention (%s): flash\x1b[2J", "forward")
    log.info("and nothing later")
    with noting(Terminal(RunSettings, silent=True)):
        log.warning("nor from the other processes of a run")
    said = capsys.readouterr()
    assert said.err == "note: attention (forward): flash\\x1b[2J\n"
    assert said.out == ""
