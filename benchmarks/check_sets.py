"""Time of `check` and `compose` over many small sets, against another commit's, in turns.

    git worktree add ../before 41a1a9f
    python benchmarks/check_sets.py --before ../before/src --sets 500 --rounds 3
    python benchmarks/check_sets.py --sets 2000 --verbs check zip

CPU seconds of the whole command, its start included, and the most memory it held. Each round runs
every command once, so that whatever else the machine does meets all alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SRC = Path(__file__).parents[1] / "src"
CAPTION = "[MOVIE-SHOTS] Day {}, [SCENE-1] Ana sails, [SCENE-2] Ana fishes, [SCENE-3] Ana sleeps."


def write_sets(root: Path, count: int, width: int, height: int) -> None:
    """Storyboards of three smooth pictures each."""
    rng = np.random.default_rng(0)
    for number in range(1, count + 1):
        folder = root / f"{number:04d}"
        folder.mkdir(parents=True)
        for panel in (1, 2, 3):
            seeds = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
            picture = seeds.resize((width, height), Image.Resampling.BICUBIC)
            picture.save(folder / f"{panel}.png")
        (folder / "caption.txt").write_text(CAPTION.format(number), encoding="utf-8")
    (root / "iclora.toml").write_text('recipe = "film-storyboard"\n', encoding="utf-8")


def pack(root: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(root))


def run(source: Path, words: list[str]) -> tuple[float, float, float]:
    """Run a verb. Returns: its CPU seconds, seconds, and MB of memory at its peak."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "iclora", *words],
        # With bytecode, as installed packages have it: else more modules compile longer each time.
        env={**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, words
    return used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="src of the other commit")
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--size", default="64x48", help="of a panel, px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--verbs", nargs="+", default=["check", "compose"])
    args = parser.parse_args()
    sources = {"now": SRC} | ({"before": args.before.resolve()} if args.before else {})
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        width, height = map(int, args.size.split("x"))
        write_sets(home / "sets", args.sets, width, height)
        pack(home / "sets", home / "sets.zip")
        commands = {
            "check": ["check", str(home / "sets")],
            "zip": ["check", str(home / "sets.zip")],
            "compose": ["compose", str(home / "sets"), "--out", str(home / "out")],
        }
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for _ in range(args.rounds):
            for verb in args.verbs:
                for which, source in sources.items():
                    shutil.rmtree(home / "out", ignore_errors=True)
                    found.setdefault((verb, which), []).append(run(source, commands[verb]))
        for (verb, which), runs in found.items():
            cpu, wall, memory = (statistics.median(column) for column in zip(*runs, strict=True))
            every = ", ".join(f"{used:.2f}" for used, _, _ in runs)
            print(f"{verb:8} {which:7} {cpu:6.2f} CPU s ({every})  {wall:6.2f} s  {memory:5.0f} MB")
        for verb in args.verbs if args.before else ():
            now, before = (
                statistics.median(used for used, _, _ in found[verb, which])
                for which in ("now", "before")
            )
            print(f"{verb}: {now / before:.2f} of the CPU time before")


if __name__ == "__main__":
    main()
