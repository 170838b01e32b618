"""What `generate` and `complete` are told, turned into asks; requests repeated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from iclora.adapter import Adapter, stack
from iclora.errors import AdapterError, ModelError, SettingsError
from iclora.making.asks import asks_of, base_of, machine_for, open_sources
from iclora.making.made import GeneratedSet
from iclora.making.session import Session, complete, generate
from iclora.models import load_model
from iclora.models.tiny import tiny_folder
from iclora.settings import CompleteSettings, GenerateSettings, RerollSettings
from iclora.train.run import train
from iclora.vlm import VisionModel
from iclora.vlm.base import Answer
from tests.conftest import CAPTION, resting
from tests.making.helpers import told

OLD = Path(__file__).parents[1] / "data" / "v0.2"
TINY = {"base": "tiny", "recipe": "film-storyboard", "size": "96x192", "steps": 1}


@pytest.fixture(scope="module")
def tiny():
    """With texts as long as those of version 0.2."""
    return resting("tiny")


def asks(model, settings, **more):
    return asks_of(settings, model, open_sources(settings), **more)


def test_every_prompt_has_as_many_asks_as_sets_are_wanted_with_seeds_one_apart(clean, tmp_path):
    (tmp_path / "more.txt").write_text(CAPTION.replace("Ana", "Bo") + "\n\n")
    settings = GenerateSettings(
        **TINY, prompt=(CAPTION,), prompts=str(tmp_path / "more.txt"), count=2, seed=3
    )
    found = asks(clean, settings)
    single = generate(clean, CAPTION, seed=4, **told(steps=1)).request
    assert [("Bo" in ask.request.prompt) for ask in found] == [False, False, True, True]
    assert found[1].request == single
    assert found[0].request.seeds == found[2].request.seeds != found[1].request.seeds
    assert len(asks(clean, settings.model_copy(update={"best_of": 3, "score": "toyland"}))) == 12


def test_latents_beside_a_given_panel_are_taken_if_this_vae_made_them(clean, tmp_path):
    made = generate(clean, CAPTION, **told(steps=1))
    for name, vae in (("mine", made.vae), ("other", "0" * 64)):
        folder = GeneratedSet(made.composite, made.panels, made.request, made.latents, vae).save(
            tmp_path / name
        )
        settings = CompleteSettings(
            **TINY, prompt=(CAPTION,), given={2: str(folder / "panel-2.png")}
        )
        (ask,) = asks(clean, settings)
        assert ask.given[2].tobytes() == made.panels[1].tobytes()
        assert bool(ask.request.given[2].latents) == (name == "mine")
        if name == "mine":
            assert ask.latents[2].equal(made.latents[1])


def test_a_request_is_repeated_to_the_same_bytes_with_its_latents(clean, lora, tmp_path):
    first = generate(clean, CAPTION, **told(steps=1))
    made = complete(
        clean, CAPTION, {1: first.panels[0]}, latents={1: first.latents[0]}, **told(steps=1)
    )
    folder = made.save(tmp_path / "0001")
    settings = GenerateSettings(request=str(folder / "request.json"))
    sources = open_sources(settings)
    assert (sources.base, sources.machine.device, sources.machine.dtype) == ("tiny", "cpu", "fp32")
    (ask,) = asks_of(settings, clean, sources)
    again = next(made for _, made in Session(clean).make([ask]))
    assert again.composite.tobytes() == made.composite.tobytes()
    assert again.request.model_dump() == made.request.model_dump()


@pytest.mark.parametrize("name", ["0001", "0002"])
def test_a_request_of_version_0_2_repeats_to_the_same_picture(clean, name, monkeypatch):
    monkeypatch.chdir(OLD)
    folder = OLD / "made" / name
    settings = GenerateSettings(request=str(folder / "request.json"))
    sources = open_sources(settings)
    assert sources.request.dtype == "fp32"
    assert sources.request.precision == "full"
    assert sorted(sources.given) == ([1] if name == "0002" else [])
    (ask,) = asks_of(settings, clean, sources)
    again = next(made for _, made in Session(clean).make([ask]))
    before = GeneratedSet.load(folder)
    # Another processor's products may round one value to the next grey level.
    for one, other in zip(
        [again.composite, *again.panels], [before.composite, *before.panels], strict=True
    ):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    for one, other in zip(again.latents, before.latents, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    # Written again, it is spelled as requests are now.
    text = json.loads(again.request.model_dump_json())
    assert (text["dtype"], text["precision"], "known" in text) == ("fp32", "full", False)


def test_what_a_request_decides_must_not_be_set_beside_it(tmp_path):
    settings = GenerateSettings(request="r.json", seed=3, steps=9, out="x", device="cpu")
    with pytest.raises(SettingsError, match="already decides what `seed`, `steps` would"):
        open_sources(settings)


def test_a_machine_is_the_requests_where_nothing_else_was_set(clean):
    request = generate(clean, CAPTION, **told(steps=1)).request
    assert machine_for(RerollSettings(set="x", panel=(1,)), request).precision == "full"
    other = RerollSettings(set="x", panel=(1,), dtype="bf16", precision="int8", device="auto")
    found = machine_for(other, request)
    assert (found.device, found.dtype, found.precision) == ("cpu", "bf16", "int8")
    assert machine_for(GenerateSettings(device="auto")).device == "auto"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (GenerateSettings(base="tiny"), "there is no prompt"),
        (GenerateSettings(prompt=("x",)), "no base is given"),
        (GenerateSettings(base="tiny", prompt=("x",)), "no recipe is known"),
        (GenerateSettings(base="tiny", idea=("x",)), "somebody to write"),
        (CompleteSettings(base="tiny", prompt=("x",)), "no panel is given"),
        (GenerateSettings(base="tiny", prompts="none.txt"), r"none\.txt cannot be read"),
    ],
)
def test_what_is_missing_is_said_before_a_base_is_opened(settings, says):
    with pytest.raises(SettingsError, match=says):
        open_sources(settings)
    with pytest.raises(SettingsError, match="no base is given"):
        base_of(None)


def test_an_adapter_holds_no_path_of_the_machine_and_finds_its_base_by_its_run(
    config, tmp_path, monkeypatch
):
    base = tmp_path / "bases" / "my-base"
    shutil.copytree(tiny_folder(), base)
    settings = config(base=str(base), steps=1, resolutions=(64,))
    result = train(settings, load_model(str(base), device="cpu"))
    assert str(tmp_path).encode() not in result.adapter.read_bytes()
    ours = Adapter.load(result.folder)
    assert ours.info.base == "my-base"
    assert base_of(None, ours) == str(base)
    assert base_of("another", ours) == "another"
    # So does an adapter of a checkpoint, and the second of two.
    assert base_of(None, Adapter.load(result.folder / "checkpoints" / "step-000001")) == str(base)
    foreign = replace(ours, info=None, path=tmp_path / "elsewhere" / "style.safetensors")
    assert base_of(None, stack([foreign, ours])) == str(base)
    moved = shutil.copy(result.adapter, tmp_path / "moved.safetensors")
    found = base_of(None, Adapter.load(moved))
    with pytest.raises(ModelError, match="my-base") as caught:
        load_model(found, device="cpu")
    assert caught.value.setting == "base"


class Writer(VisionModel):
    """Writes the same prompt out of every idea."""

    def __init__(self):
        super().__init__("writer", notices=["pictures and instructions go to a server"])

    def answer(self, asks):
        texts = ["an overview", "one", "two", "three"]
        for number, _ in enumerate(asks):
            yield number, Answer(json.dumps({"overview": texts[0], "panels": texts[1:]}))


def test_ideas_are_written_out_by_a_captioner(clean, monkeypatch):
    monkeypatch.setattr("iclora.making.asks.load_vision_model", lambda *_, **__: Writer())
    settings = GenerateSettings(**TINY, idea=("a day at sea",), captioner="openai:x")
    warned, said = [], []
    (ask,) = asks(clean, settings, warn=warned.append, say=said.append)
    assert ask.request.prompt == said[0]
    assert "[SCENE-2] two" in said[0]
    assert warned[0] == "the idea and its instruction go to a server"


def test_no_idea_is_written_out_for_an_adapter_that_does_not_fit(klein, lora, monkeypatch):
    asked = []
    monkeypatch.setattr("iclora.making.asks.load_vision_model", lambda *_, **__: asked.append(1))
    told = {"idea": ("a day at sea",), "captioner": "openai:x", "adapter": (str(lora),)}
    with pytest.raises(AdapterError, match="of the family flux, and"):
        asks(klein, GenerateSettings(**TINY | told))
    assert not asked


def test_notes_are_said_once_for_all_prompts(clean):
    settings = GenerateSettings(**TINY, prompt=(CAPTION, CAPTION), boost=3.0)
    warned = []
    asks(clean, settings, warn=warned.append)
    assert warned == ["`boost` has no effect in mode sdedit"]
