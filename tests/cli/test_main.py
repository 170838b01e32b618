"""The command line as its users type it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
from PIL import Image

from iclora import __version__
from iclora.cli.main import main
from iclora.cli.training import recomputes_unasked
from iclora.settings import TrainSettings, read_settings
from tests.conftest import CAPTION, picture

SMALL = ["--size", "96x192", "--steps", "2"]
TRAIN = [
    "--steps",
    "2",
    "--batch",
    "2",
    "--rank",
    "2",
    "--resolutions",
    "64",
    "--preview-every",
    "0",
]


def run(capsys, *words):
    status = main([str(w) for w in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def adapter(clean, make_dataset, tmp_path, capsys):
    data = make_dataset()
    out = tmp_path / "run"
    assert run(capsys, "train", "--base", "tiny", "--data", data, "--out", out, *TRAIN)[0] == 0
    return out / "adapter.safetensors"


def test_the_readmes_walk_works_as_written(clean, make_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_dataset(name="sets")
    assert run(capsys, "recipes")[0] == 0
    status, out, _ = run(capsys, "compose", "sets", "--recipe", "film-storyboard", "--out", "DATA")
    assert status == 0
    assert "3 sets of film-storyboard" in out
    status, out, _ = run(capsys, "check", "DATA", "--base", "tiny")
    assert status == 0
    assert "0 errors" in out
    status, out, _ = run(
        capsys, "train", "--base", "tiny", "--data", "DATA", "--out", "RUN", *TRAIN
    )
    assert status == 0
    assert "RUN/adapter.safetensors" in out
    adapter = ["--base", "tiny", "--adapter", "RUN/adapter.safetensors"]
    status, _, _ = run(
        capsys, "generate", *adapter, "--prompt", "...", "--seed", 7, "--out", "OUT", *SMALL
    )
    assert status == 0
    picture(96, 64).save("shot.png")
    known = ["--known", "1=shot.png"]
    status, _, _ = run(
        capsys, "complete", *adapter, *known, "--prompt", CAPTION, "--out", "OUT", *SMALL
    )
    assert status == 0
    for folder in ("0001", "0002"):
        assert sorted(p.name for p in (tmp_path / "OUT" / folder).iterdir()) == [
            "composite.png",
            "latents.safetensors",
            "panel-1.png",
            "panel-2.png",
            "panel-3.png",
            "request.json",
        ]
    shot = Image.open("OUT/0002/panel-1.png")
    assert shot.tobytes() == picture(96, 64).tobytes()
    status, out, _ = run(capsys, "info", "RUN/adapter.safetensors")
    assert status == 0
    assert "film-storyboard" in out


@pytest.mark.parametrize("verb", ["generate", "complete"])
def test_a_request_repeated_gives_the_same_bytes(adapter, tmp_path, capsys, verb):
    picture(96, 64).save(tmp_path / "shot.png")
    known = ["--known", f"1={tmp_path / 'shot.png'}"] if verb == "complete" else []
    words = [verb, "--adapter", adapter, "--prompt", CAPTION, "--seed", 3, *SMALL, *known]
    assert run(capsys, *words, "--out", tmp_path / "a")[0] == 0
    one, two = tmp_path / "a" / "0001", tmp_path / "b" / "0001"
    assert run(capsys, verb, one / "request.json", "--out", tmp_path / "b")[0] == 0
    assert all((two / p.name).read_bytes() == p.read_bytes() for p in one.iterdir())


def test_a_request_with_another_adapter_in_its_place_is_refused(adapter, tmp_path, capsys):
    words = ["generate", "--adapter", adapter, "--prompt", CAPTION, *SMALL]
    assert run(capsys, *words, "--out", tmp_path / "a")[0] == 0
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x01")
    status, _, err = run(capsys, "generate", tmp_path / "a" / "0001" / "request.json")
    assert status == 2
    assert "not the adapter this request was made with" in err


def test_count_and_prompt_files_make_several_sets_with_different_noise(clean, tmp_path, capsys):
    (tmp_path / "p.txt").write_text(f"{CAPTION}\n\n{CAPTION.replace('Ana', 'Eva')}\n")
    words = ["generate", "--base", "tiny", "--recipe", "film-storyboard", *SMALL]
    status, _, _ = run(
        capsys, *words, "--prompts", tmp_path / "p.txt", "--count", 2, "--out", tmp_path / "o"
    )
    assert status == 0
    requests = [
        json.loads((tmp_path / "o" / f"000{i}" / "request.json").read_text()) for i in (1, 2, 3, 4)
    ]
    assert len({tuple(r["seeds"]) for r in requests}) == 2
    assert ["Eva" in r["prompt"] for r in requests] == [False, False, True, True]


def test_one_panel_is_re_rolled_by_its_own_seed(clean, tmp_path, capsys):
    words = [
        "generate",
        "--base",
        "tiny",
        "--recipe",
        "film-storyboard",
        *SMALL,
        "--prompt",
        CAPTION,
    ]
    run(capsys, *words, "--out", tmp_path)
    run(capsys, *words, "--panel-seed", "2=5", "--out", tmp_path)
    one, two = (
        json.loads((tmp_path / f"000{i}" / "request.json").read_text())["seeds"] for i in (1, 2)
    )
    assert (one[0], one[2], two[1]) == (two[0], two[2], 5)


def test_check_estimates_tokens_and_keeps_brackets_in_names(make_dataset, capsys):
    root = make_dataset(sets=1)
    (root / "0001").rename(root / "0001[v2]")
    status, out, _ = run(capsys, "check", root)
    assert status == 0
    assert "0001[v2]" in out
    estimate = int(re.search(r"~(\d+)", out)[1])
    assert 20 < estimate < 60
    (root / "0001[v2]" / "caption.txt").write_text(CAPTION + " extraordinarily" * 200)
    status, _, err = run(capsys, "check", root)
    assert status == 0
    assert "may be too long" in err


def test_out_that_is_a_file_is_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "out").write_text("x")
    words = ["generate", "--base", "nowhere", "--prompt", "x", "--out", tmp_path / "out"]
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "is a file" in err


def test_check_fails_on_errors_and_names_them(make_dataset, capsys):
    root = make_dataset()
    (root / "0002" / "2.png").unlink()
    status, out, err = run(capsys, "check", root)
    assert status == 2
    assert "1 errors" in out
    assert re.search(r"error: 0002: .*has 2 images", err)


def test_a_run_interrupted_says_how_to_go_on(clean, make_dataset, tmp_path, capsys, monkeypatch):
    import iclora.train.run as room

    real = room.apply_step

    def interrupted(*args):
        import signal

        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(room, "apply_step", interrupted)
    words = ["--base", "tiny", "--data", make_dataset(), "--out", tmp_path / "run", *TRAIN]
    status, out, _ = run(capsys, "train", *words)
    assert status == 130
    resume = re.search(r"go on with: iclora (train --resume \S+)", out)
    monkeypatch.undo()
    assert run(capsys, *resume[1].split())[0] == 0
    assert (tmp_path / "run" / "adapter.safetensors").exists()


def test_a_run_killed_by_sigkill_goes_on_to_the_same_bytes(clean, make_dataset, tmp_path, capsys):
    more = ["--steps", "12", "--save-every", "3"]
    data = ["--base", "tiny", "--data", str(make_dataset()), *TRAIN, *more]
    assert run(capsys, "train", *data, "--out", tmp_path / "whole")[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "iclora", "train", *data, "--out", str(tmp_path / "parts")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process: the sums' order
    )
    log = tmp_path / "parts" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 4):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "parts" / "adapter.safetensors").exists()
    assert run(capsys, "train", "--resume", tmp_path / "parts")[0] == 0
    one, two = ((tmp_path / n / "adapter.safetensors").read_bytes() for n in ("whole", "parts"))
    assert one == two


def test_who_trains_on_a_gpu_is_told_of_the_faster_way_unless_it_was_chosen():
    own = {"base": "tiny", "data": "DATA", "out": "RUN"}
    assert recomputes_unasked(read_settings(TrainSettings, None, own), "cuda")
    assert not recomputes_unasked(read_settings(TrainSettings, None, own), "cpu")
    for chosen in ({"recompute": 57}, {"gradient_checkpointing": True}):
        assert not recomputes_unasked(read_settings(TrainSettings, None, {**own, **chosen}), "cuda")
    planned = read_settings(TrainSettings, None, own).model_copy(update={"recompute": 3})
    assert not recomputes_unasked(planned, "cuda")


def test_a_run_file_trains(clean, make_dataset, tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text(
        f'[train]\nbase = "tiny"\ndata = "{make_dataset()}"\nout = "{tmp_path / "run"}"\n'
        "steps = 1\nbatch = 1\nresolutions = [64]\npreview_resolution = 64\n"
    )
    status, out, _ = run(capsys, "train", path)
    assert status == 0
    assert (tmp_path / "run" / "previews" / "step-000001.png").exists()
    assert "previews" in out
    assert "steps = 1" in run(capsys, "info", tmp_path / "run")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compose", "nowhere", "--out", "x"], "no folder or zip archive nowhere"),
        (["check", "nowhere"], "nowhere"),
        (["recipes", "nothing"], 'no recipe "nothing"'),
        (["train", "--steps", "3"], "--base and --data and --out must be given"),
        (["train", "--resume", "nowhere"], "holds no run"),
        (["generate", "--prompt", "x"], "no base is given"),
        (["generate", "--base", "tiny"], "there is no prompt"),
        (["generate", "--base", "tiny", "--prompt", "x"], "no recipe is known"),
        (
            ["generate", "--base", "./none", "--recipe", "ppt-template", "--prompt", "x"],
            'no folder "./none"',
        ),
        (["generate", "--base", "tiny", "--prompt", "x", "--device", "toaster"], "--device: "),
        (["generate", "--base", "tiny", "--prompts", "none.txt"], "none.txt"),
        (["generate", "--adapter", "none.safetensors", "--prompt", "x"], "none.safetensors"),
        (["generate", "none.json"], "none.json"),
        (["generate", "--size", "12"], '--size: "12" is not WIDTHxHEIGHT'),
        (["generate", "--count", "0"], "--count: "),
        (["compose", "x"], "--out must be given"),
        (["compose", "x", "--out", "y", "--resolution", "0"], "--resolution: "),
        (["check", "x", "--resolutions", "-5"], "--resolutions: "),
        (["complete", "--base", "tiny", "--prompt", "x"], "no panel is given"),
        (
            [
                "generate",
                "--base",
                "tiny",
                "--recipe",
                "film-storyboard",
                "--prompt",
                "x",
                "--steps",
                "0",
            ],
            "steps",
        ),
        (["generate", "r.json", "--seed", "3", "--steps", "9"], "--seed, --steps"),
        (["train", "run.toml", "--resume", "nowhere"], "Leave the run file out"),
        (["complete", "--known", "1", "--prompt", "x"], "not of the form"),
        (["complete", "--known", "1=none.png", "--prompt", "x"], "none.png"),
        (["info", "none.safetensors"], "none.safetensors"),
    ],
)
def test_a_users_mistake_is_one_message_status_2_and_no_traceback(
    clean, capsys, tmp_path, monkeypatch, words, says
):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *words)
    assert status == 2
    assert says in err
    assert "Traceback" not in err
    assert 2 <= len(err.splitlines()) <= 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["nonsense"], [], ["train", "--x"], ["compose", "--out", "y"], ["generate", "--count"]],
)
def test_words_the_parser_does_not_know_end_with_status_2(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "verb", ["", "recipes", "compose", "check", "plan", "train", "generate", "complete", "info"]
)
def test_every_verb_explains_itself(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"] if verb else ["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "usage: iclora" in out
    if verb == "train":
        from iclora.settings import TrainSettings

        assert all(f"--{n.replace('_', '-')}" in out for n in TrainSettings.model_fields)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["plan", "--help"], 0),
        (["train", "--help"], 0),
        (["recipes"], 0),
        (["check", "nowhere"], 2),
    ],
)
def test_light_verbs_load_no_heavy_library(words, status):
    """Or `--help` would take seconds."""
    code = (
        "import sys; from iclora.cli.main import main\n"
        "try: s = main(sys.argv[1:])\n"
        "except SystemExit as e: s = e.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', heavy); sys.exit(s)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert "HEAVY set()" in done.stdout
    assert done.returncode == status


def test_the_module_and_the_script_are_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "iclora", "--version"], capture_output=True, text=True
    )
    assert done.stdout.strip() == f"iclora {__version__}"


# -- captions -----------------------------------------------------------------------------------


@pytest.fixture
def writer():
    """A server that captions every storyboard alike, and hopelessly where it sees "nonsense"."""
    from tests.vlm.test_openai import Server, completion

    answer = {
        "overview": "A day by the sea.",
        "panels": ["<Ana> rows out.", "A gull lands.", "Night falls over the bay."],
    }
    server = Server(lambda body: (200, completion(json.dumps(answer))))
    yield server
    server.shutdown()
    server.server_close()


def test_caption_says_what_is_sent_where_and_never_the_key(
    make_dataset, writer, monkeypatch, capsys
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    root = make_dataset(2)
    (root / "0002" / "caption.txt").unlink()
    words = ["caption", str(root), "--captioner", "openai:m", "--api", writer.url]
    assert main(words) == 0
    told = "".join(capsys.readouterr())
    assert f"sent to {writer.url} (model m)" in told
    assert "no side above 768 px" in told
    assert "1 captions written, 1 sets had one already, 0 failed" in told
    assert "sk-secret" not in told
    assert not [f for f in root.rglob("*") if f.is_file() and b"sk-secret" in f.read_bytes()]


def test_caption_ends_with_a_status_and_a_list_where_sets_failed(make_dataset, writer, capsys):
    from tests.vlm.test_openai import completion

    writer.behave = lambda body: (200, completion("nonsense"))
    root = make_dataset(1)
    (root / "0001" / "caption.txt").unlink()
    words = ["caption", str(root), "--captioner", "openai:m", "--api", writer.url]
    assert main(words) == 1
    assert "caption-failures.json" in capsys.readouterr().out


def test_review_writes_a_page_beside_the_dataset(make_dataset, capsys):
    root = make_dataset(2)
    assert main(["review", str(root)]) == 0
    page = root.with_name(f"{root.name}-review.html")
    assert str(page) in capsys.readouterr().out
    assert page.read_text().count("<section") == 2


def test_an_idea_is_turned_into_a_prompt_and_into_a_set(writer, tmp_path, capsys):
    how = ["--captioner", "openai:m", "--api", writer.url]
    assert main(["prompt", "a day at sea", "--recipe", "film-storyboard", *how]) == 0
    prompt = capsys.readouterr().out.strip()
    assert prompt.startswith("[MOVIE-SHOTS] A day by the sea. [SCENE-1] <Ana> rows out.")
    words = ["generate", "--base", "tiny", "--recipe", "film-storyboard", "--size", "32x96"]
    words += ["--idea", "a day at sea", "--steps", "1", "--out", str(tmp_path), *how]
    assert main(words) == 0
    request = json.loads((tmp_path / "0001" / "request.json").read_text())
    assert request["prompt"] == prompt


def test_an_idea_without_a_captioner_or_recipe_is_an_error_before_anything_is_asked(writer, capsys):
    words = ["generate", "--base", "tiny", "--idea", "a day at sea"]
    assert main(words) == 2
    assert "--captioner" in capsys.readouterr().err
    assert main([*words, "--captioner", "openai:m", "--api", writer.url]) == 2
    assert "--recipe" in capsys.readouterr().err
    assert not writer.bodies


def test_evaluate_measures_adapters_beside_the_base_and_goes_on_where_it_was(
    lora, tmp_path, capsys
):
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
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "4 sets by each of: base; run" in out
    assert re.search(r"pixels seam\n  base  \S+ \(\S+ to \S+\)\n  run ", out)
    assert (tmp_path / "out" / "report.html").is_file()
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    assert figures["seconds"]["arms"]["run"]["count"] == 4
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "making" not in out
    status, _, err = run(capsys, *words, "--guidance", 1)
    assert status == 2
    assert "another evaluation" in err


def test_evaluate_completes_a_dataset_in_several_modes(clean, make_dataset, tmp_path, capsys):
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
    status, out, _ = run(capsys, *words, *known)
    assert status == 0
    assert "2 sets by each of: base, sdedit; base, boost" in out
    assert "pixels known error\n  base, sdedit  0.000" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "there is no prompt"),
        (["--prompt", CAPTION, "--data", "x"], "brings its own prompts"),
        (["--prompt", CAPTION], "no recipe is known"),
        (["--data", "x", "--known", "1=a.png"], "Name the panel alone"),
        (["--prompt", CAPTION, "--recipe", "film-storyboard", "--mode", "clean"], "no panel is"),
        (["--prompt", CAPTION, "--recipe", "film-storyboard", "--metric", "what"], "no metric"),
        (["--prompt", CAPTION, "--recipe", "couple-profile", "--metric", "toyland"], "toyland has"),
    ],
)
def test_evaluate_says_what_is_wrong_before_it_makes_anything(clean, words, says, tmp_path, capsys):
    status, _, err = run(capsys, "evaluate", "--base", "tiny", *words, "--out", tmp_path / "out")
    assert status == 2
    assert says in err
    assert not (tmp_path / "out").exists()


def test_the_best_of_several_sets_is_kept_and_its_request_makes_it_again(clean, tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        "generate",
        "--base",
        "tiny",
        "--recipe",
        "film-storyboard",
        "--prompt",
        CAPTION,
        "--count",
        2,
        *SMALL,
        "--out",
        out,
    ]
    status, said, _ = run(capsys, *words, "--best-of", 3, "--score", "toyland")
    assert status == 0
    assert said.count("toyland same all of 3 sets: ") == 2
    assert sorted(path.name for path in out.iterdir()) == ["0001", "0002"]
    seeds = [json.loads((out / n / "request.json").read_text())["seeds"] for n in ("0001", "0002")]
    assert seeds[0] != seeds[1]
    assert run(capsys, "generate", out / "0001" / "request.json", "--out", out)[0] == 0
    assert (out / "0003" / "composite.png").read_bytes() == (
        out / "0001" / "composite.png"
    ).read_bytes()
    status, _, err = run(capsys, *words, "--best-of", 3)
    assert status == 2
    assert "give it together with --score" in err
