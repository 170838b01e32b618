"""Orders of every kind, done as their commands do them."""

from __future__ import annotations

import json
import shutil

import pytest

from iclora.cli.main import main
from iclora.serve.engine import Order
from iclora.serve.warm import Warm
from iclora.serve.work import work
from tests.conftest import CAPTION, picture, write_dataset
from tests.serve.test_local import contents
from tests.serve.test_sharing import Notes
from tests.vlm.test_openai import Server, completion

TIMED = ("times.jsonl", "evaluation.json", "report.html")
"""Files of an evaluation that say how many seconds a set took."""


@pytest.fixture
def writer():
    """A server that writes the same words of everything."""
    words = {"overview": "A day by the sea.", "panels": ["Ana rows.", "A gull.", "Night."]}
    server = Server(lambda body: (200, completion(json.dumps(words))))
    yield server.url
    server.shutdown()
    server.server_close()


def test_sets_that_a_worker_completes_rerolls_extends_and_compares_are_the_commands(lora, tmp_path):
    warm, console = Warm(), Notes()
    picture(96, 64).save(tmp_path / "shot.png")
    lines = CAPTION.replace("[MOVIE-SHOTS] ", "").replace("[SCENE-", "\n[SCENE-").splitlines()
    (tmp_path / "story.txt").write_text("\n".join(line.rpartition("] ")[2] for line in lines))
    small = {"size": "96x192", "steps": 1, "adapter": [str(lora)]}
    told = {
        "complete": {
            "prompt": [CAPTION],
            "given": {"1": str(tmp_path / "shot.png")},
            "text": "alone",
            **small,
        },
        "reroll": {"set": str(tmp_path / "complete" / "0001"), "panel": [2], "seed": 5},
        "extend": {"story": str(tmp_path / "story.txt"), **small},
        "evaluate": {"prompt": [CAPTION], **small},
    }
    words = {
        "complete": [
            *("--prompt", CAPTION, "--text", "alone"),
            *("--given", f"1={tmp_path / 'shot.png'}"),
        ],
        "reroll": [told["reroll"]["set"], "--panel", "2", "--seed", "5"],
        "extend": [told["extend"]["story"]],
        "evaluate": ["--prompt", CAPTION],
    }
    for kind, settings in told.items():
        own = [] if kind == "reroll" else ["--size", "96x192", "--steps", "1"]
        own += [] if kind == "reroll" else ["--adapter", str(lora)]
        order = Order("1", kind, settings, str(tmp_path / kind), 1)
        done = work(order, console, warm)
        assert main([kind, *words[kind], *own, "--out", str(tmp_path / f"{kind}-line")]) == 0
        mine, theirs = (contents(tmp_path / f"{kind}{end}") for end in ("", "-line"))
        assert len([name for name in mine if name.endswith("composite.png")]) >= 1
        for name in mine.keys() | theirs.keys():
            if not name.endswith((*TIMED, ".lock")):
                assert mine[name] == theirs[name], (kind, name)
        # A second attempt finds what the first one made, and says the same.
        assert work(order, console, warm) == done
        assert contents(tmp_path / kind).keys() == mine.keys()
    # The set remembers what its panels read, and so does one of which a panel is made again.
    read = [request_in(tmp_path / kind)["panel_texts"] for kind in ("complete", "reroll")]
    assert read[0] == read[1]
    assert read[0][0] == "[SCENE-1] <Ana> sails out"


def request_in(folder):
    (path,) = folder.rglob("request.json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_words_that_a_worker_writes_are_the_commands(writer, tmp_path, capsys):
    data = write_dataset(tmp_path / "a", sets=2)
    for path in data.rglob("caption.txt"):
        path.unlink()
    other = shutil.copytree(data, tmp_path / "b")
    asks = {"captioner": "openai:m", "api": writer}
    how = ["--captioner", "openai:m", "--api", writer]
    caption = Order("1", "caption", {"data": str(data), **asks}, str(data), 1)
    done = work(caption, Notes(), Warm())
    assert (done["written"], done["kept"], done["failed"]) == (["0001", "0002"], [], [])
    assert main(["caption", str(other), *how]) == 0
    assert contents(data) == contents(other)
    assert work(caption, Notes(), Warm())["kept"] == ["0001", "0002"]
    told = {"idea": "a day at sea", "recipe": "film-storyboard", **asks}
    written = work(Order("2", "prompt", told, str(tmp_path / "p"), 1), Notes(), Warm())["prompt"]
    capsys.readouterr()
    assert main(["prompt", "a day at sea", "--recipe", "film-storyboard", *how]) == 0
    assert capsys.readouterr().out.strip() == written.strip()
