"""The machine that is measured, as the results name it; without importing torch."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

import iclora
from iclora.files import digest_each

__all__ = ["PACKAGES", "commit_of", "describe", "driver", "home", "installed", "scripts", "source"]

PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
)
"""Whose versions are written down."""

_ASKED = ("name", "driver_version", "memory.total", "memory.used", "compute_cap", "power.limit")


def describe(commit: str | None) -> dict[str, Any]:
    """All that is known of the machine and the software before anything is measured.

    Args:
        commit: to write down; None asks git.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cards": driver(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "memory GB": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "iclora": iclora.__version__,
        "commit": commit or commit_of(home()),
        "source": source(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def home() -> Path:
    """The folder of the repository, if the package is used from one; else a folder without it."""
    return Path(iclora.__file__).parents[2]


def scripts() -> frozenset[str]:
    """The files of the repository's folder benchmarks/."""
    return frozenset(path.name for path in (home() / "benchmarks").glob("*.py"))


def source() -> str:
    """12 hex digits that change with any Python file of the package, or of benchmarks/."""
    package = Path(iclora.__file__).parent
    files = sorted([*package.rglob("*.py"), *(home() / "benchmarks").glob("*.py")])
    # A checkout on Windows may have other line ends.
    return digest_each(path.read_bytes().replace(b"\r\n", b"\n") for path in files)[:12]


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout, with a plus if files were changed; None where git knows none."""
    try:
        head, changed = (
            subprocess.run(  # noqa: S603
                ["git", "-C", str(folder), *words],  # noqa: S607
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for words in (
                ["rev-parse", _long("short=10"), "HEAD"],
                ["status", _long("porcelain"), _long("untracked-files=no")],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + "+" * bool(changed)


def driver() -> list[dict[str, str]]:
    """What nvidia-smi says of each card; empty where there is none, or no answer in 30 s."""
    try:
        said = subprocess.run(  # noqa: S603
            ["nvidia-smi", _long(f"query-gpu={','.join(_ASKED)}"), _long("format=csv,noheader")],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    return [dict(zip(_ASKED, cells, strict=False)) for cells in lines if len(cells) == len(_ASKED)]


def _long(option: str) -> str:
    """Another program's option; spelt here, for our own words for settings have no dashes."""
    return f"--{option}"


def installed(names: frozenset[str]) -> frozenset[str]:
    """Those of some packages that could be imported; none is."""
    return frozenset(name for name in names if find_spec(name) is not None)


def same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """True if figures of one description may stand beside those of another."""
    names = ("cards", "processor", "python", "source", *PACKAGES)

    def fixed(about: Mapping[str, Any]) -> list[Any]:
        cards = [
            {k: v for k, v in card.items() if k != "memory.used"} for card in about.get("cards", [])
        ]
        return [cards, *(about.get(name) for name in names[1:])]

    return fixed(before) == fixed(now)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Its name; Python knows it on few systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else platform.machine()
