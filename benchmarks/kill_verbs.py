"""Kill verbs at random changes of the disk, run them again, and compare every byte.

    python benchmarks/kill_verbs.py --trials 34
    python benchmarks/kill_verbs.py --verbs train --trials 100 --seed 1

Each trial forks a process that kills itself (SIGKILL) at the n-th file it opens for writing,
renames, makes or removes, n drawn among all that the verb does. The same command is run again
(`train` is resumed, if its settings are there), and the folder is compared with that of a run left
alone: the same files with the same bytes, and nothing left behind. What holds times only has to be
there. The processes are forked from one that has imported everything, so that a kill costs what
the verb's own work does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import iclora.cli.data
import iclora.cli.evaluating
import iclora.cli.making
import iclora.cli.training
import iclora.evaluate.run
import iclora.jobs.data
import iclora.jobs.evaluating
import iclora.jobs.making
import iclora.jobs.training
import iclora.making.story
import iclora.sets.collect.run
import iclora.sets.collect.sources.pages
import iclora.train.run
import iclora.vlm.caption
import iclora.vlm.openai  # noqa: F401 (all imported before the first fork)
from iclora.cli.main import main as run_verb
from iclora.models import load_model
from iclora.toyland.tasks import TASKS, write_sets

CAPTION = "[MOVIE-SHOTS] A day, [SCENE-1] a, [SCENE-2] b, [SCENE-3] c."
MAKING = ["--base", "tiny", "--recipe", "film-storyboard", "--size", "48x96", "--steps", "1"]
TRAINING = [
    "--base",
    "tiny",
    "--data",
    "data",
    "--resolutions",
    "64",
    "--device",
    "cpu",
    "--rank",
    "2",
]
TRAINING += ["--steps", "4", "--save-every", "2", "--keep", "2", "--preview-every", "2"]
TRAINING += ["--preview-resolution", "64"]
TRAINING += ["--batch", "2", "--held-out", "0.25"]
COMMANDS = {
    "train": ["train", *TRAINING, "--out", "out"],
    "compose": ["compose", "data", "--out", "out/composed"],
    "caption": ["caption", "out/data", "--recipe", "film-storyboard", "--captioner", "openai:m"],
    "overwrite": ["caption", "out/data", "--overwrite", "--captioner", "openai:m"],
    "generate": ["generate", *MAKING, "--prompt", CAPTION, "--count", "4", "--out", "out"],
    "best of": ["generate", *MAKING, "--prompt", CAPTION, "--best-of", "2", "--score", "toyland"],
    "extend": ["extend", "story.txt", *MAKING, "--out", "out"],
    "evaluate": ["evaluate", *MAKING, "--prompt", CAPTION, "--seeds", "3", "--out", "out"],
    "collect": ["collect", "data", "deck.pdf", "--recipe", "film-storyboard", "--keep", "5"],
}
COMMANDS["best of"] += ["--out", "out"]
COMMANDS["collect"] += ["--out", "out/sets"]
TIMED = {"times.jsonl", "report.html", "evaluation.json"}
EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
PAGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Captioner(BaseHTTPRequestHandler):
    """A server whose answers follow from the pictures it is sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        pictures = re.findall(rb"base64,([^\"]+)", body)
        words = [hashlib.sha256(picture).hexdigest()[:12] for picture in pictures]
        answer = {"overview": f"A day {words[0]}", "panels": [f"{w} {w[::-1]}" for w in words]}
        data = json.dumps({"choices": [{"message": {"content": json.dumps(answer)}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def serve() -> None:
    """Start the server in a process of its own, and name it to the verbs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Captioner)
    if os.fork() == 0:
        parent = os.getppid()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)
    server.socket.close()
    os.environ["OPENAI_BASE_URL"] = f"http://127.0.0.1:{server.server_port}/v1"
    os.environ["OPENAI_API_KEY"] = "none"


def run(words: list[str], log: Path, kill_at: int | None = None) -> int:
    """Run a verb in a process of its own, its words to a log.

    Returns: its status, or minus the signal.
    """
    process = os.fork()
    if process == 0:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        status = 1
        try:
            count = _count_changes(kill_at)
            status = run_verb(words)
            print(f"changes: {count()}", flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _count_changes(kill_at: int | None) -> Callable[[], int]:
    """Count changes of the disk from here on, and die at one of them."""
    seen = 0

    def hook(event: str, how: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS or (event == "open" and how[2] & PAGES and how[0] != os.devnull):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and empty folder by its name, hidden ones too; b"" where content may differ."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if not any(path.iterdir()):
                found[name + "/"] = b""
        else:
            found[name] = b"" if path.name in TIMED else path.read_bytes()
    # Each process that writes for TensorBoard has a file of its own, named by the time.
    return {n: data for n, data in found.items() if not n.startswith("tensorboard/")}


def begin(verb: str) -> None:
    """Make what a verb starts from."""
    shutil.rmtree("out", ignore_errors=True)
    if verb not in ("train", "generate", "best of", "extend", "evaluate"):
        Path("out").mkdir()
    if verb in ("caption", "overwrite"):
        shutil.copytree("data", "out/data")
        for path in Path("out/data").rglob("*.txt"):
            if verb == "caption":
                path.unlink()


def again(verb: str) -> list[str]:
    """The command that goes on."""
    if verb == "train" and Path("out/config.toml").is_file():
        return ["train", "--resume", "out"]
    return COMMANDS[verb]


def age(folder: Path) -> None:
    """Let what was left behind be two seconds old: younger things may be another process's."""
    then = time.time() - 2
    for path in (folder, *folder.rglob(".*")):
        os.utime(path, (then, then))


def trial(verb: str, at: int, whole: dict[str, bytes]) -> str | None:
    """Kill and go on. Returns: what differs; "" if nothing does; None if it was not killed."""
    begin(verb)
    if run(COMMANDS[verb], Path("first.log"), at) != -signal.SIGKILL:
        return None
    if Path("out").exists():
        age(Path("out"))
    words = again(verb)
    status = run(words, Path("second.log"))
    if status:
        last = Path("second.log").read_text(encoding="utf-8", errors="replace")[-400:]
        return f"`{' '.join(words[:3])}` ended with {status}: {last}"
    there = tree(Path("out"))
    names = set(there) ^ set(whole) | {n for n in set(there) & set(whole) if there[n] != whole[n]}
    marks = {n: "+" if n not in whole else "-" if n not in there else "~" for n in names}
    return ", ".join(f"{marks[name]}{name}" for name in sorted(names))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=34, help="kills of each verb")
    parser.add_argument("--verbs", nargs="+", default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    os.chdir(tempfile.mkdtemp())
    write_sets(TASKS["film-storyboard"], Path("data"), 4)
    pages = [Image.open(path).convert("RGB") for path in sorted(Path("data").rglob("*.png"))]
    pages[0].save("deck.pdf", save_all=True, append_images=pages[1:9])
    story = ["A day", *(f"image {n}" for n in range(1, 6))]
    Path("story.txt").write_text("\n".join(story), encoding="utf-8")
    load_model("tiny", "cpu")
    serve()
    total = same = 0
    for verb in args.verbs:
        began = time.monotonic()
        begin(verb)
        assert run_verb(COMMANDS[verb]) == 0  # here, so that all it imports is there for forks
        begin(verb)
        assert run(COMMANDS[verb], Path("whole.log")) == 0, Path("whole.log").read_text()
        whole = tree(Path("out"))
        changes = int(Path("whole.log").read_text().split("changes: ")[-1])
        killed = good = 0
        while killed < args.trials:
            at = rng.randint(1, changes)
            found = trial(verb, at, whole)
            if found is None:
                continue
            killed += 1
            good += not found
            if found:
                print(f"{verb}, killed at change {at} of {changes}: {found}", flush=True)
        took = time.monotonic() - began
        print(f"{verb}: {good} of {killed} the same ({changes} changes, {took:.0f} s)", flush=True)
        total, same = total + killed, same + good
    print(f"all: {same} of {total} the same, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
