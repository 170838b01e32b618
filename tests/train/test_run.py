"""Training: exact gradients, equal exposure, runs that stop and go on without losing a byte."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from iclora.adapter import Adapter, attach, lora_parameters
from iclora.errors import DatasetError, RunError, SettingsError
from iclora.models import flow, load_model
from iclora.progress import Cancelled, Progress
from iclora.sets.check import check_dataset
from iclora.sets.compose import compose_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.layout import Layout, token_mask
from iclora.train.folder import RunFolder
from iclora.train.loop import Watch
from iclora.train.objective import Sample, accumulate, schedule
from iclora.train.run import resume_settings, train
from tests.conftest import CAPTION, after_step, encoded, stop_after

# -- the gradient -------------------------------------------------------------------------------


@pytest.fixture
def gradient_case(clean, config, request):
    """Four samples of two canvas sizes and a LoRA whose B is not zero."""
    settings = config(batch=4, caption_dropout=0.3, text=getattr(request, "param", "joint"))
    data = encoded(clean, settings, Path(settings.cache))
    parameters = attach(clean, rank=4, alpha=6, targets="all", seed=0)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.1)
    samples = [Sample(20, 0, 0), Sample(21, 1, 1), Sample(22, 2, 0), Sample(23, 0, 1)]
    return clean, settings, data, parameters, samples


def float64_reference(model, settings, data, parameters, samples):
    """Loss and LoRA gradients by the formula, in float64, on diffusers' bare transformer.

    No PEFT: every adapted weight is W + alpha / rank * B @ A.
    """
    bare = diffusers.FluxTransformer2DModel.from_pretrained(model.folder / "transformer")
    bare = bare.double()
    weights = {k: v.detach().double() for k, v in bare.state_dict().items()}
    lora = {k: v.detach().double().requires_grad_() for k, v in parameters.items()}
    for key in [k for k in lora if k.endswith("lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        update = lora[f"{module}.lora_B.weight"] @ lora[key]
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + 6 / 4 * update
    total = 0.0
    for sample in samples:
        entry = data.sets[sample.set]
        layout = entry.layouts[sample.size]
        x0 = entry.latents(sample.size).double()[None]
        key = (settings.seed, sample.number)
        eps = torch.randn(x0.shape[1:], generator=flow.generator("noise", *key)).double()[None]
        normal = torch.randn(1, generator=flow.generator("sigma", *key)).double()
        dropped = torch.rand(1, generator=flow.generator("dropout", *key)) < 0.3
        texts = [data.empty] if dropped else entry.texts()
        sigma = 1 / (1 + torch.exp(-normal))
        rows, columns = layout.height // 16, layout.width // 16
        grid = np.stack(np.meshgrid(range(rows), range(columns), indexing="ij"), -1).reshape(-1, 2)
        ids = torch.cat([torch.zeros(len(grid), 1), torch.tensor(grid)], 1)
        velocity = torch.func.functional_call(
            bare,
            weights,
            kwargs={
                "hidden_states": (1 - sigma) * x0 + sigma * eps,
                "encoder_hidden_states": torch.cat([t["prompt"] for t in texts]).double()[None],
                "pooled_projections": sum(t["pooled"].double() for t in texts)[None] / len(texts),
                "timestep": sigma,
                "guidance": torch.ones(1).double(),
                "img_ids": ids,
                "txt_ids": torch.zeros(128 * len(texts), 3),
                "joint_attention_kwargs": mask_of(layout, texts),
                "return_dict": False,
            },
        )[0]
        total = total + ((velocity - (eps - x0)) ** 2).mean() / len(samples)
    total.backward()
    return total.detach().item(), {k: v.grad for k, v in lora.items()}


def mask_of(layout, texts):
    """diffusers' attention as panels that read texts of their own have it; none for one text."""
    if len(texts) == 1:
        return None
    of = [np.full(128, panel) for panel in range(len(texts))]
    owners = sum(panel * token_mask(layout, [panel]) for panel in range(len(texts))).flatten()
    panel = torch.from_numpy(np.concatenate([*of, owners]))
    image = torch.arange(len(panel)) >= 128 * len(texts)
    return {"attention_mask": (panel[:, None] == panel) | (image[:, None] & image)}


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("gradient_case", ["joint", "isolated"], indirect=True)
def test_lora_gradients_equal_a_float64_reference_without_peft(gradient_case):
    model, settings, data, parameters, samples = gradient_case
    assert {len(entry.texts()) for entry in data.sets} == {1 if settings.text == "joint" else 3}
    loss = accumulate(model, data, samples, settings)
    expected, gradients = float64_reference(*gradient_case)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, parameter in parameters.items():
        assert relative(parameter.grad, gradients[name]) < 1e-4, name


@pytest.mark.parametrize("fault", ["target", "sigma", "guidance"])
def test_the_float64_reference_notices_a_wrong_objective(gradient_case, fault, monkeypatch):
    """The bound above is no formality."""
    model, settings, data, parameters, samples = gradient_case
    if fault == "target":
        real = flow.loss
        monkeypatch.setattr(flow, "loss", lambda v, x0, eps: real(v, eps, x0))
    elif fault == "sigma":
        monkeypatch.setattr(flow, "draw_sigma", lambda rng, *_: torch.rand(1, generator=rng))
    else:
        settings = settings.model_copy(update={"guidance": 3.5})
    accumulate(model, data, samples, settings)
    _, gradients = float64_reference(*gradient_case)
    assert max(relative(p.grad, gradients[n]) for n, p in parameters.items()) > 1e-2


@pytest.mark.parametrize("change", [{"micro_batch": 4}, {"gradient_checkpointing": True}])
def test_grouping_and_recomputing_do_not_change_the_gradient(gradient_case, change):
    model, settings, data, parameters, samples = gradient_case
    accumulate(model, data, samples, settings)
    one = {k: v.grad.clone() for k, v in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    model.recompute = model.blocks if change.get("gradient_checkpointing") else 0
    try:
        accumulate(model, data, samples, settings.model_copy(update=change))
    finally:
        model.recompute = 0
    for name, parameter in parameters.items():
        assert relative(parameter.grad, one[name].double()) < 1e-4, name


def test_training_makes_the_loss_smaller(clean, config):
    losses = []

    def keep(event):
        if event.what == "training":
            losses.append(event.values["loss"])

    settings = config(steps=24, batch=2, lr=0.02, resolutions=(64,), save_every=100)
    train(settings, clean, progress=Progress(keep))
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


# -- the schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize(("sets", "steps", "batch"), [(10, 5000, 4), (37, 1000, 4), (20, 333, 3)])
def test_every_set_is_seen_equally_often_over_a_run(sets, steps, batch):
    sizes = [1 + i % 5 for i in range(sets)]
    drawn = [schedule(0, n, sizes) for n in range(min(steps * batch, 4000))]
    seen = Counter(s.set for s in drawn)
    assert len(seen) == sets
    assert max(seen.values()) / min(seen.values()) <= 1.05
    for chosen in range(sets):
        canvases = Counter(s.size for s in drawn if s.set == chosen)
        assert len(canvases) == sizes[chosen]
        assert max(canvases.values()) - min(canvases.values()) <= 1


def test_the_order_differs_between_passes_and_seeds():
    def order(seed, turn):
        return [schedule(seed, turn * 20 + i, [1] * 20).set for i in range(20)]

    assert sorted(order(0, 0)) == list(range(20))
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


# -- runs ---------------------------------------------------------------------------------------


def test_a_run_writes_what_its_users_look_for(clean, config, plots):
    settings = config(cache=None)
    result = train(settings, clean)
    names = {p.name for p in result.folder.iterdir()}
    assert names == {
        "README.md",
        "adapter.safetensors",
        "cache",
        "checkpoints",
        "config.toml",
        "log.jsonl",
        "loss.png",
    }
    rows = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (result.folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    info = Adapter.load(result.adapter).info
    assert (info.rank, info.alpha, info.steps, info.base) == (4, 6, 6, "tiny")
    assert info.recipe.name == "film-storyboard"
    assert Layout.from_json(info.layout).width == 1024
    assert result.finished


def test_a_folder_with_a_run_is_not_trained_into_again(clean, config, tmp_path):
    train(config(steps=1), clean)
    with pytest.raises(RunError, match=r"already holds a run\nResume it"):
        train(config(steps=1), clean)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    with pytest.raises(RunError, match="not an empty folder"):
        train(config("other"), clean)
    inside = config("other").model_copy(update={"out": f"{config('x').data}/run"})
    with pytest.raises(RunError, match="lies inside the dataset"):
        train(inside, clean)


def test_the_same_command_goes_on_with_a_run_that_was_stopped_and_another_does_not(
    clean, config, unstopped
):
    train(config("parts"), clean, progress=stop_after(3))
    with pytest.raises(RunError, match="already holds a run"):
        train(config("parts", lr=0.01), clean)
    said = []
    result = train(config("parts"), clean, warn=said.append)
    assert "it goes on" in said[0]
    for name in ("adapter.safetensors", "log.jsonl"):
        assert (result.folder / name).read_bytes() == unstopped()[name]


def test_a_folder_in_which_the_first_file_was_being_written_is_taken(clean, config):
    folder = Path(config().out)
    folder.mkdir()
    for name in (".config.toml.0123456789ab.tmp", ".config.toml.ba9876543210.tmp", ".lock"):
        (folder / name).write_text("steps =")
    result = train(config(steps=1), clean)
    assert result.finished
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_run_killed_before_its_first_checkpoint_is_started_again_by_the_same_command(
    clean, config
):
    short = {"held_out": 0.34, "steps": 2, "resolutions": (64,)}
    settings = config(**short)
    whole = train(config("whole", **short), clean)

    def killed():
        raise SystemExit

    with pytest.raises(SystemExit):
        train(settings, clean, progress=after_step(1, killed))
    result = train(settings, clean)
    for name in ("log.jsonl", "validation.jsonl", "adapter.safetensors"):
        assert (result.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_process_that_trains_into_the_same_folder_is_refused(clean, config, resume):
    said = []

    def meanwhile():
        with pytest.raises(RunError, match="another process is writing"):
            train(config(), clean, resume=resume)
        said.append((Path(config().out) / "log.jsonl").read_text().count("\n"))

    result = train(config(steps=2), clean, progress=after_step(1, meanwhile))
    assert said == [1]
    assert (result.folder / "log.jsonl").read_text().count("\n") == 2
    assert not (result.folder / ".lock").exists()


@pytest.fixture(scope="module")
def weights_shown():
    """The weights that previews of a run are drawn with, by step; made by the first who asks."""
    return {}


@pytest.mark.parametrize("how", ["killed", "interrupted", "at the end"])
def test_previews_that_a_stop_left_out_are_drawn_later_with_the_same_weights(
    clean, config, how, weights_shown
):
    def preview_into(seen, folder, kill_at=None):
        def make(_):
            def preview(step, write):
                if step == kill_at:
                    raise SystemExit
                seen[step] = {k: v.detach().clone() for k, v in lora_parameters(clean).items()}
                folder.mkdir(exist_ok=True)
                (folder / f"step-{step:06d}.png").touch()

            return preview

        return make

    seen, resumed = {}, {}
    short = {"preview_every": 2, "steps": 4, "lr": 0.01, "resolutions": (64,)}
    if not weights_shown:
        settings = config("whole", **short)
        folder = Path(settings.out, "previews")
        train(settings, clean, make_preview=preview_into(weights_shown, folder))
    assert list(weights_shown) == [2, 4]
    settings = config(**short)
    folder = Path(settings.out, "previews")
    if how == "interrupted":
        train(settings, clean, make_preview=preview_into(seen, folder), progress=stop_after(2))
    else:
        at = 2 if how == "killed" else 4
        with pytest.raises(SystemExit):
            train(settings, clean, make_preview=preview_into(seen, folder, at))
    train(settings, clean, resume=True, make_preview=preview_into(resumed, folder))
    assert list(resumed) == ([4] if how == "at the end" else [2, 4])
    assert list(seen) + list(resumed) == [2, 4]
    for step, weights in resumed.items():
        assert all(torch.equal(weights[k], v) for k, v in weights_shown[step].items())


def test_bad_data_stops_a_run_before_anything_is_written(clean, config, tmp_path):
    settings = config()
    Path(settings.data, "0002", "caption.txt").write_text("[MOVIE-SHOTS] [SCENE-1] a")
    with pytest.raises(DatasetError, match=r"0002: \[SCENE-2\] is missing"):
        train(settings, clean)
    Path(settings.data, "0002", "caption.txt").write_text(CAPTION + " word" * 200)
    with pytest.raises(DatasetError, match="the base reads 128"):
        train(settings, clean)
    assert not Path(settings.out).exists()


def test_a_resumed_run_may_be_longer_but_not_another_run(clean, config):
    settings = config(steps=1)
    train(settings, clean)
    longer = resume_settings(settings.out, {"steps": "2"})
    assert (longer.steps, longer.rank) == (2, 4)
    assert train(longer, clean, resume=True).step == 2
    with pytest.raises(RunError, match="cannot change `out`, `rank`"):
        resume_settings(settings.out, {"rank": "8", "out": "x"})
    said = []
    assert resume_settings(settings.out, {"lr": "1e-5"}, said.append).lr == 1e-5
    assert "differs from an unstopped run" in said[0]
    with pytest.raises(SettingsError):
        resume_settings(settings.out, {"steps": "x"})
    with pytest.raises(RunError, match="holds no run"):
        resume_settings(settings.data, {})


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_sets(clean, config, monkeypatch):
    monkeypatch.setattr(flow, "loss", lambda v, x0, eps: v.sum((1, 2)) * float("nan"))
    with pytest.raises(RunError, match=r"became nan at step 1, on sets 000\d, 000\d"):
        train(config(), clean)


def test_an_infinite_gradient_stops_the_run_before_any_weight_is_changed(clean, config):
    settings = config(save_every=1, steps=3)

    def poison():
        parameter = next(iter(lora_parameters(clean).values()))
        parameter.register_hook(lambda grad: grad * float("inf"))

    with pytest.raises(RunError, match=r"gradient became (inf|nan) at step 2"):
        train(settings, clean, progress=after_step(1, poison))
    assert train(settings, clean, resume=True).finished


def test_a_loss_that_rises_for_good_stops_the_run_and_single_ones_do_not(config):
    watch, settings = Watch(), config()
    run = RunFolder(settings, None, "", "")
    losses = [1.0] * 80
    losses[10] = losses[30] = losses[60] = 9.0
    for step, loss in enumerate(losses, 1):
        watch.see(loss, step, ["0001"], run)

    def rise():
        for step in range(81, 90):
            watch.see(30.0, step, ["0001", "0002"], run)

    with pytest.raises(RunError, match=r"loss has risen .* by step 8\d, last on sets 0001, 0002"):
        rise()


def test_tensorboard_shows_every_loss_once_also_of_a_run_that_was_resumed(clean, config):
    settings = config(steps=4, trackers=("tensorboard",), preview_every=3)

    def draws(_recipe):
        return lambda step, write: Image.new("RGB", (8, 8), (step, 0, 0))

    train(settings, clean, make_preview=draws)
    longer = settings.model_copy(update={"steps": 6})
    train(longer, clean, resume=True, make_preview=draws)
    shown, drawn = {}, []
    for file in Path(settings.out).rglob("events.out.tfevents*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == "loss":
                    shown.setdefault(event.step, []).append(value.tensor.float_val[0])
                elif value.tag == "learning rate":
                    assert value.tensor.float_val[0] == pytest.approx(settings.lr)
                elif value.tag == "previews":
                    drawn.append(event.step)
    logged = map(json.loads, (Path(settings.out) / "log.jsonl").read_text().splitlines())
    assert shown == {row["step"]: [pytest.approx(row["loss"], rel=1e-5)] for row in logged}
    assert sorted(shown) == [1, 2, 3, 4, 5, 6]
    assert sorted(drawn) == [3, 4, 6]


def test_previews_are_drawn_with_the_averaged_weights_at_their_steps(clean, config):
    seen = []

    def make_preview(recipe):
        assert recipe.name == "film-storyboard"

        def preview(step, write):
            assert write
            seen.append((step, {k: v.detach().clone() for k, v in lora_parameters(clean).items()}))

        return preview

    settings = config(preview_every=2, lr=0.01, alpha=4, steps=3)
    result = train(settings, clean, make_preview=make_preview)
    assert [step for step, _ in seen] == [2, 3]
    final = load_file(result.adapter)
    assert all(torch.equal(final[f"transformer.{k}"], v) for k, v in seen[-1][1].items())


def test_a_cancelled_run_keeps_its_steps_as_an_interrupted_one_does(clean, config, unstopped):
    progress = after_step(3, lambda: progress.cancel())
    result = train(config("parts"), clean, progress=progress)
    assert (result.finished, result.step) == (False, 3)
    kept = sorted(path.name for path in (result.folder / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000003"]
    again = train(config("parts"), clean, resume=True)
    assert again.adapter.read_bytes() == unstopped()["adapter.safetensors"]


def test_a_run_cancelled_while_it_encodes_ends_at_once_and_goes_on_from_there(clean, config):
    seen = []

    def show(event):
        seen.append((event.what, event.done, event.total))
        if event.what == "encoding images" and event.done == 2:
            progress.cancel()

    progress = Progress(show)
    settings = config(steps=1, cache=None)
    with pytest.raises(Cancelled):
        train(settings, clean, progress=progress)
    captions = [("encoding captions", done, 4) for done in range(5)]
    assert seen == [*captions, *(("encoding images", done, 3) for done in range(3))]
    seen.clear()
    assert train(settings, clean, resume=True, progress=Progress(lambda e: seen.append(e))).finished
    first = {event.what: event.done for event in reversed(seen)}
    assert first == {"encoding captions": 4, "encoding images": 2, "training": 1}
    assert seen[-1].values["loss"] > 0


def test_no_picture_is_decoded_more_than_twice_and_canvases_are_derived_once(
    clean, config, tmp_path, monkeypatch
):
    """From composing through checking to training: counted in each of the three."""
    import iclora.sets.check as checking
    import iclora.sets.dataset as reading

    decoded, derived = Counter(), []
    read, fit = reading.read_image, checking.training_layouts

    def counted(data, name):
        decoded[name] += 1
        return read(data, name)

    monkeypatch.setattr(reading, "read_image", counted)
    monkeypatch.setattr(
        checking, "training_layouts", lambda *args: derived.append(args) or fit(*args)
    )
    where = {"data": str(tmp_path / "composed"), "cache": None}
    settings = config(steps=1, held_out=0.34, **where)
    compose_dataset(open_dataset(tmp_path / "data"), tmp_path / "composed")
    assert len(decoded) == 9
    assert max(decoded.values()) <= 2
    decoded.clear()
    derived.clear()
    list(check_dataset(open_dataset(settings.data)))
    assert list(decoded.values()) == [1, 1, 1]
    assert len(derived) == 3
    decoded.clear()
    derived.clear()
    train(settings, clean)
    assert list(decoded.values()) == [2, 2, 2]
    assert len(derived) == 3
    decoded.clear()
    train(settings.model_copy(update={"steps": 2}), clean, resume=True)
    assert list(decoded.values()) == [1, 1, 1], "the cache is known by the files"


def test_training_in_a_thread_works_without_signals(clean, config):
    results = []
    worker = threading.Thread(target=lambda: results.append(train(config(steps=1), clean)))
    worker.start()
    worker.join()
    assert results[0].finished


def test_the_resolution_shift_moves_training_towards_noise(clean, config, tmp_path, monkeypatch):
    seen = []
    real = flow.add_noise
    monkeypatch.setattr(flow, "add_noise", lambda *a: seen.append(float(a[2])) or real(*a))
    settings = config(steps=1)
    data = encoded(clean, settings, tmp_path / "cache")
    attach(clean, rank=2, alpha=2, targets="attention", seed=0)
    for shift in ("none", "resolution"):
        accumulate(clean, data, [Sample(5, 0, 0)], settings.model_copy(update={"shift": shift}))
    plain, shifted = seen
    tokens = len(data.sets[0].latents(0))
    mu = flow.resolution_shift(tokens, 256, 4096, 0.5, 1.15)
    expected = np.exp(mu) / (np.exp(mu) + 1 / plain - 1)
    assert shifted == pytest.approx(expected, rel=1e-5)
    assert shifted > plain


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({"gradient_checkpointing": True}, 3),
        ({"gradient_checkpointing": False}, 0),
        ({"gradient_checkpointing": True, "recompute": 1}, 1),
        ({"gradient_checkpointing": False, "recompute": 99}, 3),
    ],
)
def test_recompute_says_how_many_blocks_keep_their_input_alone(config, clean, settings, blocks):
    train(config(steps=1, save_every=1, **settings), clean)
    assert clean.recompute == blocks


def test_a_resumed_run_keeps_its_precision_and_says_so_if_told_another(config, clean):
    quantised = load_model("tiny", device="cpu", precision="int8")
    train(config(steps=1, save_every=1, precision="int8", recompute=2), quantised)
    folder = config().out
    kept = resume_settings(folder, {"steps": 2})
    assert (kept.precision, kept.recompute, kept.compile) == ("int8", 2, False)
    told = []
    assert resume_settings(folder, {"precision": "nf4"}, told.append).precision == "nf4"
    assert "precision" in told[0]
    assert train(kept, quantised, resume=True).finished
