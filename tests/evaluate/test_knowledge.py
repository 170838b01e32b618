"""Prompts from outside a task: the same picture at strength 0, and figures that can tell."""

import json
import random

import numpy as np
import pytest
import tomli_w

from iclora.errors import CaptionError, RecipeError, SettingsError
from iclora.evaluate.knowledge import at_strengths, cases_from_outside, read_outside, single
from iclora.evaluate.metrics.base import Made
from iclora.evaluate.metrics.judge import Judge
from iclora.evaluate.metrics.likeness import Clip, Dino
from iclora.evaluate.run import evaluate
from iclora.evaluate.setup import Arm, arms_of, set_up
from iclora.making.made import GeneratedSet
from iclora.sets.layout import Layout
from iclora.sets.recipe import load_recipe, read_recipe
from iclora.settings import SampleSettings
from iclora.toyland.metric import Toyland, topic_of
from iclora.toyland.wording import draw_caption
from iclora.toyland.world import draw_canvas
from tests.conftest import picture

PAIR = "[LEFT] Ana laughs, [RIGHT] Bo looks away."


@pytest.fixture
def outside(tmp_path):
    """Two prompts of single pictures of 64x48 px, and one of two panels on a canvas of 64x32."""
    (tmp_path / "pictures.txt").write_text("A tree.\nA boat at sea.\n")
    (tmp_path / "pairs.txt").write_text(PAIR + "\n")
    text = load_recipe("couple-profile").model_dump(mode="json", exclude_defaults=True)
    text["layout"] |= {"width": 64, "height": 32}
    (tmp_path / "pair.toml").write_text(tomli_w.dumps(text))
    files = [str(tmp_path / "pictures.txt"), f"{tmp_path / 'pair.toml'}={tmp_path / 'pairs.txt'}"]
    return read_outside(files, (64, 48))


def test_at_strength_0_every_byte_is_the_bases_and_at_1_none_need_be(
    clean, lora, outside, tmp_path, dino_folder
):
    arms = at_strengths(arms_of([str(lora)]), (0.0, 1.0))
    assert [arm.name for arm in arms] == ["base", "run at 0", "run at 1"]
    cases = cases_from_outside(outside, [5, 6])
    settings = SampleSettings(steps=2, size=(96, 192))
    setup = set_up(clean, outside["single-picture"][0], arms, cases, tmp_path / "out", settings)
    table = evaluate(clean, setup, [dino := Dino(str(dino_folder), "cpu")])
    sizes = [each.layout.size for each in setup.requests["base"]]
    # An adapter's canvas, or the one that is asked for, is not that of other recipes.
    assert sizes == [(64, 48)] * 2 + [(64, 32)] * 2 + [(64, 48)] * 2
    for number in range(len(cases)):
        base, at_0, at_1 = (GeneratedSet.load(setup.folder(arm, number)) for arm in arms)
        assert base.request.seeds == at_0.request.seeds == at_1.request.seeds
        assert base.composite.tobytes() == at_0.composite.tobytes()
        assert base.composite.tobytes() != at_1.composite.tobytes()
    distance = table.rows["pixels distance"]
    assert set(distance.values["run at 0"].values()) == {0.0}
    assert "base" not in distance.values
    base, other = (
        np.asarray(GeneratedSet.load(setup.folder(arm, 0)).composite).astype(int)
        for arm in (arms[0], arms[2])
    )
    found = distance.values["run at 1"]["single-picture, prompt 1, seed 5"]
    assert found == pytest.approx(np.abs(base - other).mean())
    # A model of pictures sees the same: on one canvas of each arm, over prompts, with an interval.
    likeness = table.rows["dino as the first"]
    assert list(likeness.values["run at 0"].values()) == pytest.approx([1] * 6, abs=1e-5)
    panels = [
        GeneratedSet.load(setup.folder(arm, number)).panels[0]
        for number in (0, 1)
        for arm in (arms[0], arms[2])
    ]
    seen = dino.pictures(panels)
    for seed, first, mine in zip((5, 6), seen[::2], seen[1::2], strict=True):
        found = likeness.values["run at 1"][f"single-picture, prompt 1, seed {seed}"]
        assert found == pytest.approx(float(first @ mine), abs=1e-5)
    mean = likeness.estimate("run at 1")
    assert mean.low < mean.mean < mean.high < 1
    spread = table.rows["dino diversity"].values
    assert spread["run at 0"] == pytest.approx(spread["base"], abs=1e-5)


def test_figures_of_each_recipe_stand_apart_and_the_page_shows_all_pictures(
    clean, lora, outside, tmp_path
):
    arms = at_strengths(arms_of([str(lora)]), (0.5,))
    cases = cases_from_outside(outside, [0])
    # Recipes take turns, so that the first pictures of a page are of all of them.
    assert [case.name for case in cases] == [
        "single-picture, prompt 1",
        "couple-profile, prompt 1",
        "single-picture, prompt 2",
    ]
    setup = set_up(clean, cases[0].recipe, arms, cases, tmp_path, SampleSettings(steps=1))
    table = evaluate(clean, setup)
    rows = table.rows
    assert rows["pixels distance"].estimate("run at 0.5").count == 3
    assert rows["pixels distance, couple-profile"].estimate("run at 0.5").count == 1
    whole = rows["pixels distance"].values["run at 0.5"]
    parts = rows["pixels distance, single-picture"].values["run at 0.5"]
    assert whole == parts | rows["pixels distance, couple-profile"].values["run at 0.5"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 6
    assert "outside the adapters' task" in page
    assert "64x48, 64x32" in page
    kept = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert kept["recipe"] == "single-picture, couple-profile"


def test_files_and_prompts_that_cannot_be_meant_are_refused(outside, tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(SettingsError, match="holds no prompt"):
        read_outside([str(tmp_path / "empty.txt")])
    twice = [str(tmp_path / "pictures.txt")] * 2
    with pytest.raises(SettingsError, match="single-picture is named twice"):
        read_outside(twice)
    with pytest.raises(RecipeError, match="no recipe"):
        read_outside([f"what={tmp_path / 'pictures.txt'}"])
    with pytest.raises(CaptionError, match=r"prompt 1 of single-picture.*names panels"):
        cases_from_outside({"single-picture": (single(), [PAIR])}, [0])
    with pytest.raises(CaptionError, match=r"prompt 1 of couple-profile.*RIGHT"):
        cases_from_outside({"couple-profile": (outside["couple-profile"][0], ["[LEFT] a"])}, [0])
    with pytest.raises(SettingsError, match="panels of a set"):
        Judge.check(object.__new__(Judge), single())


def test_a_single_picture_is_no_set(tmp_path):
    assert Layout.free([(0, 0, 64, 64)], 64, 64).single
    assert not Layout.columns(2, 64, 64).single
    text = load_recipe("couple-profile").model_dump(mode="json", exclude_defaults=True)
    text |= {"markers": [], "example": "A tree.", "prefix": "", "usually_known": []}
    text["layout"] = {"width": 64, "height": 64, "boxes": [[0, 0, 64, 64]]}
    with pytest.raises(RecipeError, match="single picture; a set has 2 to 9 panels"):
        read_recipe(tomli_w.dumps(text), "mine")


def test_a_picture_is_likest_itself(dino_folder, clip_folder):
    def made(*seeds):
        panels = tuple(picture(64, 64, seed) for seed in seeds)
        layout = Layout.free([(0, 0, 64, 64)], 64, 64)
        return Made(single((64, 64)), layout, panels[0], panels, ("a tree",))

    for metric in (Dino(str(dino_folder), "cpu"), Clip(str(clip_folder), "cpu")):
        same, other = metric.beside([(made(1), made(1)), (made(1), made(2))])
        assert same["as the first"] == pytest.approx(1, abs=1e-5)
        assert other["as the first"] < 0.999
        # One picture has no panels to agree, nor words of others to leak.
        (figures,) = metric.of_sets([made(1)])
        assert set(figures) <= {"adherence"}


def test_toylands_judge_reads_single_pictures_by_what_their_words_say():
    rng, sets, firsts = random.Random(3), [], []
    for _ in range(12):
        canvas = draw_canvas(rng, None, "single")
        caption, (panel,) = draw_caption(rng, canvas), canvas.panels
        assert topic_of(caption.text) == panel.topic
        shown = (panel.render(),)
        layout = Layout.free([(0, 0, 64, 64)], 64, 64)
        sets.append(Made(single((64, 64)), layout, shown[0], shown, (caption.text,)))
        firsts.append(panel)
    metric = Toyland()
    metric.check(single())
    for figures, panel, made in zip(metric.of_sets(sets), firsts, sets, strict=True):
        assert figures.get("as told", 1.0) == 1.0, (panel, made.words)
        assert not any(name.startswith("same") for name in figures)
    assert [f["as the first"] for f in metric.beside(zip(sets, sets, strict=True))] == [1.0] * 12
    bear, frog = (
        Made(single((64, 64)), sets[0].layout, p, (p,), ("a red bear in a hat",))
        for p in (draw_panel("bear", "red").render(), draw_panel("frog", "red").render())
    )
    (wrong,) = metric.of_sets([frog])
    assert (wrong["stated kind"], wrong["stated colour"], wrong["as told"]) == (0, 1, 0.5)
    (share,) = metric.beside([(frog, bear)])
    assert share["as the first"] == pytest.approx(5 / 6)
    # Kind and colour are said; the headwear is left open.
    assert metric.across_seeds([bear, bear]) == {"diversity": 0.0}


def draw_panel(kind, colour):
    from iclora.toyland.world import Panel

    own = {"headwear": "crown", "scene": "beach", "position": "left", "pose": "still"}
    return Panel(
        "character", {"kind": kind, "colour": colour, **own, "style": "flat", "weather": "clear"}, 1
    )


def test_the_base_is_one_arm_whatever_the_strengths():
    assert at_strengths([Arm("base")], (0, 0.5)) == [Arm("base")]
