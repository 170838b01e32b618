"""Rows that compare with other people's code: scripts of the repository's folder benchmarks/.

Each has a function `measure(tell, **settings)`, which `python benchmarks/NAME.py` calls, too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from iclora.jobs.bench.machine import home
from iclora.jobs.bench.telling import Bench

__all__ = ["run"]


def run(bench: Bench, script: str, settings: Mapping[str, Any]) -> None:
    """Measure what a script does. Raises: whatever it raises."""
    # They import each other by their names.
    sys.path.insert(0, str(home() / "benchmarks"))
    import_module(Path(script).stem).measure(bench.tell, **settings)
