"""What holds for whole runs on every family: sets completed, runs resumed, blocks quantised."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from iclora.adapter import Adapter, attach
from iclora.errors import SettingsError
from iclora.evaluate.run import evaluate
from iclora.evaluate.setup import arms_of, cases_of_prompts, set_up
from iclora.making import sampling
from iclora.making.made import GeneratedSet
from iclora.making.session import complete, generate
from iclora.making.story import Story, extend, reroll
from iclora.models import flow, load_model
from iclora.models.base import Given
from iclora.models.graphs import Graphs
from iclora.models.levels import Schedule
from iclora.models.outline import META
from iclora.settings import MakeSettings, SampleSettings, TrainSettings, read_settings
from iclora.train.ledger import Ledger
from iclora.train.run import resume_settings, train
from tests.conftest import CAPTION, picture, stop_after
from tests.making.helpers import SIZE, STORY, prepared, run, told
from tests.models.conftest import FAMILIES
from tests.models.helpers import random_lora, tensors
from tests.train.test_workers import assert_alike, start_all

MODES = ("sdedit", "resample", "boost", "clean", "reference")


@pytest.mark.parametrize("mode", MODES)
def test_given_panels_come_back_pixel_for_pixel_and_the_rest_depends_on_them(family, mode):
    panels = {1: picture(96, 64, 1), 3: picture(96, 64, 3)}
    # One pass is enough to see it; references are read by both.
    more = told(steps=1, mode=mode, **({} if mode == "reference" else {"guidance": 1}))
    if mode == "reference" and not family.reads_references:
        with pytest.raises(SettingsError, match="not trained to read pictures beside the canvas"):
            prepared(family, CAPTION, given=panels, **more)
        return
    made = complete(family, CAPTION, panels, **more)
    for n, image in panels.items():
        assert made.panels[n - 1].tobytes() == image.tobytes()
        assert made.composite.crop(made.request.layout.boxes[n - 1].corners) == image
    other = complete(family, CAPTION, {**panels, 3: picture(96, 64, 9)}, **more)
    assert made.panels[1].tobytes() != other.panels[1].tobytes()


def test_a_whole_completion_with_kept_keys_is_the_one_without(family, monkeypatch):
    """In two passes whose texts differ in length."""
    panels = {2: picture(96, 64, 2)}
    request, _ = prepared(family, CAPTION, given=panels, **told(mode="clean", steps=2))
    request = request.model_copy(update={"isolate_given": True})
    kept = run(family, request, panels)
    real = sampling.Given
    monkeypatch.setattr(
        sampling, "Given", lambda tokens, clean, isolated, cache: real(tokens, clean, isolated)
    )
    plain = run(family, request, panels)
    for one, other in zip(kept.latents, plain.latents, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.machine
def test_a_story_grows_over_its_first_image_of_which_a_panel_is_made_again(family, tmp_path):
    story = Story("At sea,", tuple(f"<Ana> {n}." for n in range(1, 5)))
    how = MakeSettings(size=SIZE, steps=1, seed=3, text="isolated")
    images = extend(family, story, tmp_path, settings=how, recipe=STORY)
    first, last = (GeneratedSet.load(tmp_path / f"windows/000{n}") for n in (1, 2))
    assert len(images) == 4
    assert last.latents[0].equal(first.latents[0])
    assert last.panels[0].tobytes() == images[0].tobytes()
    again = reroll(family, last, [2], seed=9)
    assert len(last.request.panel_texts) == 3
    assert again.request.panel_texts == last.request.panel_texts
    kept = [a.tobytes() == b.tobytes() for a, b in zip(last.panels, again.panels, strict=True)]
    assert kept == [True, False, True]


def test_a_run_that_was_stopped_and_resumed_writes_the_same_bytes(family, runs_of):
    """With panels that read texts of their own."""
    settings = runs_of(family)
    more = {"conditional": 0.5, "held_out": 0.3, "save_every": 1, "text": "isolated"}
    whole = train(settings("whole", **more), family)
    broken = settings("broken", **more)
    assert not train(broken, family, progress=stop_after(1)).finished
    again = train(resume_settings(broken.out, {}), family, resume=True)
    assert again.adapter.read_bytes() == whole.adapter.read_bytes()
    assert Adapter.load(again.adapter).info.text == "isolated"


def test_a_run_on_quantised_blocks_learns_and_its_adapter_serves_the_base_in_full(family, runs_of):
    """With panels that read texts of their own, which the adapter remembers."""
    kind = "nf4" if family.name == "tiny-qwen" else "int8"
    model = load_model(family.name, device="cpu", precision=kind)
    model.max_text_tokens = family.max_text_tokens
    result = train(runs_of(family)(precision=kind, lr=0.02, text="isolated"), model)
    made = generate(family, CAPTION, adapter=Adapter.load(result.adapter), **told(steps=1))
    plain = generate(family, CAPTION, text="isolated", **told(steps=1))
    assert made.request.panel_texts == plain.request.panel_texts
    assert made.composite.tobytes() != plain.composite.tobytes()


@pytest.mark.machine
def test_a_base_whose_every_weight_was_trained_opens_here_and_in_stock_diffusers(family, runs_of):
    model = load_model(family.name, device="cpu")
    model.max_text_tokens = family.max_text_tokens
    said = []
    settings = runs_of(family)(targets="full", lr=1e-3, steps=1, text="isolated")
    made = train(settings, model, warn=said.append).made
    assert any("does not remember what panels read" in each for each in said)
    assert " --text isolated " in (made / "README.md").read_text(encoding="utf-8")
    kept = dict(load_model(str(made), device="cpu").denoiser.named_parameters())
    stock = diffusers.DiffusionPipeline.from_pretrained(made).transformer
    before = dict(family.denoiser.named_parameters())
    theirs = dict(stock.named_parameters())
    assert kept.keys() == theirs.keys() == before.keys()
    assert all(torch.equal(kept[name], theirs[name]) for name in kept)
    # Nothing reads what the last block writes of the text, and what fills canvases up.
    assert sum(not torch.equal(kept[name], before[name]) for name in kept) > 0.7 * len(kept)


def train_short(file, words):
    """Train as one of some processes, with texts as short as the fixture's."""
    settings = read_settings(TrainSettings, Path(file), {})
    model = load_model(settings.base, device="cpu")
    model.max_text_tokens = words
    train(settings, model)


@pytest.mark.machine
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_train_what_one_would_each_with_the_whole_base_or_half(
    family, runs_of, tmp_path, shard
):
    settings = partial(runs_of(family), batch=2, lr=0.01)
    one = train(settings("one"), family)
    file = tmp_path / "run.toml"
    file.write_text(settings("many", shard=shard).to_toml())
    start_all(train_short, tmp_path, 2, str(file), family.max_text_tokens)
    assert_alike(one.adapter, tmp_path / "many" / "adapter.safetensors")


class There(TorchDispatchMode):
    """Refuses whatever a pass reads or makes in the machine's memory, but for single numbers."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = op(*args, **kwargs)
        for x in tensors((args, *kwargs.values(), out)):
            assert x.is_meta or not x.ndim, f"{op} on {tuple(x.shape)} that lies on the host"
        return out

    def warm(self, run):
        with self:
            return run()

    def record(self, run):
        out = self.warm(run)
        return SimpleNamespace(replay=lambda: out, free=lambda: None)


class Moved(TorchDispatchMode):
    """Counts what is moved to the device."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        came = [x for x in tensors(args) if not x.is_meta and x.ndim]
        self.count += bool(came) and any(x.is_meta for x in tensors(out))
        return out


@pytest.mark.parametrize("name", ["tiny", *FAMILIES])
def test_no_step_of_sampling_or_training_waits_for_the_device(name):
    """On the meta device no number can be read: to ask for one, or to branch on it, raises.

    What is copied to the device inside a pass would wait, too, and could not be recorded.
    """
    model = load_model(name, device="cpu")
    model.max_text_tokens = min(model.max_text_tokens, 96)
    text, empty = map(model.encode_text, ("a fox", ""))
    model.denoiser.to(META)
    model.device = META
    model.graphs = Graphs(There())
    unguided = [empty] if model.sampling.guided == "two-pass" else None
    tokens = torch.arange(24) % 2 == 1
    z = torch.empty(1, 24, model.channels, device=META)

    def velocity(given, schedule, moved, z, sigma):
        sigmas = torch.full((1,), sigma, device=META)
        how = ((64, 96), 4.0, given, unguided, None, schedule.at(sigma))
        with Moved() as moves:
            out = model.velocity(z, sigmas, [text], *how)
        moved.append(moves.count)
        return out

    kept = Given(tokens, clean=True, isolated=True, cache=[])
    for given, levels in ((kept, (1, 0.5, 0)), (Given(tokens, scale=2.0), (1, 0.5, 0))):
        # The ledger knows what torch takes long to say of tensors without content.
        with Ledger(), torch.no_grad(), Schedule(levels) as schedule:
            step = partial(velocity, given, schedule, moved := [])
            flow.denoise(step, z, levels, given=tokens.to(META), x0=z, clean=given.clean)
        assert moved[0] > 0, "texts, at least"
        assert not any(moved[1:]), "what is there is not moved again"
    attach(model, rank=2, alpha=2, targets="all", seed=0)
    for given in (None, Given(tokens, clean=True)):
        with Ledger():
            v = model.velocity(z, z[:, 0, 0], [text], (64, 96), 1.0, given)
            flow.loss(v, z, z).sum().backward()
    with pytest.raises(RuntimeError, match="meta"):
        bool(v.isfinite().all())


@pytest.mark.machine
def test_an_evaluation_sets_base_and_adapter_side_by_side(family, tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file({f"transformer.{name}": x / 50 for name, x in random_lora(family).items()}, file)
    cases = cases_of_prompts([CAPTION], (0, 1), {2: picture(96, 64)})
    arms = arms_of([str(file)], ["sdedit", "boost"])
    how = SampleSettings(size=SIZE, steps=1)
    setup = set_up(family, STORY, arms, cases, tmp_path / "out", how)
    evaluate(family, setup, [])
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    given = found["pixels given error"]["arms"]
    assert len(given) == 4
    assert all(value == 0 for arm in given.values() for value in arm["values"].values())
    pictures = {p.read_bytes() for p in (tmp_path / "out").glob("*/*/panel-1.png")}
    assert len(pictures) == 8
