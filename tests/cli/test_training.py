"""Verbs over training runs."""

from __future__ import annotations

import itertools
import os
import re
import signal

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from iclora.cli.main import main
from iclora.jobs.training import recomputes_unasked
from iclora.sets.images import open_image
from iclora.sets.recipe import load_recipe
from iclora.settings import TrainSettings, read_settings
from tests import processes
from tests.conftest import CAPTION

AI_TOOLKIT = f"""
job: extension
config:
  name: mine
  process:
    - type: sd_trainer
      training_folder: output
      network: {{type: lora, linear: 2}}
      datasets: [{{folder_path: there/sets, resolution: 64}}]
      train: {{steps: 2, lr: 1e-4, dtype: fp32, noise_scheduler: flowmatch}}
      model: {{name_or_path: tiny, is_flux: true}}
      sample: {{prompts: ["{CAPTION}"], seed: 42}}
"""
TRAIN = ["--steps", "2", "--batch", "2", "--rank", "2", "--resolutions", "64"]
TRAIN += ["--preview-every", "0"]


def test_a_run_interrupted_says_how_to_go_on(clean, make_dataset, tmp_path, run, monkeypatch):
    import iclora.train.loop as room

    real = room.apply_step

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    words = ["--base", "tiny", "--data", make_dataset(), "--out", tmp_path / "run", *TRAIN]
    with monkeypatch.context() as patch:
        patch.setattr(room, "apply_step", interrupted)
        status, out, _ = run("train", *words)
    assert status == 130
    resume = re.search(r"go on with: iclora (train --resume \S+)", out)
    assert run(*resume[1].split())[0] == 0
    assert (tmp_path / "run" / "adapter.safetensors").exists()


def killed_in_its_fourth_step(words):
    """Type a command; this process ends by SIGKILL between a step's gradients and its weights."""
    import iclora.train.loop as room

    steps, real = itertools.count(1), room.apply_step

    def step(*args):
        if next(steps) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    room.apply_step = step
    return main(words)


def test_a_run_killed_by_sigkill_goes_on_to_the_same_bytes(
    brief_folder, make_dataset, tmp_path, run
):
    longer = ["--steps", "5", "--save-every", "2", *TRAIN[2:]]
    data = ["--base", str(brief_folder), "--data", str(make_dataset()), *longer]
    assert run("train", *data, "--out", tmp_path / "whole")[0] == 0
    words = ["train", *data, "--out", str(tmp_path / "parts")]
    process = processes.start(killed_in_its_fourth_step, tmp_path, tmp_path / "said", {}, words)
    process.join(200)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "said").read_text()
    # A step beyond the last checkpoint was lost.
    assert (tmp_path / "parts" / "log.jsonl").read_text().count("\n") == 3
    assert not (tmp_path / "parts" / "adapter.safetensors").exists()
    assert run("train", "--resume", tmp_path / "parts")[0] == 0
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


def test_a_run_file_trains(clean, make_dataset, tmp_path, run):
    path = tmp_path / "run.toml"
    path.write_text(
        f'[train]\nbase = "tiny"\ndata = "{make_dataset()}"\nout = "{tmp_path / "run"}"\n'
        "steps = 1\nbatch = 1\nresolutions = [64]\npreview_resolution = 64\n"
    )
    status, out, _ = run("train", path)
    assert status == 0
    assert (tmp_path / "run" / "previews" / "step-000001.png").exists()
    assert "previews" in out
    (shown,) = ModelCard.load(tmp_path / "run" / "README.md").data.widget
    assert open_image(tmp_path / "run" / shown["output"]["url"]).width in range(32, 64)
    assert shown["text"] == load_recipe("film-storyboard").example
    assert "steps = 1" in run("info", tmp_path / "run")[1]


@pytest.mark.parametrize("format", ["diffusers", "comfyui", "kohya", "peft"])
def test_an_exported_adapter_makes_the_same_set_and_knows_its_recipe(
    clean, lora, tmp_path, run, format
):
    out = tmp_path / format
    words = ["--format", format, "--save-dtype", "fp32"]
    odd, right = (out, out / "x.safetensors") if format != "peft" else (out / "x.safetensors", out)
    status, _, err = run("export", lora, *words, "--out", odd)
    assert (status, "Name it" in err) == (2, True)
    assert run("export", lora, *words, "--out", right)[0] == 0
    more = ["--prompt", CAPTION, "--seed", 7, "--steps", 2]
    for adapter, folder in ((lora, "one"), (out, "two")):
        words = ["--adapter", adapter, *more, "--out", tmp_path / folder]
        assert run("generate", *words)[0] == 0
    # Their texts name different adapters.
    one, two = (open_image(tmp_path / n / "0001" / "composite.png") for n in ("one", "two"))
    assert one.tobytes() == two.tobytes()
    said = run("info", out)[1]
    assert "film-storyboard" in said
    assert ("lora_unet_" in said) == (format == "kohya")
    status, _, err = run("export", lora, "--format", format, "--out", out)
    assert status == 2
    assert "there already" in err


def test_an_export_that_cannot_be_made_says_why(clean, lora, tmp_path, run):
    status, _, err = run("export", lora, "--format", "onnx", "--out", tmp_path / "x")
    assert status == 2
    assert 'no adapter format "onnx"' in err
    assert not (tmp_path / "x").exists()


def test_what_is_ignored_of_a_foreign_adapter_is_said_by_every_verb(clean, lora, tmp_path, run):
    raw = load_file(lora) | {"text_encoder.x.lora_A.weight": torch.ones(2, 3)}
    path = tmp_path / "style.safetensors"
    save_file(raw, path)
    more = ["--base", "tiny", "--recipe", "film-storyboard", "--size", "96x192", "--steps", 1]
    for words in (
        ("info", path),
        ("generate", "--adapter", path, "--prompt", CAPTION, *more, "--out", tmp_path / "a"),
        ("reroll", tmp_path / "a" / "0001", "--panel", 1, "--seed", 2, "--out", tmp_path / "c"),
        ("evaluate", "--adapter", path, "--prompt", CAPTION, *more, "--out", tmp_path / "d"),
        (
            "export",
            path,
            "--format",
            "kohya",
            "--base",
            "tiny",
            "--out",
            tmp_path / "b.safetensors",
        ),
    ):
        status, _, err = run(*words)
        assert status == 0
        assert "text encoders" in err


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT"),
        ({"LOCAL_RANK": "0"}, "Unset LOCAL_RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is no number"),
        ({"RANK": "\u00b2"}, "RANK is no number"),
        (
            {"WORLD_SIZE": "2", "RANK": "7", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            "RANK counts from 0 and is none of them",
        ),
    ],
)
def test_variables_that_a_launcher_left_behind_are_named(run, monkeypatch, env, says):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    status, _, err = run("train", "--base", "tiny", "--data", "d", "--out", "o")
    assert status == 2
    assert says in err


def test_a_configuration_of_ai_toolkit_becomes_a_run_file_that_trains(
    clean, make_dataset, tmp_path, run, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = make_dataset()
    (tmp_path / "mine.yml").write_text(AI_TOOLKIT)
    status, out, err = run("import", "mine.yml", "--data", data)
    assert status == 0
    assert "network.linear = 2  ->  rank = 2" in out
    assert "sample.seed = 42: the run's --seed decides" in out
    assert "lr = 0.0001" in (tmp_path / "mine.toml").read_text()
    assert run("train", "mine.toml", "--preview-every", "0")[0] == 0
    assert (tmp_path / "output" / "mine" / "adapter.safetensors").exists()
    status, _, err = run("import", "mine.yml")
    assert status == 2
    assert "mine.toml is there already" in err


def test_an_import_of_sets_that_are_not_here_says_where_to_put_them(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text(AI_TOOLKIT)
    status, _, err = run("import", "mine.yml", "--write", "new.toml")
    assert status == 0
    assert "there is no there/sets here: set --data" in err
    assert "film-storyboard" in err
