"""Kill verbs that make sets at random file operations, run them again, and compare every byte.

    python benchmarks/kill_making.py --trials 20

Each trial forks a process that kills itself (SIGKILL) at the n-th file it opens, renames, makes or
removes, runs the same command again, and compares the folder with one that was left alone: the
same files with the same bytes, and nothing left behind. Reports and times of an evaluation differ
from run to run and only have to be there.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

import iclora.evaluate.run
import iclora.making.story  # noqa: F401 (imported before the first fork)
from iclora.cli.main import main as run_verb
from iclora.models import load_model

CAPTION = "[MOVIE-SHOTS] A day, [SCENE-1] a, [SCENE-2] b, [SCENE-3] c."
BASE = ["--base", "tiny", "--recipe", "film-storyboard", "--size", "48x96", "--steps", "1"]
COMMANDS = {
    "generate": ["generate", *BASE, "--prompt", CAPTION, "--count", "4"],
    "best of": ["generate", *BASE, "--prompt", CAPTION, "--best-of", "2", "--score", "toyland"],
    "extend": ["extend", "story.txt", *BASE],
    "evaluate": ["evaluate", *BASE, "--prompt", CAPTION, "--seeds", "3"],
}
TIMED = {"times.jsonl", "report.html", "evaluation.json"}


def run(words: list[str], kill_at: int | None = None) -> int:
    """Run a verb in a process of its own. Returns: its status, or minus the signal."""
    process = os.fork()
    if process == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        if kill_at is not None:
            sys.addaudithook(_killer(kill_at))
        os._exit(run_verb(words))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _killer(at: int):
    seen = 0

    def hook(event: str, _: object) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree"):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def tree(folder: Path) -> dict[str, bytes]:
    """Every file by its name, hidden ones too; empty where content may differ."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): b"" if p.name in TIMED else p.read_bytes() for p in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(args.seed)
    os.chdir(tempfile.mkdtemp())
    story = ["A day", *(f"image {n}" for n in range(1, 6))]
    Path("story.txt").write_text("\n".join(story), encoding="utf-8")
    load_model("tiny", "cpu")  # Made and imported before the first fork.
    for name, words in COMMANDS.items():
        assert run([*words, "--out", "whole"]) == 0
        whole, killed, differing = tree(Path("whole")), 0, 0
        while killed < args.trials:
            shutil.rmtree("out", ignore_errors=True)
            if run([*words, "--out", "out"], random.randint(1, 250)) != -signal.SIGKILL:
                continue
            killed += 1
            time.sleep(1.1)  # Younger leftovers may be another process's.
            ended = run([*words, "--out", "out"])
            differing += ended != 0 or tree(Path("out")) != whole
        print(f"{name}: killed {killed} times, {differing} differ", flush=True)
        shutil.rmtree("whole")


if __name__ == "__main__":
    main()
