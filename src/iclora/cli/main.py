"""The command line: it reads a verb's settings, runs it, and says what went wrong.

Verbs are found by name, by theme in data, training, making and evaluating; other packages add
theirs by entry points of the group "iclora.verbs". Each imports what is heavy when it runs, so
that `--help`, `recipes`, `compose` and `check` start at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from iclora.cli.options import list_verbs, verb_parser
from iclora.cli.output import (
    Terminal,
    as_options,
    noting,
    open_streams,
    option_of,
    quiet_libraries,
    show_error,
)
from iclora.errors import IcloraError, SettingsError
from iclora.jobs.memory import less_memory, out_of_memory
from iclora.progress import Cancelled
from iclora.settings import Settings, Verb, settings_of
from iclora.settings.registry import Registry

__all__ = ["VERBS", "main"]

VERBS: Registry[Verb[Any]] = Registry(
    "iclora.verbs",
    "verb",
    {
        "recipes": "iclora.cli.data:recipes",
        "compose": "iclora.cli.data:compose",
        "caption": "iclora.cli.data:caption",
        "review": "iclora.cli.data:review",
        "collect": "iclora.cli.data:collect",
        "prompt": "iclora.cli.data:prompt",
        "check": "iclora.cli.data:check",
        "import": "iclora.cli.training:import_run",
        "plan": "iclora.cli.training:plan",
        "train": "iclora.cli.training:train",
        "generate": "iclora.cli.making:generate",
        "complete": "iclora.cli.making:complete",
        "reroll": "iclora.cli.making:reroll",
        "extend": "iclora.cli.making:extend",
        "evaluate": "iclora.cli.evaluating:evaluate",
        "info": "iclora.cli.training:info",
        "export": "iclora.cli.training:export",
        "push": "iclora.cli.training:push",
        "serve": "iclora.cli.serving:serve",
        "studio": "iclora.cli.serving:studio",
        "bench": "iclora.cli.measuring:bench",
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns: the exit status: 0; 2 for what the user can fix; 130 after Ctrl-C, 143 after SIGTERM
        or SIGHUP; 141 if nobody reads the output any more, as of any program in a pipe.
    Raises: SystemExit after help, and for options that there are not.
    """
    open_streams()
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        # Of a file it would name it; this is the output itself: a full disk behind ">".
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        _drop_output()
        show_error(f"the output cannot be written: {error.strerror}", "Send it elsewhere.")
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        parser = list_verbs({name: VERBS.load(name) for name in VERBS})
        parser.parse_args(arguments)
        parser.error("the verb comes first")
    try:
        verb = VERBS.load(arguments[0])
    except SettingsError as error:
        show_error(error.problem, error.advice)
        return 2
    given = vars(verb_parser(arguments[0], verb).parse_args(arguments[1:]))
    quiet_libraries()
    console = Terminal(verb.settings)
    try:
        settings = verb.read(given, console) if verb.read else settings_of(verb.settings, given)
        with _ending_in_order(), noting(console):
            return verb.run(settings, console) or 0
    except IcloraError as error:
        _show(error, verb.settings)
    except (KeyboardInterrupt, Cancelled) as stop:
        print("\nstopped", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        first = str(error).strip().split("\n", 1)[0]
        show_error(
            f"out of memory{': ' * bool(first)}{first}",
            as_options(less_memory(verb.settings), verb.settings),
        )
    return 2


class _Terminated(KeyboardInterrupt):
    """The process was told to end. What is open is closed as after Ctrl-C."""


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM (`docker stop`, `scancel`) and SIGHUP (the terminal is gone) end a verb as Ctrl-C
    does, so that temporary folders go and children end.

    A verb that handles SIGTERM itself gets a SIGHUP as one too. What is ignored already, as by
    `nohup`, stays so.
    """

    def end(*_: object) -> None:
        raise _Terminated

    def pass_on(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    wanted = {signal.SIGTERM: end}
    if hasattr(signal, "SIGHUP"):
        wanted[signal.SIGHUP] = pass_on
    if threading.current_thread() is not threading.main_thread():
        wanted = {}
    kept = {n: signal.getsignal(n) for n in wanted if signal.getsignal(n) is signal.SIG_DFL}
    for number in kept:
        signal.signal(number, wanted[number])
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _show(error: IcloraError, model: type[Settings]) -> None:
    """Print an error with options in place of settings."""
    problem, advice = as_options(error.problem, model), as_options(error.advice, model)
    if error.setting in model.model_fields:
        option = option_of(model, error.setting)
        head, line, rest = problem.partition("\n")
        if option.startswith("--") and option not in f"{problem} {advice}" and head[-1:] != ":":
            problem = f"{head} ({option}){line}{rest}"
    show_error(problem, advice)


def _drop_output() -> None:
    """Send what is left to nowhere: the interpreter flushes stdout once more when it ends."""
    with suppress(OSError, ValueError):  # A test's stdout is no file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
