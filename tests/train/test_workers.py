"""Several processes on one run: the same gradient, one writer, any number on resuming."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.tensor import DTensor

from iclora.cli.main import main
from iclora.errors import RunError
from iclora.models import load_model
from iclora.progress import Progress
from iclora.sets.check import accept, check_dataset
from iclora.sets.dataset import open_dataset
from iclora.train.cache import encode
from iclora.train.run import resume_settings, train
from iclora.train.workers import PATIENCE, Workers
from tests import processes
from tests.conftest import resting, write_dataset

# On any free port. `--multi_gpu` is its word for several processes; `--device cpu` is ours.
ACCELERATE = (
    "--multi_gpu",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
    "--main_process_port=0",
)

# What the launcher starts: it hands on what it was given, and stays until that has been used.
STARTED = """
import json, os, sys, time
name = os.environ["RANK"]
with open(name + ".new", "w") as file:
    json.dump([dict(os.environ), sys.argv[1:]], file)
os.rename(name + ".new", name + ".started")
while not os.path.exists("ended"):
    time.sleep(0.02)
"""


@pytest.fixture(scope="session")
def tiny(brief_folder):
    return resting(str(brief_folder))


@pytest.fixture
def config(config, brief_folder):
    return partial(config, base=str(brief_folder))


def work_together(base, data):
    """Encode, sum gradients and spread a base, as one of some processes; write what was found."""
    workers = Workers(torch.device("cpu"))
    found = {}
    model = load_model(base, device="cpu")

    # Each encodes its share.
    ran = {"text": 0, "image": 0}

    def counted(kind, real, value):
        ran[kind] += 1
        return real(value)

    for kind in ran:
        name = f"encode_{kind}"
        setattr(model, name, partial(counted, kind, getattr(model, name)))
    dataset = open_dataset(data)
    sets = accept(dataset, check_dataset(dataset, resolutions=(64, 96), grid=16))
    encoded, _ = encode(model, sets, Path("cache"), workers=workers, progress=Progress())
    found["ran"] = dict(ran)
    found["sum"] = float(sum(s.latents(n).sum() for s in encoded for n in range(len(s.layouts))))

    # Gradients are summed.
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    parameters[0].grad = torch.full((2, 3), workers.rank + 1.0)
    found["numbers"] = workers.sum(parameters, 0.5, float(workers.rank))
    found["grads"] = [p.grad.tolist() for p in parameters]
    found["storages"] = len({p.grad.untyped_storage().data_ptr() for p in parameters})

    # A spread base.
    def held(model):
        local = [p.to_local() if isinstance(p, DTensor) else p for p in model.denoiser.parameters()]
        return sum(p.numel() for p in local)

    spread = load_model(base, device="cpu")
    spread.mesh = workers.mesh()
    z, text = torch.randn(1, 16, model.channels), model.encode_text("a boat")
    ask = (z, torch.tensor([0.5]), [text], (64, 64), 1.0)
    found["before"] = held(spread) / held(model)
    with torch.no_grad():
        found["same"] = torch.equal(model.velocity(*ask), spread.velocity(*ask))
    found["after"] = held(spread) / held(model)

    workers.close()
    found["left"] = not distributed.is_initialized()
    Path(f"{workers.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def together(tmp_path_factory, brief_folder):
    """What each of two processes found, that ran `work_together`."""
    folder = tmp_path_factory.mktemp("together")
    data = write_dataset(folder / "data", 3)
    start_all(work_together, folder, 2, str(brief_folder), str(data))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def start_all(run, folder, count, *args):
    """Start processes as torchrun would, each of which calls `run` in a folder."""
    port = processes.port_aside()
    environments = [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(count)
    ]
    return start_each(run, folder, environments, *args)


def start_each(run, folder, environments, *args):
    """Start a process for each environment that calls `run`; return what they said."""
    said = [folder / f"said-{rank}.txt" for rank in range(len(environments))]
    running = [
        processes.start(run, folder, words, environment, *args)
        for words, environment in zip(said, environments, strict=True)
    ]
    until = time.monotonic() + 400
    try:
        for process in running:
            process.join(until - time.monotonic())
    finally:
        for process in running:
            process.kill()
    for process, words in zip(running, said, strict=True):
        assert process.exitcode == 0, words.read_text()[-3000:]
    return [words.read_text() for words in said]


def launch(words):
    """What `accelerate launch` does."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    launch_command(launch_command_parser().parse_args(words))


def write_run(settings, folder):
    """A run file that two processes read."""
    (folder / "run.toml").write_text(settings.to_toml())
    return ["train", "run.toml", "--device", "cpu"]


def assert_alike(ours, theirs):
    ours, theirs = load_file(ours), load_file(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).norm() <= 2e-3 * value.norm() + 1e-6, name


def test_processes_that_accelerate_starts_train_what_one_would_and_one_goes_on_with_their_run(
    clean, config, tmp_path
):
    short = {"batch": 2, "lr": 0.01}
    one = train(config(**short, steps=2), clean)
    words = write_run(config("many", **short, steps=1), tmp_path)
    # A launched process would import torch for seconds; one that is forked takes its place, with
    # its words and its variables, and they meet through the launcher's own store.
    (tmp_path / "started.py").write_text(STARTED)
    said = tmp_path / "launcher.txt"
    launcher = processes.start(launch, tmp_path, said, {}, [*ACCELERATE, "-m", "started", *words])
    try:
        files = [tmp_path / f"{rank}.started" for rank in range(2)]
        while not all(file.exists() for file in files):
            assert launcher.is_alive(), said.read_text()[-2000:]
            time.sleep(0.02)
        environments, (given, others) = zip(
            *(json.loads(file.read_text()) for file in files), strict=True
        )
        assert given == others == words
        assert all(one["TORCHELASTIC_USE_AGENT_STORE"] == "True" for one in environments)
        out = "".join(start_each(main, tmp_path, environments, given))
        (tmp_path / "ended").touch()
        launcher.join(200)
    finally:
        launcher.kill()
    assert launcher.exitcode == 0, said.read_text()[-2000:]
    assert out.count("wrote ") == 1, "one process speaks"
    assert out.count("processes share the 2 sets of every step") == 1
    assert "of accelerate's settings" not in out
    # One process wrote the log.
    assert len((tmp_path / "many" / "log.jsonl").read_text().splitlines()) == 1
    settings = resume_settings(tmp_path / "many", {"steps": 2})
    assert_alike(one.adapter, train(settings, clean, resume=True).adapter)


def test_three_processes_share_a_batch_of_four_unevenly_and_train_what_one_would(
    clean, config, tmp_path
):
    short = {"batch": 4, "lr": 0.01, "steps": 2}
    one = train(config(**short), clean)
    said = start_all(main, tmp_path, 3, write_run(config("many", **short), tmp_path))
    assert "".join(said).count("wrote ") == 1, "one process speaks"
    assert_alike(one.adapter, tmp_path / "many" / "adapter.safetensors")


def test_trouble_in_one_process_ends_them_all_with_its_message(config, tmp_path):
    words = write_run(config("many", batch=4), tmp_path)
    (tmp_path / "data" / "0001" / "caption.txt").unlink()
    with pytest.raises(AssertionError, match="has no caption"):
        start_all(main, tmp_path, 2, words)
    assert not (tmp_path / "many" / "config.toml").exists()


def test_each_process_encodes_its_share_and_all_read_the_same(together):
    one, other = (found["ran"] for found in together)
    # Four texts with the empty one; three sets with two canvases each.
    assert {one["text"], other["text"]} == {2}
    assert {one["image"], other["image"]} == {2, 4}
    assert together[0]["sum"] == together[1]["sum"]


def test_processes_wait_for_each_other_longer_than_nccl_would():
    """Rank 0 draws previews alone, and shares of encoding differ: 10 minutes would not do."""
    assert PATIENCE.total_seconds() > 3600


def test_gradients_are_summed_in_one_piece_without_a_copy_of_them(together):
    for found in together:
        assert found["grads"] == [[[3.0] * 3] * 2, [0.0] * 4]
        assert found["numbers"] == [1.0, 1.0]
        assert found["storages"] == 1, "gradients are views of what was summed"


def test_a_spread_base_keeps_half_in_each_of_two_processes_and_computes_the_same(together):
    # Embedders and the last layer stay whole; they are much of a base as small as this.
    for found in together:
        assert found["same"]
        assert max(found["before"], found["after"]) < 0.65


def test_the_group_of_processes_is_left_in_the_end(together):
    assert all(found["left"] for found in together)


@pytest.mark.machine
def test_a_run_with_a_spread_base_trains_what_one_process_would(clean, config, tmp_path):
    settings = {"batch": 4, "lr": 0.01, "steps": 2, "held_out": 0.3, "gradient_checkpointing": True}
    settings["targets"] = "all"
    one = train(config(**settings), clean)
    many = config("many", **settings, preview_every=2, preview_resolution=64, shard=True)
    start_all(main, tmp_path, 2, write_run(many, tmp_path))
    assert_alike(one.adapter, tmp_path / "many" / "adapter.safetensors")
    measured = [
        [
            json.loads(line)
            for line in (tmp_path / run / "validation.jsonl").read_text().splitlines()
        ]
        for run in ("run", "many")
    ]
    assert [row["step"] for row in measured[1]] == [0, 2]
    for ours, spread in zip(*measured, strict=True):
        assert spread["held out"]["loss"] == pytest.approx(ours["held out"]["loss"], rel=1e-3)
    assert len(list((tmp_path / "many" / "previews").iterdir())) == 3


def imagine_others(monkeypatch, count):
    """Let this process be the first of some."""

    class Among(Workers):
        def __init__(self, device):
            super().__init__(device)
            self.count = count

    monkeypatch.setattr("iclora.train.run.Workers", Among)


@pytest.mark.parametrize(
    ("count", "batch", "reason"), [(1, 4, "the only one"), (2, 3, "cannot share a `batch` of 3")]
)
def test_a_base_that_cannot_be_spread_is_refused_before_anything_is_written(
    clean, config, monkeypatch, count, batch, reason
):
    imagine_others(monkeypatch, count)
    settings = config(batch=batch, shard=True)
    with pytest.raises(RunError, match=reason):
        train(settings, clean)
    assert not Path(settings.out).exists()


def test_several_processes_are_refused_one_gpu_between_them(clean, config, monkeypatch):
    imagine_others(monkeypatch, 2)
    with pytest.raises(RunError, match="2 processes cannot share cuda:1") as caught:
        train(config(device="cuda:1"), clean)
    assert caught.value.setting == "device"
