"""Model cards: what the hub's own reader, diffusers and a shell make of them."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from iclora.adapter import Adapter
from iclora.models.base import Sampling
from iclora.sets.recipe import load_recipe
from iclora.settings import TrainSettings, settings_of
from iclora.train.model_card import model_card, prompt_form, write_card
from iclora.train.run import train

USUAL = Sampling()
DEV = "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def info(lora):
    """Of an adapter that was trained in some folder of this machine."""
    known = Adapter.load(lora).info
    return known.model_copy(update={"base": str(lora.parent / "bases" / "own")})


@pytest.fixture
def settings(tmp_path):
    """Settings of a run; every path in them lies in a folder of this machine."""
    paths = ("base", "data", "out", "recipe", "cache", "validation")
    return settings_of(TrainSettings, {name: str(tmp_path / name) for name in paths})


def of(info, settings, base, sampling=USUAL, **more):
    return ModelCard(
        model_card(info.model_copy(update={"base": base}), settings, 20, sampling, **more)
    )


def block(card, language):
    return re.search(rf"```{language}\n(.*?)\n```", card.text, re.DOTALL)[1]


@pytest.mark.parametrize(
    ("base", "licence", "name"),
    [
        (DEV, "other", "flux-1-dev-non-commercial-license"),
        ("black-forest-labs/FLUX.1-schnell", "apache-2.0", None),
        ("black-forest-labs/FLUX.2-klein-base-4B", "apache-2.0", None),
        ("somebody/flux-of-their-own", None, None),
    ],
)
def test_the_hub_reads_base_and_licence_of_a_base_that_it_has(info, settings, base, licence, name):
    data = of(info, settings, base).data
    assert (data.base_model, data.base_model_relation) == (base, "adapter")
    assert (data.license, data.license_name) == (licence, name)
    assert (data.license_link is None) == (name is None)
    assert {"lora", "in-context-lora", "text-to-image", "diffusers", "flux"} <= set(data.tags)


@pytest.mark.parametrize("base", ["toyland", "tiny", "/home/ana/flux", r"C:\models\flux"])
def test_a_base_that_the_hub_has_not_is_none_there(info, settings, base):
    data = of(info, settings, base).data
    assert data.base_model is None
    assert data.license is None


def test_no_folder_of_this_machine_stands_in_a_card(info, settings, tmp_path):
    card = model_card(info, settings, 20, USUAL, [("a prompt", "previews/step-000001-1.png")])
    assert str(tmp_path) not in card
    assert "for own" in card


def test_pictures_are_shown_beside_their_prompts_whatever_these_hold(info, settings):
    words = 'yes: "no" # |\n- {x} ```\n---\n[A] \u96ea'
    pictures = [(words, "previews/step-000001-1.png")]
    card = of(info, settings, DEV, shown=pictures, grid="previews/step-000001.png")
    assert card.data.widget == [{"text": words, "output": {"url": "previews/step-000001-1.png"}}]
    assert "](previews/step-000001.png)" in card.text
    assert "Training" in card.text


def test_the_form_of_a_prompt_is_that_of_its_recipe():
    form = "[MOVIE-SHOTS] ... [SCENE-1] ... [SCENE-2] ... [SCENE-3] ..."
    assert prompt_form(load_recipe("film-storyboard")) == form
    assert prompt_form(load_recipe("couple-profile")) == "... [LEFT] ... [RIGHT] ..."


def test_the_command_of_a_card_gives_a_shell_the_example_word_by_word(info, settings):
    recipe = info.recipe.model_copy(
        update={"example": "[MOVIE-SHOTS] it's $5 `a` \\ \u201cb\u201d"}
    )
    card = of(info.model_copy(update={"recipe": recipe}), settings, DEV)
    typed = shlex.split(block(card, "sh").splitlines()[0])
    assert typed == ["iclora", "generate", "--adapter", "USER/NAME", "--prompt", recipe.example]


def test_diffusers_paints_with_the_adapter_by_the_code_of_a_card(
    clean, lora, info, settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sampled = info.model_copy(update={"recipe": info.recipe.sampled(2, 3.5)})
    code = block(of(sampled, settings, DEV), "python")
    changes = {
        DEV: str(clean.folder),
        "USER/NAME": str(lora.parent),
        "pipeline.enable_model_cpu_offload()": "",  # it needs an accelerator
    }
    for theirs, ours in changes.items():
        assert theirs in code
        code = code.replace(theirs, ours)
    assert "num_inference_steps=2," in code
    without = re.sub("pipeline.load_lora_weights.*", "", code)
    pictures = []
    for each in (code, without):
        exec(each, {})
        pictures.append(np.asarray(Image.open("film-storyboard.png"), np.int16))
    assert pictures[0].shape == (192, 96, 3)
    assert np.abs(pictures[0] - pictures[1]).mean() > 1


def test_the_code_of_a_card_takes_the_steps_that_a_distilled_base_has(info, settings):
    sampled = info.model_copy(update={"recipe": info.recipe.sampled(20, 3.5)})
    few = Sampling(steps=4, guidance=None, guided="none", fixed_steps=True)
    code = block(of(sampled, settings, DEV, few), "python")
    assert "num_inference_steps=4," in code
    assert "guidance_scale" not in code


def test_a_card_says_where_diffusers_reads_other_texts_than_in_training(info, settings):
    apart = settings.model_copy(update={"text": "isolated"})
    cards = [of(info, each, DEV).text for each in (settings, apart)]
    assert ["diffusers gives all panels one text" in text for text in cards] == [False, True]


def test_a_run_ends_with_a_card_that_is_the_same_each_time(clean, config):
    one, two = (train(config(name, steps=1), clean).folder / "README.md" for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert "| resolutions | [64, 96] |" in one.read_text()
    assert "tuned on 3 image sets" in one.read_text()


def test_a_card_that_somebody_made_their_own_is_left_alone(info, settings, tmp_path):
    card = tmp_path / "README.md"
    assert write_card(tmp_path, info, settings, 3, USUAL)
    assert write_card(tmp_path, info, settings, 4, USUAL)
    assert "tuned on 4" in card.read_text()
    card.write_text("my own words")
    assert not write_card(tmp_path, info, settings, 5, USUAL)
    assert card.read_text() == "my own words"


def test_only_pictures_that_are_there_are_shown(info, settings, tmp_path):
    (tmp_path / "previews").mkdir()
    told = settings.model_copy(update={"preview_prompts": ("one", "two")})
    for name in ("step-000001-2.png", "step-000001.png", "step-000009-1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "previews" / name)
    write_card(tmp_path, info, told, 3, USUAL)
    (shown,) = ModelCard.load(tmp_path / "README.md").data.widget
    assert (shown["text"], shown["output"]["url"]) == ("two", "previews/step-000001-2.png")
