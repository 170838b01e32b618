"""What is told of an error that ended a job."""

from __future__ import annotations

import traceback

from iclora.errors import IcloraError
from iclora.jobs.memory import less_memory, out_of_memory
from iclora.serve.engine import Problem
from iclora.settings import Settings

__all__ = ["problem_of"]


def problem_of(error: Exception, settings: type[Settings] | None = None) -> Problem:
    """What went wrong, and what next. All of it goes to stderr if it is no error of ours.

    Args:
        settings: of the verb, which say what helps against too little memory.
    """
    if isinstance(error, IcloraError):
        return {
            "code": type(error).__name__,
            "problem": error.problem,
            "advice": error.advice,
            "setting": error.setting,
        }
    traceback.print_exception(error)
    first = str(error).strip().split("\n", 1)[0]
    if out_of_memory(error):
        advice = less_memory(settings) if settings else "Use a machine with more memory."
        said = f"out of memory{': ' * bool(first)}{first}"
        return {"code": "OutOfMemory", "problem": said, "advice": advice, "setting": None}
    return {
        "code": "InternalError",
        "problem": f"{type(error).__name__}: {first}",
        "advice": "This is a fault of iclora: the worker's log has all of it. Please report it.",
        "setting": None,
    }
