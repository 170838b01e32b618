"""What hints tell people to do is tried: it must lead on."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import iclora
from iclora import settings as models
from iclora.cli.main import VERBS, main
from iclora.settings import Settings

ROOT = Path(iclora.__file__).parent
STORY = ["--recipe", "film-storyboard"]


def examples(err: str) -> list[str]:
    """The options that a hint sets by example, as words to type."""
    found = re.findall(r"(--[a-z-]+), for instance to ([^\s,]+),?", err)
    return [word for pair in found for word in (pair[0], pair[1].rstrip("."))]


@pytest.fixture
def ask(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder. Returns: its status and what it says on stderr."""
    monkeypatch.chdir(tmp_path)

    def typed(*words):
        try:
            status = main([str(word) for word in words])
        except SystemExit as ended:
            status = ended.code
        return status, capsys.readouterr().err

    return typed


@pytest.mark.parametrize(
    "words",
    [
        ["reroll", "out/0001"],
        ["compose", "photos"],
        ["caption", "sets"],
        ["prompt", "a day at sea"],
        ["prompt", "a day at sea", *STORY],
        ["train"],
        ["train", "--base", "toyland"],
        ["export", "a.safetensors"],
        ["generate", "--base", "tiny", "--prompt", "x"],
        ["generate", "--prompt", "x", *STORY],
    ],
)
def test_a_setting_that_is_missing_is_asked_for_by_an_example_that_is_taken(ask, words):
    status, err = ask(*words)
    assert status == 2
    assert examples(err), err
    missing = err.split("\n", 1)[0]
    again = ask(
        *words, *examples(err), *(["--device", "toaster"] if words[0] == "generate" else [])
    )
    assert missing not in again[1]
    assert "must be given" not in again[1]


def test_a_recipe_that_is_named_instead_is_there(ask):
    _, err = ask("recipes", "storyboard")
    names = re.search(r"Use one of (.*), or the path", err)[1].split(", ")
    assert all(ask("recipes", name)[0] == 0 for name in names)


@pytest.mark.parametrize(
    ("words", "good"),
    [
        (["generate", "--guidance-scale", "nan"], "--guidance"),
        (["plan", "--learning-rate", "nan"], "--lr"),
        (["plan", "--step", "nan"], "--steps"),
        (["check", "x", "--resolution", "nan"], "--resolutions"),
    ],
)
def test_an_option_that_is_meant_instead_is_there(ask, words, good):
    _, err = ask(*words)
    meant = re.search(r"did you mean (--[a-z-]+)\?", err)
    if meant:  # argparse takes what begins an option for it.
        assert meant[1] == good
    assert (
        f"invalid setting: {good}:" in ask(*[good if w.startswith("--") else w for w in words])[1]
    )


def test_a_manifest_that_is_told_is_read(ask, make_dataset, tmp_path):
    data = make_dataset(sets=1)
    (data / "iclora.toml").unlink(missing_ok=True)
    status, err = ask("check", data)
    assert status == 2
    name, line = re.search(r"write (\S+) with the line (.*)\.", err).groups()
    (data / name).write_text(line)
    assert "does not say which recipe" not in ask("check", data)[1]


@pytest.mark.parametrize("manifest", [True, False])
def test_a_recipe_that_is_meant_is_there(ask, make_dataset, manifest):
    data = make_dataset(sets=1)
    (data / "iclora.toml").write_text('recipe = "film storybord"')
    words = ["check", data, "--resolutions", "64"]
    _, err = ask(*words, *([] if manifest else ["--recipe", "film-story"]))
    name = re.search(r'Did you mean "(.*)"\?', err)[1]
    assert ask(*words, "--recipe", name)[0] == 0


def test_a_picture_renamed_as_told_is_read(ask, make_dataset):
    data = make_dataset(sets=1)
    file = data / "0001" / "2.png"
    file = file.rename(file.with_suffix(".jpg_large"))
    status, err = ask("check", data, "--resolutions", "64")
    assert status == 2
    file.rename(file.with_suffix(re.search(r"Rename to (\.\w+)\.", err)[1]))
    assert ask("check", data, "--resolutions", "64")[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems name files by letters")
def test_names_that_a_locale_cannot_say_are_read_with_the_variable_that_is_told(make_dataset):
    data = make_dataset(sets=1)
    (data / "0001").rename(data / "\u6d77\u6e2f")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "iclora", "check", str(data), "--resolutions", "64"]
    done = subprocess.run(words, env=plain, capture_output=True)
    assert done.returncode == 2
    name, value = re.search(rb"set (\w+)=(\d),", done.stderr).groups()
    told = {**plain, name.decode(): value.decode()}
    assert subprocess.run(words, env=told, capture_output=True).returncode == 0


def test_markers_that_are_told_are_taken(ask):
    words = ["generate", *STORY, "--device", "cpu", "--out", "file/x", "--prompt"]
    _, err = ask("generate", *STORY, "--prompt", "x [SCENE-9] y")
    markers = re.search(r"Its markers are (.*)\.", err)[1].split()
    Path("file").write_text("")
    assert "file is a file" in ask(*words, " ".join(f"{m} a boat" for m in markers))[1]


def test_a_path_written_as_told_is_read(ask, tmp_path):
    run = tmp_path / "run.toml"
    run.write_text('[train]\nbase = "tiny"\nout = "o"\ndata = "C:\\Users\\me"\n')
    _, err = ask("train", run)
    assert "forward slashes, or in single quotes" in err
    for line in ('"C:/Users/me"', r"'C:\Users\me'"):
        run.write_text(f'[train]\nbase = "tiny"\nout = "o"\ndata = {line}\n')
        # Elsewhere than on Windows it is no path, and is told to be one of Windows.
        assert re.search("no folder or zip archive C:|path of Windows", ask("train", run)[1])


RUN = 'base = "tiny"\nout = "o"\ndata = "nowhere"\n'


@pytest.mark.parametrize(
    ("wrong", "told", "right"),
    [
        (RUN, r"Write (\[train\]) on the first line", "{0}\n" + RUN),
        (
            f"[train]\n{RUN}[sample]\nx = 1\n",
            r"Leave the rest out: it has (\[train\])",
            "{0}\n" + RUN,
        ),
        ('{"train": {}}', r"a line for each setting: (steps = 1000)\.", "[train]\n" + RUN + "{0}"),
        (
            f"[train]\n{RUN}compile = True",
            "true and false in small (letters)",
            RUN + "compile = true",
        ),
        (f"[train]\n{RUN}lr = 0,1", "decimals with a (point)", RUN + "lr = 0.1"),
        (f"[train]\n{RUN}learning_rate = 1", 'did you mean "(lr)"', "[train]\n" + RUN + "{0} = 1"),
        (f"[train]\n{RUN}alpha = nan", "Write a (finite) number", RUN + "alpha = 1"),
    ],
)
def test_a_run_file_changed_as_told_is_read(ask, wrong, told, right):
    run = Path("run.toml")
    run.write_text(wrong)
    _, err = ask("train", run)
    found = re.search(told, err)
    assert found, err
    text = right.format(found[1])
    run.write_text(text if text.startswith("[train]") else f"[train]\n{text}")
    assert "there is no folder or zip archive nowhere" in ask("train", run)[1]


def test_files_that_are_unpacked_saved_and_written_as_told_are_read(ask, make_dataset, tmp_path):
    data, words = make_dataset(sets=1), ["--recipe", "film-storyboard", "--resolutions", "64"]
    with tarfile.open("d.tar", "w") as packed:
        packed.add(data, "unpacked")
    command = re.search("Unpack it with `(.*?)`", ask("check", "d.tar", *words)[1])[1]
    subprocess.run(command.split(), check=True)
    assert ask("check", "unpacked", *words)[0] == 0
    caption = Path("unpacked/0001/caption.txt")
    text = caption.read_text()
    caption.write_bytes(text.replace("day", "déjeuner").encode("cp1252"))
    coding = re.search(r"Save it again as (\S+)\.", ask("check", "unpacked", *words)[1])[1]
    caption.write_text(text, encoding=coding)
    assert ask("check", "unpacked", *words)[0] == 0
    caption.unlink()
    name = re.search(r"Write (\S+caption.txt)\.", ask("check", "unpacked", *words)[1])[1]
    Path("unpacked", name).write_text(text)
    assert ask("check", "unpacked", *words)[0] == 0


def test_what_is_typed_again_as_told_leads_on(ask, make_dataset):
    from PIL import Image

    data, out = make_dataset(sets=1), ["--out", "o"]
    making = ["generate", *STORY, "--prompt", "x", "--out", "/dev/null/x", "--adapter"]
    meant = re.search("with a strength, write (.*)", ask(*making, "a.safetensors:0.7")[1])[1]
    assert "/dev/null is not a folder" in ask(*making, meant)[1]
    meant = re.search("write (.*) for a file so named", ask("check", "~nobody-here/x")[1])[1]
    assert f"no folder or zip archive {Path(meant)}" in ask("check", f"{meant}/x")[1]
    assert "Choose another --out, a new folder" in ask("compose", data, "--out", data)[1]
    for number in (1, 2, 3):
        Image.new("RGBA", (64, 64), (255, 255, 255, 8)).save(data / "0001" / f"{number}.png")
    _, err = ask("check", data, "--resolutions", "64", *STORY)
    assert re.search("compose the sets with another `background`, such as auto", err)
    assert ask("compose", data, *STORY, *out, "--background", "auto")[0] == 0


def test_settings_that_a_request_decides_can_be_left_out(ask):
    _, err = ask("generate", "r.json", "--seed", "3", "--steps", "9")
    assert "Repeat it without" in err
    assert "r.json cannot be read" in ask("generate", "r.json")[1]


def test_the_cache_goes_where_it_is_told(ask, monkeypatch, tmp_path):
    from iclora.errors import StorageError
    from iclora.files import make_cache

    monkeypatch.setenv("ICLORA_CACHE", "/dev/null/x")
    with pytest.raises(StorageError) as refused:
        make_cache()
    monkeypatch.setenv(re.search(r"variable (\w+)", refused.value.advice)[1], str(tmp_path / "c"))
    assert make_cache() == tmp_path / "c"


# -- all of them ----------------------------------------------------------------------------------


def texts() -> list[tuple[str, str]]:
    """Every text of the sources but docstrings, joined where it is written in pieces."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if node in docstrings:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((path.name, node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values]
                found.append((path.name, "".join(parts)))
    return found


def test_verbs_that_texts_name_are_there_with_their_options():
    for file, text in texts():
        for verb, rest in re.findall(r"`iclora ([a-z]+)([^`]*)`", text):
            assert verb in VERBS, (file, text)
            fields = VERBS.load(verb).settings.model_fields
            for option in re.findall(r"--([a-z-]+)", rest):
                assert option == "help" or option.replace("-", "_") in fields, (file, text)


def test_settings_that_texts_tell_to_set_are_there():
    kinds = [m for m in vars(models).values() if isinstance(m, type) and issubclass(m, Settings)]
    fields = {name for kind in kinds for name in kind.model_fields}
    for file, text in texts():
        for name in re.findall(r"\b(?:Set|Use|Leave|choose|Choose|smaller|set) `([a-z_]+)`", text):
            assert name in fields, (file, text)
