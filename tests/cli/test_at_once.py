"""What can be known at the start is said before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import picture

STORY = ["--base", "tiny", "--recipe", "film-storyboard"]
RUN = ["train", "--base", "tiny", "--data", "d", "--steps", "1"]
CASES = [
    (["train", "run.toml"], 'did you mean "lr"'),
    (["train", "ai.yml"], "looks like YAML"),
    (["plan", "run.toml"], 'did you mean "lr"'),
    (["train", "--resume", "d"], "d holds no run"),
    (["push", "d", "ana/x", "--dry-run"], "d holds no run"),
    ([*RUN, "--out", "file"], "file is a file (--out)"),
    ([*RUN, "--out", "r", "--cache", "file/x"], "--cache"),
    ([*RUN, "--out", "r", "--trackers", "wandb"], "wandb is not installed"),
    ([*RUN[:3], "--data", "nowhere", "--out", "r"], "no folder or zip archive nowhere"),
    ([*RUN, "--out", "r", "--recipe", "none"], 'no recipe "none"'),
    ([*RUN[:3], "--data", "bare", "--out", "r", *STORY[2:]], "has no caption"),
    ([*RUN[:3], "--data", "short", "--out", "r", *STORY[2:]], "[SCENE-2] is missing"),
    (["plan", "--write", "d"], "d is a folder"),
    (["generate", *STORY, "--prompt", "x", "--out", "/dev/full"], "not a folder"),
    (["generate", *STORY, "--prompt", "x", "--out", "file/x"], "file is a file"),
    (["generate", *STORY, "--prompt", "[SCENE-9] x"], "[SCENE-9]"),
    (["generate", *STORY, "--prompts", "p.txt"], 'line 1: "--ar 16:9"'),
    (["generate", "bad.json"], "not valid JSON"),
    (["generate", "odd.json"], "steps: takes a value, not true"),
    (["complete", "big.json"], "guidance: must be at most 100.0, not 1e+300"),
    (["generate", *STORY, "--idea", "x", "--steps", "nan"], "--steps"),
    (["generate", *STORY, "--idea", "x", "--strength", "-inf"], "a finite number, not -inf"),
    (["generate", *STORY, "--idea", "x", "--strength", "-1e3"], "at least -100.0, not -1e3"),
    (["complete", *STORY, "--prompt", "x", "--given", "1=none.png"], "none.png"),
    (["complete", *STORY, "--prompt", "x", "--given", "1=mark.png"], "shows on white"),
    (["complete", *STORY, "--prompt", "x", "--given", "1=x", "--background", "x"], "no colour"),
    (["reroll", "d", "--panel", "1"], "request.json"),
    (["extend", "story.txt", *STORY, "--given", "4=panel.png"], "image 4 is given"),
    (["extend", "story.txt", *STORY, "--given", "1=mark.png"], "another --background"),
    (["extend", "p.txt", *STORY], "line 1"),
    (["extend", "story.txt", *STORY, "--anchor", "9"], "anchors [9]"),
    (["evaluate", *STORY, "--prompt", "x", "--out", "file"], "file is a file"),
    (["review", "d", "--out", "/dev/full"], "not a regular file"),
    (["review", "d", "--out", "d"], "d is a folder"),
    (["export", "a", "--format", "peft", "--out", "/dev/full"], "there already"),
    (["export", "a", "--format", "kohya", "--out", "file/x"], "file is a file"),
    (["demo", "--out", "file/x"], "file is a file"),
    (["evaluate", *STORY, "--prompts", "p.txt"], "line 1"),
    (["evaluate", *STORY, "--prompt", "x", "--metric", "fid"], 'no metric "fid"'),
    (["evaluate", *STORY, "--data", "bare"], "has no caption"),
    (["generate", *STORY, "--prompt", "x", "--score", "dino", "--best-of", "2"], "dino:MODEL"),
    (["generate", *STORY, "--idea", "x", "--captioner", "openia:x"], 'no captioner "openia:x"'),
]
CODE = """
import contextlib, io, json, sys
from iclora.cli.main import main
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(words)
    print(json.dumps([status, said.getvalue(), "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Each command's status, its words, and whether torch was imported by then."""
    import json

    folder = tmp_path_factory.mktemp("once")
    (folder / "run.toml").write_text("[train]\nlearning_rate = 1\n")
    (folder / "ai.yml").write_text("job: extension\nconfig:\n  name: x\n")
    (folder / "file").write_text("")
    (folder / "d").mkdir()
    (folder / "p.txt").write_text("a boat --ar 16:9\n")
    (folder / "bad.json").write_text("{")
    (folder / "odd.json").write_text('{"steps": true}')
    (folder / "big.json").write_text('{"guidance": 1e300}')
    (folder / "story.txt").write_text("a day\none\ntwo\nthree\n")
    picture(32, 32).save(folder / "panel.png")
    for name in ("bare", "short"):
        (folder / name / "0001").mkdir(parents=True)
        for number in (1, 2, 3):
            picture(32, 32, seed=number).save(folder / name / "0001" / f"{number}.png")
    (folder / "short/0001/caption.txt").write_text("[MOVIE-SHOTS] a day [SCENE-1] x")
    Image.new("RGBA", (32, 32), (255, 255, 255, 0)).save(folder / "mark.png")
    before = sorted(folder.rglob("*"))
    told = json.dumps([words for words, _ in CASES])
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=told, capture_output=True, text=True, cwd=folder
    )
    assert sorted(folder.rglob("*")) == before, "nothing is left behind"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there are no devices")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_can_be_known_at_the_start_is_said_before_torch_is_imported(answers, number):
    words, says = CASES[number]
    status, said, torch = answers[number]
    assert status == 2, words
    assert says in said
    assert not torch
