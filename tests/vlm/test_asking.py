"""What a model is told, and which answers count as captions."""

import json

import pytest
from PIL import Image

from iclora.errors import CaptionError
from iclora.sets.caption import estimate_tokens
from iclora.sets.recipe import load_recipe, recipe_names
from iclora.vlm.asking import ask_about, ask_for_prompt, read_answer, shrink

STORY = load_recipe("film-storyboard")
TEXTS = ["<Ana> rows out.", "A gull lands on the oar.", "She sleeps under the sail."]
GOOD = json.dumps({"overview": "A quiet day at sea.", "panels": TEXTS})
RENDERED = (
    "[MOVIE-SHOTS] A quiet day at sea. [SCENE-1] <Ana> rows out. [SCENE-2] A gull lands on the "
    "oar. [SCENE-3] She sleeps under the sail."
)


def read(text, recipe=STORY, limit=512):
    return read_answer(text, recipe, estimate_tokens, limit).render()


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        RENDERED,
        RENDERED.removeprefix("[MOVIE-SHOTS] "),
        RENDERED.replace(" [SCENE", "\n\n[SCENE").replace("] ", "]: "),
        json.dumps(
            {
                "overview": "[MOVIE-SHOTS] A quiet day at sea.",
                "panels": [f"[SCENE-{n}] {t}" for n, t in enumerate(TEXTS, 1)],
            }
        ),
    ],
)
def test_every_usual_way_to_write_an_answer_gives_the_same_caption(text):
    assert read(text) == RENDERED


def _json(overview="A day at sea.", panels=TEXTS):
    return json.dumps({"overview": overview, "panels": panels})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD[:-20], "not a whole JSON object"),
        (_json(panels=TEXTS[:2]), "2 panel texts for 3 panels"),
        (_json(panels=[*TEXTS, "More."]), "4 panel texts for 3 panels"),
        (_json(panels=[TEXTS[0], TEXTS[1], " "]), "panel 3 has no words"),
        (_json(panels=[TEXTS[0], "A gull!", "a gull"]), "panels 2 and 3 are described in nearly"),
        (_json(panels=[TEXTS[0], "and [SCENE-2] a gull", TEXTS[2]]), "panel 2 holds a marker"),
        (_json(overview="See [SCENE-1]"), "overview holds a marker"),
        (_json(overview=" "), "no overview"),
        (_json(overview="I\u2019m sorry, but no."), 'refuses: "I\'m sorry, but no."'),
        (_json(panels=[*TEXTS[:2], "I can't identify people."]), "refuses: \"I can't identify"),
        ("<think>Three pictures. I wonder", "beyond its thoughts"),
        (_json(overview="I'm sorry, I cannot help with that."), "refuses"),
        ("I'm sorry, but I can't describe people.", "refuses"),
        (RENDERED.replace("[SCENE-2]", "[SCENE-4]"), "[SCENE-4] is not a panel of this layout"),
        (_json(panels=[TEXTS[0], TEXTS[1], "word " * 3000]), "tokens long and the base reads 512"),
        ("x" * 10_000_000, "10,000,000 characters"),
        ('{"overview": 3, "panels": "x"}', "must be a string"),
        ("", "empty"),
        (_json(panels=[{"a": "a boy", "b": "a gull"}, *TEXTS[1:]]), "not a string"),
        (_json(overview="\ud83d sea"), "half a character"),
        ('{"a":' + "[" * 19_000, "not a whole JSON object"),
    ],
)
def test_an_answer_that_is_no_caption_is_refused_with_the_reason(text, problem):
    with pytest.raises(CaptionError) as refused:
        read(text)
    assert problem in refused.value.problem


def test_a_model_is_told_the_recipes_instruction_its_markers_and_how_long_it_may_write():
    picture = Image.new("RGB", (8, 8))
    for name in recipe_names():
        recipe = load_recipe(name)
        ask = ask_about(recipe, [picture] * len(recipe.markers), 512)
        assert recipe.instruction.strip() in ask.as_text
        assert all(marker in ask.as_text for marker in recipe.markers)
        assert "at most 268 words" in ask.as_json
        assert ask.schema["properties"]["panels"]["maxItems"] == len(recipe.markers)
        assert "one canvas" in ask_about(recipe, [picture], 512).words


def test_texts_that_are_encoded_apart_may_each_be_as_long_as_the_base_reads():
    long = json.dumps({"overview": "A day.", "panels": [f"{t} {'word ' * 40}" for t in TEXTS]})
    longest = max(map(estimate_tokens, STORY.texts(read(long), "isolated")))
    assert longest < estimate_tokens(read(long))
    with pytest.raises(CaptionError, match="the caption"):
        read(long, limit=longest)
    for kind in ("isolated", "alone"):
        found = read_answer(long, STORY, estimate_tokens, longest, kind)
        assert found.render() == read(long)
        with pytest.raises(CaptionError, match="what panel 1 reads"):
            read_answer(long, STORY, estimate_tokens, longest // 2, kind)
        assert "any one picture" in ask_about(STORY, [], 512, kind).words
        assert "any one picture" in ask_for_prompt(STORY, "a day", 512, kind).words


def test_an_idea_is_asked_for_in_the_recipes_form_and_an_empty_one_is_refused():
    ask = ask_for_prompt(STORY, " a shy boy at a carnival ", 512)
    assert "from this idea: a shy boy at a carnival\n" in ask.as_text
    assert STORY.example in ask.words
    assert not ask.pictures
    with pytest.raises(CaptionError, match="empty"):
        ask_for_prompt(STORY, "  ", 512)


def test_pictures_are_scaled_down_and_never_up():
    assert shrink(Image.new("RGB", (3000, 1500)), 768).size == (768, 384)
    assert shrink(Image.new("RGB", (64, 32)), 768).size == (64, 32)
