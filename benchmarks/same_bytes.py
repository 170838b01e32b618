"""Do all verbs give what another commit gave? Every picture and every tensor is compared.

    git worktree add ../before 41a1a9f
    python benchmarks/same_bytes.py --before ../before/src

Both commits run the same commands in float32 on the CPU with toyland's base: compose, five runs
(joint, conditional, isolated, held out, and one resumed), previews, generate, complete in four
modes, reroll, extend and evaluate. Exit status 1 if a pixel or a number differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from iclora.toyland.tasks import TASKS, write_sets

SRC = Path(__file__).parents[1] / "src"
PROMPT = (
    "[MOVIE-SHOTS] A quiet day, [SCENE-1] <Ana>, a red fox, sits in a room, "
    "[SCENE-2] <Ana> runs on a beach, [SCENE-3] <Ana> waves in a street."
)
STORY = "A quiet day.\n" + "".join(f"<Ana>, a red fox, in scene {n}.\n" for n in range(1, 6))
SMALL = ["--base", "toyland", "--device", "cpu"]
MAKE = [*SMALL, "--size", "96x192", "--steps", "4"]
TRAIN = [
    *("--data", "data", "--steps", "6", "--batch", "2", "--rank", "4", "--resolutions", "128"),
    *("--save-every", "3", "--preview-every", "6", "--preview-prompts", PROMPT),
    *("--preview-resolution", "128", "--cache", "cache"),
]
RUNS = {
    "joint": [],
    "conditional": ["--conditional", "0.5"],
    "isolated": ["--conditional", "0.5", "--isolate-given"],
    "held": ["--held-out", "0.3"],
}
MODES = {"sdedit": [], "resample": ["--resample", "2"], "boost": ["--boost", "3"], "clean": []}


def run(source: Path, place: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iclora", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{source}: iclora {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def make_all(source: Path, place: Path) -> None:
    """Run every command in a folder of its own."""
    (place / "story.txt").write_text(STORY, encoding="utf-8")
    run(source, place, "compose", "data", "--out", "composed", "--resolution", "256")
    for name, words in RUNS.items():
        run(source, place, "train", *SMALL, *TRAIN, *words, "--out", name)
    again = place / "resumed"
    shutil.copytree(place / "joint", again)
    (again / "adapter.safetensors").unlink()
    last = max((again / "checkpoints").iterdir(), key=lambda path: path.name)
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    run(source, place, "train", "--resume", "resumed")
    adapter = ["--adapter", "joint/adapter.safetensors"]
    made = ["--prompt", PROMPT, "--count", "2", "--out", "made"]
    run(source, place, "generate", *MAKE, *adapter, *made)
    given = ["--known", "1=made/0001/panel-1.png", "--prompt", PROMPT]
    for mode, words in MODES.items():
        more = [*given, "--mode", mode, *words, "--out", mode]
        run(source, place, "complete", *MAKE, *adapter, *more)
    run(source, place, "reroll", "made/0001", "--panel", "2", "--out", "reroll", "--device", "cpu")
    run(source, place, "extend", "story.txt", *MAKE, *adapter, "--out", "extended")
    words = ["--data", "data", "--metric", "toyland", "--out", "evaluated"]
    run(source, place, "evaluate", *MAKE, "--adapter", "conditional/adapter.safetensors", *words)


def content(path: Path) -> dict[str, np.ndarray] | None:
    """What a file holds: pixels or tensors by name; None if it is neither."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return {"pixels": np.asarray(image.convert("RGBA"))}
    return load_file(path) if path.suffix == ".safetensors" else None


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a
    )


def compare(before: Path, now: Path) -> int:
    """Print what differs. Returns: how many files differ or are missing."""
    names = sorted(
        path.relative_to(before)
        for path in before.rglob("*")
        if path.suffix in (".png", ".safetensors") and path.relative_to(before).parts[0] != "cache"
    )
    wrong, equal = [], 0
    for name in names:
        mine = content(now / name) if (now / name).is_file() else None
        if mine is None or not same(content(before / name) or {}, mine):
            wrong.append(f"{'missing' if mine is None else 'differs'}: {name}")
        else:
            equal += (before / name).read_bytes() == (now / name).read_bytes()
    print(*wrong, sep="\n")
    print(f"{len(names) - len(wrong)} of {len(names)} files hold the same, {equal} to the byte")
    return len(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="src of the other commit")
    parser.add_argument("--keep", type=Path, help="keep what was made in this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = args.keep or Path(scratch)
        for name, source in (("before", args.before.resolve()), ("now", SRC)):
            write_sets(TASKS["film-storyboard"], home / name / "data", 6)
            (home / name / "data" / "iclora.toml").write_text('recipe = "film-storyboard"\n')
            for recipe in (home / name / "data").glob("*-toyland.toml"):
                recipe.unlink()
            make_all(source, home / name)
        sys.exit(compare(home / "before", home / "now") > 0)


if __name__ == "__main__":
    main()
