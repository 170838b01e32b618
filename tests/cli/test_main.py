"""The command line as its users type it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from iclora import __version__
from iclora.cli.main import VERBS, main
from iclora.errors import RecipeError, SettingsError
from iclora.progress import Cancelled
from iclora.settings import GenerateSettings, RunSettings, Verb
from iclora.settings.registry import Registry
from tests.conftest import CAPTION, picture

SMALL = ["--size", "96x192", "--steps", "2"]
TRAIN = ["--steps", "2", "--batch", "2", "--rank", "2", "--resolutions", "64"]
TRAIN += ["--preview-every", "0"]


def test_the_readmes_walk_works_as_written(clean, make_dataset, tmp_path, capsys, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_dataset(name="sets")
    assert run("recipes")[0] == 0
    status, out, _ = run("compose", "sets", "--recipe", "film-storyboard", "--out", "DATA")
    assert status == 0
    assert "3 sets of film-storyboard" in out
    status, out, _ = run("check", "DATA", "--base", "tiny")
    assert status == 0
    assert "0 errors" in out
    status, out, _ = run("train", "--base", "tiny", "--data", "DATA", "--out", "RUN", *TRAIN)
    assert status == 0
    assert "RUN/adapter.safetensors" in out
    adapter = ["--base", "tiny", "--adapter", "RUN/adapter.safetensors"]
    status, _, _ = run("generate", *adapter, "--prompt", "...", "--seed", 7, "--out", "OUT", *SMALL)
    assert status == 0
    picture(96, 64).save("shot.png")
    known = ["--known", "1=shot.png"]
    status, _, _ = run("complete", *adapter, *known, "--prompt", CAPTION, "--out", "OUT", *SMALL)
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
    status, out, _ = run("info", "RUN/adapter.safetensors")
    assert status == 0
    assert "film-storyboard" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compose", "nowhere", "--out", "x"], "no folder or zip archive nowhere"),
        (["check", "nowhere"], "nowhere"),
        (["nonsense"], 'no verb "nonsense"'),
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
    clean, run, tmp_path, monkeypatch, words, says
):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*words)
    assert status == 2
    assert says in err
    assert "Traceback" not in err
    assert 2 <= len(err.splitlines()) <= 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [[], ["train", "--x"], ["compose", "--out", "y"], ["generate", "--count"]]
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


# -- errors -------------------------------------------------------------------------------------


@pytest.fixture
def raising(verb_of):
    """A verb, `fail`, that raises an error; it is told what another verb is."""

    def make(error, model=GenerateSettings):
        def fail(settings, console):
            raise error

        verb_of(fail, model)

    return make


@pytest.fixture
def verb_of(monkeypatch):
    """A verb, `fail`, that runs what it is given."""

    def make(work, model=GenerateSettings):
        verbs = Registry("iclora.none", "verb", {"fail": "tests.cli.test_main:FAIL"})
        monkeypatch.setattr(sys.modules[__name__], "FAIL", Verb(model, work))
        monkeypatch.setattr("iclora.cli.main.VERBS", verbs)

    return make


FAIL: Verb | None = None


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            SettingsError("no recipe is known", "Set `recipe`, such as film-storyboard."),
            "error: no recipe is known\nhint: Set --recipe, such as film-storyboard.\n",
        ),
        (
            RecipeError("there is no such recipe", "`iclora recipes` lists them.", "recipe"),
            "error: there is no such recipe (--recipe)\nhint: `iclora recipes` lists them.\n",
        ),
        (
            SettingsError("no recipe is known", "Set `recipe`.", "recipe"),
            "error: no recipe is known\nhint: Set --recipe.\n",
        ),
        (
            SettingsError("2 problems:\n  one\n  two", "Fix these.", "prompt"),
            "error: 2 problems:\n  one\n  two\nhint: Fix these.\n",
        ),
        (
            SettingsError("no such file", "Check it.", "request"),
            "error: no such file\nhint: Check it.\n",
        ),
        (
            SettingsError("`no_field` is kept", "As is.", "no_field"),
            "error: `no_field` is kept\nhint: As is.\n",
        ),
    ],
)
def test_an_error_names_options_in_place_of_settings_and_no_class(raising, run, error, shown):
    raising(error)
    assert run("fail") == (2, "", shown)


OUT_OF_MEMORY = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB.",
    "MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB).",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 400000000000 bytes.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
]


@pytest.mark.parametrize("said", OUT_OF_MEMORY)
def test_every_allocator_that_has_no_more_is_an_error_with_a_hint(raising, run, said):
    raising(RuntimeError(f"{said}\nmore lines"))
    status, _, err = run("fail")
    assert status == 2
    assert err.startswith(f"error: out of memory: {said}\nhint: ")
    assert "--precision" in err
    assert "more lines" not in err


def test_an_error_that_is_not_of_memory_is_raised(raising):
    raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        main(["fail"])


def test_who_trains_out_of_memory_is_told_of_vram(raising, run):
    raising(MemoryError(), RunSettings)
    status, _, err = run("fail", "--base", "b", "--data", "d", "--out", "o")
    assert status == 2
    assert "error: out of memory\nhint: Set --vram to auto" in err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled("sampling")])
def test_what_is_stopped_ends_with_status_130(raising, run, error):
    raising(error)
    status, _, err = run("fail")
    assert (status, err.strip()) == (130, "stopped")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_who_is_told_to_end_tidies_up_first(verb_of, run, name):
    number, tidied = getattr(signal, name), []

    def work(*_):
        try:
            signal.raise_signal(number)
        finally:
            tidied.append(name)

    verb_of(work)
    # These tests may themselves be run by `nohup`.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        status, _, err = run("fail")
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert (status, err.strip(), tidied) == (143, "stopped", [name])


def test_a_terminal_that_goes_away_does_not_end_what_nohup_started(verb_of, run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    verb_of(lambda *_: signal.raise_signal(signal.SIGHUP))
    try:
        assert run("fail")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("words", [["recipes"], ["--help"], ["train", "--help"]])
def test_a_reader_that_leaves_ends_the_program_quietly(words):
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    code = [sys.executable, "-m", "iclora", *words]
    done = subprocess.run(code, stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_mistyped_option_is_answered_with_the_nearest(capsys):
    for words, says in (
        (["train", "--stepz", "3"], "did you mean --steps?"),
        (["generate", "--seed"], "expected one argument"),
        ([], "VERB"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert says in err
        assert "\nhint: `iclora" in err


def test_verbs_come_in_their_order_and_those_of_other_packages_last():
    assert list(VERBS)[:3] == ["recipes", "compose", "caption"]
    assert list(VERBS)[-1] == "demo"
