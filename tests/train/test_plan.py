"""What fits is chosen, what was set is kept, what does not fit is told in numbers."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch

from iclora.cli.main import main
from iclora.errors import ModelError, SettingsError
from iclora.models.flux.model import FluxModel
from iclora.models.outline import Batch, outline_of, shipped_outline
from iclora.progress import Cancelled, Progress
from iclora.settings import TrainSettings, read_settings
from iclora.toyland.tasks import TASKS, write_sets
from iclora.train.canvases import find_canvases
from iclora.train.card import GB, Card
from iclora.train.costs import Costs
from iclora.train.plan import choose, plan_run
from iclora.train.run import train

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = (256, 512, 768)


def card(usable: float) -> Card:
    """One that has so many bytes to fill."""
    return Card(round((usable + 0.6 * GB) / 0.97) + 1, "cuda", torch.bfloat16)


def settings(**given) -> TrainSettings:
    where = {"base": "b", "data": "none", "out": "o"}
    return TrainSettings(**{**where, "resolutions": SIZES, "preview_every": 0, **given})


class Remembered(Costs):
    """Costs that are counted once for all tests that ask for the same."""

    text, images = cache(Costs.text), cache(Costs.images)
    loading, optimizer = cache(Costs.loading), cache(Costs.optimizer)
    preview = cache(Costs.preview)


@pytest.fixture(autouse=True, scope="module")
def _counted_once():
    made: dict[tuple, Costs] = {}

    def costs(outline, settings, kernels):
        lora = (settings.rank, settings.alpha, settings.targets, settings.preview_every > 0)
        lora += (settings.offload,)
        model = outline.model
        key = (model.folder, model.dtype, model.precision, kernels, *lora)
        if key not in made:
            made[key] = Remembered(outline, settings, kernels)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iclora.train.plan.Costs", costs)
        yield


@pytest.fixture
def ask(small):
    """The choice for the small base on a card with so many bytes to fill."""
    model = FluxModel(small, "x", torch.device("cpu"), torch.bfloat16)

    def asked(usable, **given):
        config = settings(**given)
        return choose(config, model, card(usable), find_canvases(config, model.grid))

    return asked


@pytest.fixture
def peak(small):
    """Bytes at the peak of one set on the largest canvas."""
    model = FluxModel(small, "x", torch.device("cpu"), torch.bfloat16)

    @cache
    def costs(precision):
        return Costs(outline_of(model, torch.bfloat16, precision), settings(), "cuda")

    def counted(precision, recompute):
        return costs(precision).step(Batch(1, SIZES[-1], SIZES[-1]), recompute)

    return counted


# -- the choice ---------------------------------------------------------------------------------


def test_where_there_is_room_nothing_is_quantised_or_recomputed(ask):
    found = ask(10 * GB)
    assert (found.settings.precision, found.settings.recompute) == ("full", 0)
    assert found.settings.micro_tokens == 4 * (768**2 // 256 + 128)


def test_more_memory_never_recomputes_more_nor_quantises_more(ask, peak):
    least, most = peak("nf4", 7), peak("full", 0) + 10**6
    order = ["full", "int8", "nf4"]
    before = None
    for usable in torch.linspace(least, most, 6).tolist():
        found = ask(usable)
        now = (order.index(found.settings.precision), found.recomputed)
        assert before is None or now <= before
        assert found.peak <= found.card.usable <= usable + 1
        before = now
    assert before == (0, 0)


def test_as_few_blocks_are_recomputed_as_fit(ask, peak):
    found = ask(peak("full", 3))
    assert (found.settings.precision, found.settings.recompute) == ("full", 3)
    assert peak("full", 2) > found.card.usable


def test_what_the_user_set_is_left_as_it_is(ask, peak):
    found = ask(10 * GB, precision="nf4", recompute=5, micro_tokens=0)
    assert (found.settings.precision, found.settings.recompute, found.settings.micro_tokens) == (
        "nf4",
        5,
        0,
    )
    assert ask(10 * GB, gradient_checkpointing=True).settings.recompute == 7
    assert ask(10 * GB, gradient_checkpointing=False).settings.recompute == 0
    with pytest.raises(
        SettingsError, match=r"full with 1 of 7 blocks(.|\n)*Leave `precision`, `recomp"
    ):
        ask(peak("full", 3), precision="full", recompute=1)


def test_more_sets_at_a_time_are_counted(ask, peak):
    one, many = ask(peak("full", 0)), ask(peak("full", 0), micro_batch=2)
    assert one.settings.recompute == 0
    assert (many.settings.recompute, many.settings.precision) != (0, "full")
    assert one.settings.micro_tokens < 2 * (768**2 // 256 + 128)


def test_given_panels_are_counted(ask):
    joint, given = (ask(10 * GB, conditional=c, micro_tokens=0) for c in (0.0, 0.5))
    assert given.phases["training"] > joint.phases["training"]


def test_where_nothing_fits_it_is_told_how_much_is_lacking_and_what_would_fit(ask, peak):
    short = 2 * 10**6
    with pytest.raises(SettingsError) as error:
        ask(peak("nf4", 7) - short)
    assert "nf4 with 7 of 7 blocks recomputed takes" in error.value.problem
    assert "0.002 GB more than the 0.0" in error.value.problem
    assert error.value.advice == "Use smaller canvases: `resolutions` 256 512 fits."


def test_encoders_that_do_not_fit_are_named_with_the_card_that_holds_them():
    def ask(vram, sides, **more):
        told = {**DEV, "vram": vram, "resolutions": sides, "preview_every": 0, **more}
        return plan_run(read_settings(TrainSettings, None, told), here=False)

    with pytest.raises(SettingsError, match=r"captions alone take 9\.9 GB(.|\n)*11 GB") as refused:
        ask(8, [512, 1536])
    # With the CPU for words alone the blocks would not fit; with these at home some canvases do.
    said = refused.value.advice
    assert (
        "Set `offload` to blocks, and then: Use smaller canvases: `resolutions` 512 fits." in said
    )
    assert ask(8, [512], offload="blocks").phases["captions"] == 0
    assert ask(11, [512]).settings.resolutions == (512,)


# -- canvases and cards -------------------------------------------------------------------------


def test_canvases_are_those_of_the_dataset_once_it_is_there(make_dataset, tmp_path):
    data = make_dataset(size=(512, 320))
    wanted = settings(data=str(data))
    found = find_canvases(wanted, 16)(wanted)
    assert len(found.sets) == 3
    # A set of 512 x 960 px: 768 falls back to all of its pixels.
    assert found.distinct[-1] == (512, 960)
    assert len(found.distinct) == 3


def test_before_the_data_is_there_canvases_are_the_recipes_or_squares():
    squares = find_canvases(settings(), 16)(settings())
    assert squares.distinct == [(256, 256), (512, 512), (768, 768)]
    wanted = settings(recipe="film-storyboard")
    width, height = find_canvases(wanted, 16)(wanted).distinct[-1]
    assert width < height
    assert width * height <= 768**2


def test_a_text_for_each_panel_is_counted_and_needs_to_know_the_panels(ask):
    joint = ask(10**9, recipe="film-storyboard", micro_tokens=0)
    apart = ask(10**9, recipe="film-storyboard", micro_tokens=0, text="isolated")
    assert apart.phases["training"] > joint.phases["training"]
    with pytest.raises(SettingsError, match="how many panels"):
        ask(10**9, text="isolated")


def test_a_speed_is_measured_here_and_never_made_up(tiny, make_dataset):
    given = {"base": "tiny", "data": str(make_dataset()), "resolutions": (64, 96), "batch": 1}
    config = settings(**given, device="cpu")
    low, high = plan_run(config, here=False).seconds
    assert 0 < low < high
    away = plan_run(config.model_copy(update={"vram": 24.0, "device": "auto"}), here=False)
    assert away.seconds is None or torch.cuda.is_available()
    if away.seconds is None:
        assert "not predicted: speed is measured on the card itself" in str(away)


def test_a_base_of_another_family_cannot_be_planned_for():
    class Other:
        family = "qwen"

    with pytest.raises(ModelError, match="family qwen takes cannot"):
        outline_of(Other(), torch.bfloat16, "full")


def test_smaller_resolutions_are_tried_without_decoding_a_picture_again(
    make_dataset, small, monkeypatch
):
    import iclora.sets.dataset as room

    read: list[str] = []
    real = room.read_image
    monkeypatch.setattr(
        room, "read_image", lambda data, name: read.append(name) or real(data, name)
    )
    config = settings(data=str(make_dataset(2)), upscale=True)
    model = FluxModel(small, "x", torch.device("cpu"), torch.bfloat16)
    with pytest.raises(SettingsError, match="nothing fits"):
        choose(config, model, card(10**6), find_canvases(config, model.grid))
    assert len(read) == len(set(read)) == 6


# -- FLUX.1-dev ---------------------------------------------------------------------------------

DEV = {"base": "black-forest-labs/FLUX.1-dev", "data": "DATA", "out": "RUN"}


RUN_FILES = {
    "official": (DEV["base"], (80, 48, 24, 16, 12)),
    "klein": ("black-forest-labs/FLUX.2-klein-base-4B", (80, 48, 24, 16, 12)),
    "flux2-dev": ("black-forest-labs/FLUX.2-dev", (80, 48)),
    "zimage": ("Tongyi-MAI/Z-Image", (80, 48, 24, 16, 12)),
    "krea": ("krea/Krea-2-Raw", (80, 48, 24, 16)),
    "qwen-image": ("Qwen/Qwen-Image-2512", (80, 48, 24)),
}
"""The base and the cards of every run file that ships."""
LESS = {"official-12gb": (512, 768, 1024), "krea-16gb": (512, 768, 1024, 1280)}
"""The sides of those that do not reach 1536 px."""
QUICK = {"official-24gb", "klein-24gb"}
"""Those that `make test` plans: all of them take a minute."""


def _run_files():
    for family, (base, cards) in RUN_FILES.items():
        for vram in cards:
            name = f"{family}-{vram}gb"
            slow = () if name in QUICK else pytest.mark.machine
            yield pytest.param(name, base, vram, id=name, marks=slow)


@pytest.mark.parametrize(("name", "base", "vram"), list(_run_files()))
def test_a_run_file_that_ships_is_what_plan_chooses_and_fits(name, base, vram):
    """The paper's run: 4 sets, rank 16, squares of 512 px and more."""
    path = EXAMPLES / f"{name}.toml"
    shipped = read_settings(TrainSettings, path, {})
    sizes = LESS.get(name, (512, 768, 1024, 1280, 1536))
    assert (shipped.batch, shipped.rank, shipped.resolutions) == (4, 16, sizes)
    own = {"base": base, "data": "DATA", "out": "RUN", "vram": vram, "resolutions": sizes}
    found = plan_run(read_settings(TrainSettings, None, own), here=False)
    assert found.run_file() == path.read_text()
    assert found.peak < found.card.usable < vram * GB


def test_every_run_file_that_ships_is_one_of_these():
    names = {f"{family}-{vram}gb" for family, (_, cards) in RUN_FILES.items() for vram in cards}
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == names
    for name in names:
        assert read_settings(TrainSettings, EXAMPLES / f"{name}.toml", {}).recompute is not None


def test_the_shipped_outline_is_diffusers_own_default():
    import diffusers

    with torch.device("meta"):
        net = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    outlined = FluxModel(shipped_outline(DEV["base"]), "x", torch.device("cpu"), torch.bfloat16)
    whole = outline_of(outlined, torch.bfloat16, "full").whole()
    shapes = {name: p.shape for name, p in net.named_parameters()}
    assert {name: p.shape for name, p in whole.named_parameters()} == shapes


# -- the command --------------------------------------------------------------------------------


def test_plan_writes_a_run_file_that_train_reads(tmp_path, capsys, small):
    file = tmp_path / "run.toml"
    words = ["plan", "--base", str(small), "--vram", "24", "--steps", "7", "--write", str(file)]
    assert main([*words, "--resolutions", "512", "1536"]) == 0
    shown = capsys.readouterr().out
    assert "recompute    0 of 7 blocks" in shown
    assert "canvases     512x512 to 1536x1536" in shown
    config = read_settings(TrainSettings, file, {})
    assert (config.steps, config.recompute, config.vram) == (7, 0, None)
    assert "vram" not in tomllib.loads(file.read_text())["train"]


def test_train_follows_the_plan_and_a_resumed_run_does_not_plan_again(tmp_path, capsys):
    task = TASKS["visual-identity"]
    write_sets(task, tmp_path / "data", 2)
    out = tmp_path / "run"
    words = [
        "train",
        "--base",
        "toyland",
        "--data",
        tmp_path / "data",
        "--out",
        out,
        "--steps",
        1,
        "--batch",
        2,
        "--rank",
        2,
        "--resolutions",
        task.resolution,
        "--preview-every",
        0,
        "--device",
        "cpu",
        "--vram",
        4,
    ]
    assert main([str(w) for w in words]) == 0
    assert "precision    full" in capsys.readouterr().out
    kept = read_settings(TrainSettings, out / "config.toml", {})
    assert (kept.vram, kept.precision, kept.recompute) == (None, "full", 0)
    assert kept.micro_tokens > 0
    assert (out / "adapter.safetensors").is_file()
    assert main(["train", "--resume", str(out), "--steps", "2"]) == 0
    assert "precision " not in capsys.readouterr().out
    assert main(["train", "--resume", str(out), "--steps", "3", "--vram", "8"]) == 2
    assert "a resumed run cannot change --vram" in capsys.readouterr().err


def test_a_plan_and_its_run_say_each_warning_once(klein, config):
    fixed = {"precision": "full", "recompute": 0, "micro_tokens": 0, "resolutions": (64,)}
    wish = config(base="tiny-klein", guidance=2.0, vram=4.0, preview_every=0, **fixed)
    said: list[str] = []
    plan = plan_run(wish, here=True, warn=said.append)
    assert any("`guidance` has no effect" in text for text in said)
    stopped = Progress()
    stopped.cancel()
    with pytest.raises(Cancelled):
        train(plan.settings, klein, data=plan.data, warn=said.append, progress=stopped)
    assert len(said) == len(set(said))


def test_a_wish_that_nobody_has_planned_for_is_not_ignored(tiny):
    with pytest.raises(SettingsError, match="vram is a wish"):
        train(settings(base="tiny", vram=24), tiny)
