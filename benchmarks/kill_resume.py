"""Kill a run with SIGKILL at random moments, resume it, and compare the bytes of its adapter.

    python benchmarks/kill_resume.py --trials 20

Each trial starts `iclora train` on the tiny base, kills it at a moment drawn from its last four
fifths, end of start and writing of checkpoints included, resumes it, and compares
adapter.safetensors with that of a run left alone. A run killed before its folder exists is started
again. One that has ended by then does not count: another moment is drawn.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from iclora.toyland.tasks import TASKS, write_sets

STEPS = 30


def train(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "iclora", "train", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_sets(TASKS["film-storyboard"], home / "data", 4)
        given = [
            "--base",
            "tiny",
            "--data",
            str(home / "data"),
            "--resolutions",
            "64",
            "--device",
            "cpu",
            "--steps",
            str(STEPS),
            "--save-every",
            "3",
            "--preview-every",
            "0",
            "--batch",
            "2",
            "--held-out",
            "0.25",
            "--keep",
            "2",
        ]
        began = time.monotonic()
        assert train(*given, "--out", str(home / "alone")).wait() == 0
        lasts = time.monotonic() - began
        wanted = (home / "alone" / "adapter.safetensors").read_bytes()
        same, moments = 0, []
        while len(moments) < args.trials:
            out = home / f"run-{len(moments)}"
            shutil.rmtree(out, ignore_errors=True)
            process = train(*given, "--out", str(out))
            time.sleep(rng.uniform(0.2, 1) * lasts)
            process.kill()
            if process.wait() != -signal.SIGKILL:
                continue
            log = out / "log.jsonl"
            moments.append(len(log.read_text().splitlines()) if log.is_file() else 0)
            again = (
                ["--resume", str(out)]
                if (out / "config.toml").is_file()
                else [*given, "--out", str(out)]
            )
            assert train(*again).wait() == 0
            same += (out / "adapter.safetensors").read_bytes() == wanted
            print(f"killed at step {moments[-1]}: {same} of {len(moments)} the same", flush=True)
        print(
            json.dumps(
                {
                    "trials": args.trials,
                    "same bytes": same,
                    "steps logged when killed": moments,
                    "steps": STEPS,
                    "machine": platform.machine(),
                    "torch": torch.__version__,
                    "date": time.strftime("%Y-%m-%d"),
                }
            )
        )


if __name__ == "__main__":
    main()
