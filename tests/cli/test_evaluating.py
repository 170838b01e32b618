"""The verb that measures."""

from __future__ import annotations

import json
import re

import pytest

from tests.conftest import CAPTION

SMALL = ["--size", "96x192", "--steps", "2"]


def test_evaluate_measures_adapters_beside_the_base_and_goes_on_where_it_was(lora, tmp_path, run):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{CAPTION}\n\n{CAPTION.replace('Ana', 'Bo')}\n")
    words = [
        "evaluate",
        "--adapter",
        lora,
        "--prompts",
        prompts,
        "--seeds",
        2,
        *SMALL,
        "--out",
        tmp_path / "out",
    ]
    status, out, _ = run(*words)
    assert status == 0
    assert "4 sets by each of: base; run" in out
    assert re.search(r"pixels seam \(.*\)\n  base  \S+ \(\S+ to \S+\)\n  run ", out)
    assert (tmp_path / "out" / "report.html").is_file()
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    assert figures["seconds"]["arms"]["run"]["count"] == 4
    status, out, _ = run(*words)
    assert status == 0
    assert "making" not in out
    status, _, err = run(*words, "--guidance", 1)
    assert status == 2
    assert "another evaluation" in err


def test_evaluate_completes_a_dataset_in_several_modes(clean, make_dataset, tmp_path, run):
    words = [
        "evaluate",
        "--base",
        "tiny",
        "--data",
        make_dataset(2),
        "--steps",
        1,
        "--size",
        "96x144",
        "--out",
        tmp_path / "out",
    ]
    known = ["--known", 1, "--mode", "sdedit", "--mode", "boost"]
    status, out, _ = run(*words, *known)
    assert status == 0
    assert "2 sets by each of: base, sdedit; base, boost" in out
    assert re.search(r"pixels given error \(.*0 to 255.*\)\n  base, sdedit  0.000", out)
    assert "seconds (per set)\n" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "there is no prompt"),
        (["--prompt", CAPTION, "--data", "x"], "brings its own prompts"),
        (["--prompt", CAPTION], "no recipe is known"),
        (["--prompt", CAPTION, "--strengths", "0.5"], "without an --adapter"),
        (["--prompt", CAPTION, "--background", "red"], "--background: leave it out without"),
        (["--knowledge", "x.txt", "--background", "auto"], "--background: leave it out without"),
        (["--data", "x", "--known", "1=a.png"], "Name the panel alone"),
        (["--prompt", CAPTION, "--recipe", "film-storyboard", "--mode", "clean"], "no panel is"),
        (["--prompt", CAPTION, "--recipe", "film-storyboard", "--metric", "what"], "no metric"),
        (
            [
                "--prompt",
                "[LEFT] a, [RIGHT] b",
                "--recipe",
                "couple-profile",
                "--metric",
                "toyland",
            ],
            "toyland has",
        ),
    ],
)
def test_evaluate_says_what_is_wrong_before_it_makes_anything(clean, words, says, tmp_path, run):
    status, _, err = run("evaluate", "--base", "tiny", *words, "--out", tmp_path / "out")
    assert status == 2
    assert says in err
    assert not (tmp_path / "out").exists()


def test_evaluate_asks_what_an_adapter_leaves_of_the_base(lora, tmp_path, run):
    (tmp_path / "pictures.txt").write_text("A tree.\n# a comment\nA boat.\n")
    words = ["evaluate", "--adapter", lora, "--knowledge", tmp_path / "pictures.txt"]
    words += ["--size", "64x64", "--steps", 1, "--out", tmp_path / "out"]
    status, out, err = run(*words)
    assert status == 0
    assert "1 comment line left out" in err
    assert "2 sets by each of: base; run at 0; run at 0.5; run at 1" in out
    assert re.search(
        r"pixels distance \(.*\)\n  base +-\n  run at 0 +0.000 \(0.000 to 0.000\)\n", out
    )
    status, _, err = run(*words, "--prompt", CAPTION)
    assert status == 2
    assert "--prompt: leave it out beside --knowledge" in err
