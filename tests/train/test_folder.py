"""Runs that stop and go on without losing a byte."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from iclora.adapter import Adapter, AdapterInfo
from iclora.errors import RunError, StorageError
from iclora.sets.recipe import load_recipe
from iclora.train.folder import RunFolder
from iclora.train.run import resume_settings, train
from iclora.train.state import TrainState
from tests.conftest import after_step, picture, stop_after


@pytest.mark.parametrize(
    "how",
    [{"targets": "all"}, {"text": "isolated", "encode": "panels", "conditional": 0.5, "steps": 6}],
)
def test_a_run_stopped_and_resumed_gives_the_same_bytes_as_one_that_was_not(
    clean, config, unstopped, how
):
    whole, config = unstopped(**how), partial(config, **how)
    result = train(config("parts"), clean, progress=stop_after(3))
    assert (result.finished, result.step) == (False, 3)
    assert not result.adapter.exists()
    result = train(config("parts"), clean, resume=True, progress=stop_after(5))
    assert result.step == 5
    result = train(config("parts"), clean, resume=True)
    for name in ("adapter.safetensors", "log.jsonl"):
        assert (result.folder / name).read_bytes() == whole[name]


def test_a_run_killed_between_checkpoints_takes_the_lost_steps_again(clean, config, unstopped):

    def killed():
        raise SystemExit  # nothing after this line runs, as after SIGKILL

    with pytest.raises(SystemExit):
        train(config("parts"), clean, progress=after_step(5, killed))
    result = train(config("parts"), clean, resume=True)
    assert result.adapter.read_bytes() == unstopped()["adapter.safetensors"]
    rows = (result.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in rows] == [1, 2, 3, 4, 5, 6]


def test_a_plot_that_a_kill_kept_back_is_drawn_by_the_next_run(clean, config, monkeypatch):
    train(config(steps=3), clean)
    drawn = []
    monkeypatch.setattr("iclora.train.folder.plot_loss", lambda *how: drawn.append(how[1]))
    train(config(steps=3), clean, resume=True)
    assert drawn == [[1, 2, 3]]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(clean, config, unstopped):
    train(config("parts"), clean, progress=stop_after(5))
    newest = config("parts").out + "/checkpoints/step-000005"
    flip(Path(newest, "state.safetensors"), -1000)
    said = []
    result = train(config("parts"), clean, resume=True, warn=said.append)
    assert any("step-000005 is damaged" in s for s in said)
    assert result.adapter.read_bytes() == unstopped()["adapter.safetensors"]


def test_with_no_whole_checkpoint_a_resumed_run_starts_again(clean, config, unstopped):
    train(config("parts"), clean, progress=stop_after(1))
    for state in Path(config("parts").out).rglob("state.safetensors"):
        state.write_bytes(b"")
    said = []
    result = train(config("parts"), clean, resume=True, warn=said.append)
    assert any("no whole checkpoint" in s for s in said)
    assert result.adapter.read_bytes() == unstopped()["adapter.safetensors"]


def test_only_the_newest_checkpoints_are_kept(clean, config):
    result = train(config(save_every=1, keep=2, steps=4), clean)
    kept = sorted(p.name for p in (result.folder / "checkpoints").iterdir())
    assert kept == ["step-000003", "step-000004"]
    final = load_file(result.adapter)
    last = load_file(result.folder / "checkpoints" / "step-000004" / "adapter.safetensors")
    assert all(torch.equal(final[k], last[k]) for k in final)


def test_the_adapter_is_the_average_of_the_weights_unless_told_otherwise(clean, config):
    averaged = load_file(train(config("a", lr=0.01, steps=2), clean).adapter)
    result = train(config("b", ema=0, lr=0.01, steps=2), clean)
    last = load_file(result.adapter)
    assert not all(torch.equal(averaged[k], last[k]) for k in last)
    state = load_file(result.folder / "checkpoints" / "step-000002" / "state.safetensors")
    for key, value in last.items():
        live = state["live/" + key.removeprefix("transformer.")]
        scale = 6 / 4 if "lora_B" in key else 1
        torch.testing.assert_close(value, live * scale)


def test_changed_data_is_noticed_on_resuming(clean, config):
    settings = config(steps=2)
    train(settings, clean, progress=stop_after(1))
    picture(64, 32, seed=77).save(Path(settings.data, "0001", "1.png"))
    said = []
    train(settings, clean, resume=True, warn=said.append)
    assert any("dataset or its recipe has changed" in s for s in said)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.fixture
def saved(clean, config):
    """A run's folder with checkpoints of steps 1 and 2, the state of step 1, and a fresh one."""
    settings = config(rank=2, targets="attention", held_out=0.34)
    recipe = load_recipe("film-storyboard")
    info = AdapterInfo(
        base="tiny",
        family="flux",
        rank=2,
        alpha=6,
        targets="attention",
        steps=0,
        recipe=recipe,
        layout=recipe.canvas.resized(96, 192, 16).to_json(),
    )
    run, state = RunFolder(settings, info, "data", "base"), TrainState.fresh(clean, settings)
    for step in (1, 2):
        for parameter in state.live.values():
            parameter.grad = torch.full_like(parameter, 1 / step)
        state.optimizer.step()
        state.step = step
        state.average(0.9)
        run.checkpoint(state)
        if step == 1:
            first = {name: value.clone() for name, value in state.tensors().items()}
    return run, first, TrainState.fresh(clean, settings)


def changed(path, change, metadata=None):
    """Write a file of tensors as versions without checksums did, some of them changed."""
    tensors = load(path.read_bytes())
    for name, value in tensors.items():
        change(name, value)
    about = {"step": 2, "data": "data", "base": "base"} if metadata is None else metadata
    save_file(tensors, path, {"iclora": json.dumps(about)})


def poison(start, number):
    def change(name, value):
        if name.startswith(start):
            value.flatten()[0] = number

    return change


def as_is(name, value):
    pass


DAMAGE = {
    "a bit of the content": lambda path: flip(path, -500),
    "a bit of the header": lambda path: flip(path, 200),
    "its step": lambda path: path.write_bytes(
        path.read_bytes().replace(b'\\"step\\": 2', b'\\"step\\": 3')
    ),
    "a block of zeros": lambda path: path.write_bytes(path.read_bytes()[:-900] + bytes(900)),
    "a NaN average": lambda path: changed(path, poison("ema/", float("nan"))),
    "an infinite weight": lambda path: changed(path, poison("live/", float("inf"))),
    "a negative second moment": lambda path: changed(path, poison("adamw/exp_avg_sq/", -1e-9)),
    "a count of steps": lambda path: changed(path, poison("adamw/step/single", 7)),
    "no base in its header": lambda path: changed(path, as_is, {"step": 2, "data": "data"}),
    "no step in its header": lambda path: changed(path, as_is, {"data": "data", "base": "base"}),
    "a step that is text": lambda path: changed(
        path, as_is, {"step": "2", "data": "data", "base": "base"}
    ),
    "a header that is a list": lambda path: changed(path, as_is, [1, 2]),
    "the state of another step": lambda path: path.write_bytes(
        path.parent.with_name("step-000001").joinpath(path.name).read_bytes()
    ),
    "an empty file": lambda path: path.write_bytes(b""),
    "no file": Path.unlink,
    "a folder": lambda path: path.unlink() or path.mkdir(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_costs_itself_alone(saved, kind):
    run, first, state = saved
    DAMAGE[kind](run.path / "checkpoints" / "step-000002" / "state.safetensors")
    said = []
    assert run.restore(state, said.append)
    assert state.step == 1
    assert all(torch.equal(value, first[name]) for name, value in state.tensors().items())
    (text,) = said
    assert "step-000002 is damaged" in text
    assert "set aside as damaged-step-000002" in text
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert names == ["damaged-step-000002", "step-000001"]


def test_a_checkpoint_of_a_version_without_checksums_is_gone_on_with(saved):
    run, _, state = saved
    changed(run.path / "checkpoints" / "step-000002" / "state.safetensors", as_is)
    assert run.restore(state, pytest.fail)
    assert state.step == 2


def test_what_the_run_did_not_write_beside_its_checkpoints_is_left_alone_and_named(saved):
    run, _, state = saved
    folder = run.path / "checkpoints"
    strays = ["step-3.bak", "step-abc", "step-\u00b2", "step-3", "step-0000003", "notes", "step-"]
    strays += ["step-" + "9" * 240]
    for number, name in enumerate(strays):
        (Path.mkdir if number % 2 else Path.touch)(folder / name)
    for name in ("damaged-step-000002", "damaged-step-000002-2"):
        (folder / name).mkdir()
    (folder / "step-000009").touch()
    said = []
    assert run.restore(state, said.append)
    assert state.step == 2
    assert all(name in said[0] for name in strays)
    assert len(said) == 2
    assert "step-000009 is damaged" in said[1]
    names = {p.name for p in folder.iterdir()}
    assert {*strays, "damaged-step-000009", "damaged-step-000002-2", "step-000001"} <= names
    run.checkpoint(state)
    assert {p.name for p in folder.iterdir()} == names


def test_a_checkpoint_that_cannot_be_read_now_is_not_set_aside(saved, monkeypatch):
    run, _, state = saved

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("iclora.models.stored.safe_open", refused)
    with pytest.raises(StorageError, match="Permission denied"):
        run.restore(state, pytest.fail)
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert names == ["step-000001", "step-000002"]


def let_step_1_be_best(run):
    rows = []
    for step, loss in ((0, 9.0), (1, 1.0), (2, 2.0)):
        found = {"loss": loss, "by_level": [1.0] * 5, "by_panel": [1.0]}
        rows.append(json.dumps({"step": step, "held out": found, "trained": found}))
    run.measures.write_text("\n".join(rows) + "\n")


def test_a_best_adapter_outlives_the_checkpoint_it_was_made_from(saved):
    run, _, state = saved
    run.restore(state, pytest.fail)
    let_step_1_be_best(run)
    run.finish(state, pytest.fail)
    before = (run.path / "adapter-best.safetensors").read_bytes()
    shutil.rmtree(run.path / "checkpoints" / "step-000001")
    said = []
    run.finish(state, said.append)
    assert "checkpoint 1, the best, is gone" in said[0]
    assert (run.path / "adapter-best.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", ["adapter", "state"])
def test_the_best_adapter_is_made_from_numbers_that_have_a_checksum(saved, damage):
    run, _, state = saved
    run.restore(state, pytest.fail)
    let_step_1_be_best(run)
    best = run.path / "checkpoints" / "step-000001"
    expected = (best / "adapter.safetensors").read_bytes()
    flip(best / f"{damage}.safetensors", -8)
    said = []
    run.finish(state, said.append)
    if damage == "adapter":
        assert (run.path / "adapter-best.safetensors").read_bytes() == expected
        assert said == []
    else:
        assert not (run.path / "adapter-best.safetensors").exists()
        assert "step-000001 is damaged" in said[0]
    assert (run.path / "adapter.safetensors").is_file()


@pytest.mark.parametrize("name", ["log.jsonl", "validation.jsonl"])
@pytest.mark.parametrize("tail", [b"7\n", b"null\n", b"\xff\xfe\n", b"\0\0\0", b'{"step": 1}\n'])
def test_a_logs_bad_tail_is_set_aside_and_the_run_goes_on(interrupted, name, tail):
    run, state = interrupted
    path = run.path / name
    rows = [line for line in path.read_bytes().splitlines(True) if b'"step": 3' not in line]
    path.write_bytes(path.read_bytes() + tail)
    said = []
    assert run.restore(state, said.append)
    assert path.read_bytes() == b"".join(rows)
    assert path.with_name(f"damaged-{name}").read_bytes() == tail.rstrip(b"\n") + b"\n"
    assert len(said) == 1
    run.plot()
    assert run.best_step() == 2


@pytest.fixture(scope="module")
def _ended(tmp_path_factory):
    """Holds the folder of one ended run, once a test has made it."""
    return tmp_path_factory.mktemp("ended") / "run"


@pytest.fixture
def interrupted(clean, config, _ended):
    """The folder of a run that stopped at step 2, its log at step 3, and a fresh state."""
    settings = config(save_every=2, steps=3, held_out=0.34)
    if _ended.exists():
        shutil.copytree(_ended, settings.out)
    else:
        train(settings, clean)
        shutil.copytree(settings.out, _ended)
    run = folder_of(settings)
    shutil.rmtree(run.path / "checkpoints" / "step-000003")
    return run, TrainState.fresh(clean, settings)


def folder_of(settings, base=None):
    """The folder as the run has it, or as a run of another base would."""
    kept = sorted(Path(settings.out).rglob("state.safetensors"))[-1]
    with safe_open(kept, "pt") as file:
        about = json.loads(file.metadata()["iclora"])
    info = Adapter.load(kept.with_name("adapter.safetensors")).info
    return RunFolder(settings, info, about["data"], base or about["base"])


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("other", ["weights", "shapes"])
def test_another_base_does_not_go_on_with_a_run_and_changes_nothing(
    interrupted, clean, config, other
):
    run, state = interrupted
    if other == "weights":
        run = folder_of(run.settings, base="another")
    else:
        state = TrainState.fresh(clean, config(rank=2))
    before = contents(run.path)
    live = {key: value.detach().clone() for key, value in state.live.items()}
    expected = "not those this run was started with" if other == "weights" else "another base or"
    with pytest.raises(RunError, match=expected):
        run.restore(state, lambda _: None)
    assert contents(run.path) == before, "no checkpoint is set aside, no log cut"
    assert state.step == 0
    assert all(torch.equal(state.live[key], value) for key, value in live.items())


def test_too_little_memory_on_resuming_is_not_taken_for_a_damaged_checkpoint(
    interrupted, monkeypatch
):
    run, state = interrupted
    before = contents(run.path)

    def full(self, tensors, step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainState, "restore", full)
    with pytest.raises(torch.OutOfMemoryError):
        run.restore(state, lambda _: None)
    assert contents(run.path) == before


def test_a_checkpoint_damaged_twice_is_set_aside_beside_the_first(interrupted):
    run, state = interrupted
    kept = run.checkpoints()[0]
    kept.with_name(f"damaged-{kept.name}").mkdir()
    (kept / "state.safetensors").write_bytes(b"")
    said = []
    assert not run.restore(state, said.append)
    names = sorted(p.name for p in kept.parent.iterdir())
    assert names == ["damaged-step-000002", "damaged-step-000002-2"]
    assert "no whole checkpoint" in said[-1]


def test_another_base_under_the_same_name_is_known_by_its_weights(clean, config, tmp_path):
    from iclora.models.flux.model import FluxModel
    from iclora.models.tiny import write_tiny

    settings = config(steps=1)
    train(settings, clean)
    write_tiny(tmp_path / "other", seed=1)
    other = FluxModel(tmp_path / "other", "tiny", clean.device, clean.dtype)
    with pytest.raises(RunError, match="not those this run was started with"):
        train(settings, other, resume=True)


def test_a_damaged_checkpoint_never_pushes_out_a_whole_one(clean, config):
    settings = config(keep=1, save_every=1)
    train(settings, clean, progress=stop_after(2))
    folder = Path(settings.out, "checkpoints")
    (folder / "step-000900").mkdir()
    (folder / "step-1000000").mkdir()
    said = []
    train(settings, clean, resume=True, progress=stop_after(3), warn=said.append)
    kept = sorted(p.name for p in folder.iterdir())
    assert kept == ["damaged-step-000900", "damaged-step-1000000", "step-000003"]
    assert len(said) == 2


def test_a_full_disk_ends_a_run_with_a_clear_error_and_keeps_its_checkpoint(
    clean, config, monkeypatch
):
    import errno
    from pathlib import Path

    settings = config(steps=4)
    train(settings, clean, progress=stop_after(2))
    real = Path.write_bytes

    def full(self, data):
        if "state" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="disk is full"):
        train(settings, clean, resume=True)
    monkeypatch.undo()
    kept = [p.name for p in Path(settings.out, "checkpoints").iterdir()]
    assert kept == ["step-000002"]
    assert train(settings, clean, resume=True).finished


def test_a_run_is_resumed_from_another_folder_whatever_lies_around(
    clean, config, tmp_path, monkeypatch
):
    (tmp_path / "here" / "film-storyboard").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    settings = config(data="../data", cache="kept", recipe="film-storyboard", steps=2)
    train(settings, clean, progress=stop_after(1))
    monkeypatch.chdir(tmp_path)
    resumed = resume_settings(settings.out, {})
    assert resumed.recipe == "film-storyboard"
    assert resumed.cache == str(tmp_path / "here" / "kept")
    assert train(resumed, clean, resume=True).finished
    assert not (tmp_path / "kept").exists()
