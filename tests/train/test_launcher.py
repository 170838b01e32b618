"""Settings of `accelerate launch` that do not count are said; held against what it really sets."""

from __future__ import annotations

import os

import pytest

from iclora.settings import TrainSettings
from iclora.train.launcher import unheeded

PLAIN = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


@pytest.fixture(scope="module")
def launched():
    """The variables that accelerate's own code sets for some options."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import launch

    def variables(*words, deepspeed=False):
        arguments = launch_command_parser().parse_args([*PLAIN, *words, "script.py"])
        arguments.main_process_port = 0
        arguments.deepspeed_fields_from_accelerate_config = ""
        if deepspeed:
            return launch.prepare_deepspeed_cmd_env(arguments)[1]
        return launch.prepare_multi_gpu_env(arguments)

    return variables


def test_a_plain_launch_has_nothing_that_does_not_count(launched):
    assert unheeded(launched(), "cuda") == []
    assert unheeded({}, "cuda") == []
    # torchrun's.
    assert unheeded({"WORLD_SIZE": "2", "RANK": "0", "OMP_NUM_THREADS": "1"}, "cuda") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mixed_precision=bf16"], ["mixed precision bf16 (`dtype` and `precision` do)"]),
        (["--dynamo_backend=inductor"], ["dynamo inductor (`compile` does)"]),
        (["--use_fsdp"], ["FSDP (`shard` spreads a base)"]),
        (["--use_fsdp", "--fsdp_version=2"], ["FSDP (`shard` spreads a base)"]),
        (["--use_megatron_lm"], ["Megatron-LM (`shard` spreads a base)"]),
        (
            ["--use_parallelism_config", "--parallelism_config_tp_size=2"],
            ["parallelism tp 2 (the processes share steps)"],
        ),
        (
            ["--mixed_precision=fp16", "--dynamo_backend=eager"],
            ["mixed precision fp16 (`dtype` and `precision` do)", "dynamo eager (`compile` does)"],
        ),
    ],
)
def test_what_accelerate_is_told_and_iclora_does_not_follow_is_said(launched, words, said):
    assert unheeded(launched(*words), "cuda") == said


def test_deepspeeds_own_settings_are_said_one_by_one(launched):
    words = ["--use_deepspeed", "--gradient_accumulation_steps=4", "--gradient_clipping=0.5"]
    assert unheeded(launched(*words, deepspeed=True), "cuda") == [
        "DeepSpeed (`shard` spreads a base)",
        "gradient accumulation 4 (`batch` does)",
        "gradient clipping 0.5 (`grad_clip` does)",
    ]
    once = launched("--use_deepspeed", "--gradient_accumulation_steps=1", deepspeed=True)
    assert unheeded(once, "cuda") == ["DeepSpeed (`shard` spreads a base)"]


def test_a_launch_for_the_cpu_counts_only_if_the_run_computes_there():
    assert unheeded({"ACCELERATE_USE_CPU": "True"}, "cpu") == []
    assert len(unheeded({"ACCELERATE_USE_CPU": "True"}, "cuda")) == 1


def test_a_run_says_at_its_start_what_does_not_count(clean, make_dataset, tmp_path, monkeypatch):
    from iclora.train.run import train

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = TrainSettings(
        base="tiny",
        data=str(make_dataset()),
        out=str(tmp_path / "run"),
        steps=1,
        rank=2,
        resolutions=(64,),
        preview_every=0,
    )
    said = []
    train(config, clean, warn=said.append)
    (found,) = [text for text in said if "accelerate" in text]
    assert "mixed precision bf16" in found


def test_processes_are_joined_by_torch_although_accelerate_is_set_up_for_deepspeed(monkeypatch):
    import torch

    from iclora.train import workers

    seen = []

    class Joined:
        process_index, num_processes = 0, 2

        def __init__(self, **_):
            seen.append(os.environ.get("ACCELERATE_USE_DEEPSPEED"))

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(workers, "PartialState", Joined)
    assert workers.Workers(torch.device("cuda")).count == 2
    assert seen == [None]
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
