"""Where sets come from: folders and archives, published data sets, videos, pages."""

from __future__ import annotations

from pathlib import Path

from iclora.collect.picture import Found
from iclora.collect.sources.folders import read_folder
from iclora.collect.sources.wanted import Wanted
from iclora.errors import IcloraError
from iclora.sets.listing import Problem, list_files

__all__ = ["Wanted", "read_source"]


def read_source(source: str, want: Wanted) -> list[Found]:
    """Find the sets in one source; what is wrong with it is told, and ends nothing else."""
    try:
        listing, problems = list_files(Path(source))
        for problem in problems:
            want.tell(problem)
        return read_folder(source, listing, want)
    except IcloraError as error:
        want.tell(Problem(source, error.problem, error.advice))
        return []
