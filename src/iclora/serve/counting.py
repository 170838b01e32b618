"""The process that counts what a run takes: `python -m iclora.serve.counting RUN_FILE`.

It answers with one line of JSON: the plan, or the problem and what to do about it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from iclora.errors import IcloraError
from iclora.settings import PlanSettings, read_settings

__all__ = ["answer", "count"]


def count(run_file: str) -> dict[str, Any]:
    """The plan of the run in a file, for the card of this machine or another.

    Raises: IcloraError if nothing fits, or it cannot be counted.
    """
    from iclora.train.plan import plan_run

    found = plan_run(read_settings(PlanSettings, run_file, {}).training(), here=False)
    return {
        "text": str(found),
        "run_file": found.run_file(),
        "memory": found.card.memory,
        "usable": found.card.usable,
        "peak": found.peak,
        "seconds": found.seconds,
        "here": found.card.device is not None,
        "precision": found.settings.precision,
        "recomputed": found.recomputed,
        "blocks": found.blocks,
    }


def answer(run_file: str) -> dict[str, Any]:
    """The plan, or what is wrong and what to do about it."""
    try:
        return count(run_file)
    except IcloraError as error:
        return {"problem": error.problem, "advice": error.advice, "setting": error.setting}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1])))
