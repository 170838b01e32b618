"""Arms and cases: fair to all arms, and whatever cannot work is said before anything is made."""

from dataclasses import replace

import pytest
from PIL import Image

from iclora.adapter import Adapter
from iclora.errors import AdapterError, CaptionError, ImageError, SettingsError
from iclora.evaluate.setup import Arm, arms_of, cases_of_data, cases_of_prompts, set_up
from iclora.sets.dataset import open_dataset
from iclora.sets.recipe import load_recipe
from iclora.settings import SampleSettings
from tests.conftest import CAPTION, picture

STORY = load_recipe("film-storyboard")
SMALL = SampleSettings(size=(96, 192))


def test_arms_are_the_base_and_every_adapter_in_every_mode(lora, tmp_path):
    other = lora.rename(tmp_path / "other.safetensors")
    lora.write_bytes(other.read_bytes())
    arms = arms_of([str(lora), f"mine={other}", str(other)], ["sdedit", "clean"])
    assert [arm.name for arm in arms] == [
        f"{name}, {mode}"
        for name in ("base", "run", "mine", "other")
        for mode in ("sdedit", "clean")
    ]
    assert arms[0].adapter is None
    assert arms[2].folder == "run-sdedit"
    assert [arm.name for arm in arms_of([])] == ["base"]
    with pytest.raises(AdapterError, match="nothing-here"):
        arms_of(["nothing-here.safetensors"])


def test_all_arms_paint_a_case_on_one_canvas_from_the_same_noise(clean, lora, tmp_path):
    cases = cases_of_prompts([CAPTION, CAPTION], [3, 4], {})
    found = set_up(clean, STORY, arms_of([str(lora)]), cases, tmp_path / "out")
    base, mine = found.requests["base"], found.requests["run"]
    assert [case.key for case in cases] == [
        "prompt 1, seed 3",
        "prompt 1, seed 4",
        "prompt 2, seed 3",
        "prompt 2, seed 4",
    ]
    assert [r.seeds for r in base] == [r.seeds for r in mine]
    assert len({r.seeds for r in base}) == 2
    # The adapter's, not the recipe's megapixel.
    assert {r.layout.size for r in (*base, *mine)} == {(96, 192)}
    assert base[0].adapter_sha256 == ""
    assert mine[0].adapter_sha256 != ""


def test_arms_whose_panels_read_other_texts_are_named(clean, lora, tmp_path):
    adapter = Adapter.load(lora)
    apart = replace(adapter, info=adapter.info.model_copy(update={"text": "isolated"}))
    arms, cases = [Arm("base"), Arm("mine", apart)], cases_of_prompts([CAPTION], [0])
    says = "panels read other texts by arm: joint in base, isolated in mine; set `text`"
    for text, said in ((None, True), ("isolated", False)):
        settings = SampleSettings(size=(96, 192), **({} if text is None else {"text": text}))
        found = set_up(clean, STORY, arms, cases, tmp_path / str(text), settings)
        assert any(note.startswith(says) for note in found.notes) == said


def test_an_arm_s_own_settings_are_its_own(clean, tmp_path):
    arms = [Arm("plain"), Arm("repeated", own={"resample": 2, "steps": 3})]
    cases = cases_of_prompts([CAPTION], [0])
    settings = SampleSettings(size=(96, 192), steps=4)
    found = set_up(clean, STORY, arms, cases, tmp_path / "out", settings).requests
    assert [(r.resample, r.steps) for (r,) in found.values()] == [(0, 4), (2, 3)]
    with pytest.raises(SettingsError, match="resampled"):
        set_up(clean, STORY, [Arm("odd", own={"resampled": 2})], cases, tmp_path / "odd", settings)


def test_arms_that_read_panels_apart_take_prompts_too_long_for_one_text(clean, tmp_path):
    words = "a hat on a table " * (clean.max_text_tokens // 10)
    panels = " ".join(f"[SCENE-{n}] {words}" for n in (1, 2, 3))
    cases = cases_of_prompts([f"[MOVIE-SHOTS] A tale, {panels}"], [0])
    arm = Arm("isolated", own={"text": "isolated"})
    found = set_up(clean, STORY, [arm], cases, tmp_path / "out", SMALL)
    assert found.requests["isolated"][0].text == "isolated"
    with pytest.raises(CaptionError, match="tokens long"):
        set_up(clean, STORY, [Arm("joint")], cases, tmp_path / "odd", SMALL)


def test_a_dataset_gives_its_captions_and_its_own_panels(make_dataset):
    dataset = open_dataset(make_dataset(2))
    cases = cases_of_data(dataset, [1, 3], [0, 1])
    assert [case.key for case in cases] == [
        "0001, seed 0",
        "0001, seed 1",
        "0002, seed 0",
        "0002, seed 1",
    ]
    assert "Ana1" in cases[2].prompt
    panels = dataset.sets[1].load(dataset.recipe).panels
    assert {n: p.tobytes() for n, p in cases[2].given.items()} == {
        1: panels[0].tobytes(),
        3: panels[2].tobytes(),
    }
    assert not cases_of_data(dataset, [], [0])[0].given
    with pytest.raises(SettingsError, match="no panel 4"):
        cases_of_data(dataset, [1, 4], [0])


def test_a_given_panel_of_which_nothing_shows_is_refused_unless_its_background_shows_it(
    make_dataset,
):
    root = make_dataset(1)
    mark = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    mark.paste("white", (8, 8, 40, 24))
    mark.save(root / "0001" / "2.png")
    with pytest.raises(ImageError, match=r"panel 2 of set .0001. is transparent.*white"):
        cases_of_data(open_dataset(root), [1, 2], [0])
    (case,) = cases_of_data(open_dataset(root, background="#204060"), [1, 2], [0])
    assert case.given[2].getpixel((0, 0)) == (0x20, 0x40, 0x60)
    assert cases_of_data(open_dataset(root), [1], [0])


def test_what_cannot_work_is_refused_before_anything_is_made(clean, tmp_path):
    out = tmp_path / "out"
    good = cases_of_prompts([CAPTION], [0], {})
    with pytest.raises(CaptionError, match="SCENE-3"):
        set_up(
            clean,
            STORY,
            [Arm("base")],
            [*good, *cases_of_prompts([CAPTION.replace("[SCENE-3]", "")], [0], {})],
            out,
            settings=SMALL,
        )
    with pytest.raises(SettingsError, match="no panel is given"):
        set_up(clean, STORY, arms_of([], ["clean"]), good, out, settings=SMALL)
    with pytest.raises(SettingsError, match="two arms"):
        set_up(clean, STORY, [Arm("a b"), Arm("a/b")], good, out, settings=SMALL)
    assert not out.exists()
    out.write_text("")
    with pytest.raises(SettingsError, match="is a file"):
        set_up(clean, STORY, [Arm("base")], good, out, settings=SMALL)


def test_a_mode_an_adapter_never_learnt_is_noted_with_its_arm(clean, tmp_path):
    cases = cases_of_prompts([CAPTION], [0], {1: picture(96, 64)})
    arms = arms_of([], ["sdedit", "clean"])
    notes = set_up(clean, STORY, arms, cases, tmp_path, SMALL).notes
    assert [n.split(":")[0] for n in notes if "not trained" in n] == ["base, clean"]
