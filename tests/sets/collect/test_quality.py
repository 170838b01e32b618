"""Scores of sets: each defect lowers them and is named, and good sets have none."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from iclora.sets.collect.picture import glance
from iclora.sets.collect.quality import fineness, judge
from iclora.sets.recipe import Recipe, load_recipe

RECIPE = Recipe.model_validate(
    {
        **load_recipe("sandstorm-effect").model_dump(),
        "layout": {"per_row": (1, 1), "width": 256, "height": 512},
    }
)


@pytest.fixture(scope="module")
def panels():
    """Two sharp pictures of some subject, 256 px."""
    from iclora.toyland.drawing.characters import draw_character
    from iclora.toyland.tasks import TASKS, draw_tuning_set

    canvas, _ = draw_tuning_set(TASKS["film-storyboard"], 0, 1)
    drawn = [draw_character(panel.traits, random.Random(7)) for panel in canvas.panels[:2]]
    grain = Image.effect_noise((256, 256), 12).convert("RGB")
    return [Image.blend(each.convert("RGB"), grain, 0.1) for each in drawn]


def judged(panels):
    return judge(RECIPE, panels, [glance(panel) for panel in panels])


def again(image, quality):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def test_good_panels_have_no_reason_against_them(panels):
    assert judged(panels).reasons == ()
    assert judged(panels).score == 1


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda p: p.resize((96, 96)), "of 96x96 px for a box of 256x256"),
        (lambda p: p.resize((96, 96)).resize((256, 256), Image.Resampling.BICUBIC), "enlarged"),
        (lambda p: p.resize((512, 512)).resize((1536, 1536), Image.Resampling.BICUBIC), "enlarged"),
        (lambda p: p.filter(ImageFilter.GaussianBlur(2)), "blurred"),
        (lambda p: again(p, 4), "strong compression"),
        (lambda p: ImageOps.expand(p.crop((0, 30, 256, 226)), (0, 30), "black"), "bars"),
        (lambda p: Image.new("RGB", p.size, "grey"), "without anything to see"),
    ],
)
def test_every_defect_lowers_the_score_and_is_named(panels, spoil, word):
    quality = judged([panels[0], spoil(panels[1])])
    assert [reason for reason in quality.reasons if word in reason and "panel 2" in reason]
    assert quality.score < 0.95


def test_a_page_that_is_empty_in_most_places_is_not_blurred():
    page = Image.new("RGB", (880, 660), "white")
    pen = ImageDraw.Draw(page)
    for shade in range(10):  # soft shadows have more of their detail at a coarse scale
        pen.rectangle((60 + shade, 280 + shade, 820 - shade, 340 - shade), (120 + 13 * shade,) * 3)
    pen.text((330, 300), "A plan for the year", "black", ImageFont.load_default(22))
    pen.text((390, 400), "by Ana", "black", ImageFont.load_default(14))
    assert fineness(np.asarray(page.convert("L"), dtype=np.float32)) > 0.5
    soft = page.filter(ImageFilter.GaussianBlur(3))
    assert fineness(np.asarray(soft.convert("L"), dtype=np.float32)) < 0.38


def test_panels_that_are_all_the_same_or_strangers_are_named(panels):
    assert judged([panels[0], panels[0]]).reasons == ("all panels show the same",)
    green = ImageOps.colorize(panels[1].convert("L"), "black", "#00ff00")
    red = ImageOps.colorize(panels[1].convert("L"), "#400000", "#ff0000")
    assert any("nothing beside looks like it" in reason for reason in judged([red, green]).reasons)
