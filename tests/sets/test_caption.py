"""Joint captions: exact round trips, and errors that point at the place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclora.errors import CaptionError
from iclora.sets.caption import JointCaption, check_budget, has_markers

SCENES = ("[SCENE-1]", "[SCENE-2]", "[SCENE-3]")
WORDS = st.text(st.characters(exclude_characters="[]", exclude_categories=("Cs",)), max_size=60)


@given(WORDS, st.lists(WORDS.map(lambda w: f"{w}x{w}"), min_size=3, max_size=3))
@settings(max_examples=200, deadline=None)
def test_rendering_what_was_parsed_gives_the_same_text(overview, panels):
    text = overview + "".join(m + p for m, p in zip(SCENES, panels, strict=True))
    caption = JointCaption.parse(text, SCENES)
    assert caption.render() == text
    assert (caption.overview, list(caption.panels)) == (overview, panels)


@given(st.text(alphabet="[]SCEN-123 ax\n", max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_is_either_refused_or_comes_back_exactly(text):
    try:
        caption = JointCaption.parse(text, SCENES)
    except CaptionError:
        return
    assert caption.render() == text


def test_joining_words_tags_and_names_stay_where_they_stand():
    text = (
        "[MOVIE-SHOTS] Two shots [WIDE] of <Ana>: [SCENE-1] <Ana> runs, while [SCENE-2] the dog "
        "waits; and finally, [SCENE-3] they meet."
    )
    caption = JointCaption.parse(text, SCENES)
    assert caption.overview == "[MOVIE-SHOTS] Two shots [WIDE] of <Ana>: "
    assert caption.words == ("<Ana> runs, while", "the dog waits; and finally", "they meet.")


def test_four_panel_is_a_tag_and_no_marker():
    corners = ("[TOP-LEFT]", "[TOP-RIGHT]", "[BOTTOM-LEFT]", "[BOTTOM-RIGHT]")
    text = "[FOUR-PANEL] A boy; " + " ".join(f"{m} he stands" for m in corners)
    assert JointCaption.parse(text, corners).overview == "[FOUR-PANEL] A boy; "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[SCENE-1] a [SCENE-3] c", r"\[SCENE-2\] is missing"),
        ("[SCENE-1] a [SCENE-2] b", r"\[SCENE-3\] is missing"),
        ("no marker at all", r"\[SCENE-1\] is missing"),
        ("[SCENE-1] a [SCENE-1] b [SCENE-2] c [SCENE-3] d", "a second time"),
        ("[SCENE-2] a [SCENE-1] b [SCENE-3] c", r"\[SCENE-2\] comes before \[SCENE-1\]"),
        ("[SCENE-1] a [SCENE-2] b [SCENE-3] c [SCENE-4] d", r"\[SCENE-4\] is not a panel"),
        ("[SCENE-1] a [LEFT] b [SCENE-2] c [SCENE-3] d", r"\[LEFT\] is not a panel"),
        ("[SCENE-1] a [Scene 2] b [SCENE-3] c", r"misspelt marker"),
        ("[SCENE-1] a [SCENE-2], [SCENE-3] c", r"no words behind \[SCENE-2\]"),
        ("[SCENE-1] a [SCENE-2] b [SCENE-3]", r"no words behind \[SCENE-3\]"),
    ],
)
def test_wrong_markers_are_refused_with_what_is_wrong(text, says):
    with pytest.raises(CaptionError, match=says):
        JointCaption.parse(text, SCENES)


def test_the_error_shows_the_caption_and_points_at_the_place():
    text = "x" * 100 + " [SCENE-1] a\nb [SCENE-1] c"
    with pytest.raises(CaptionError) as caught:
        JointCaption.parse(text, SCENES)
    line, pointer = caught.value.problem.splitlines()[1:]
    assert line[pointer.index("^") :].startswith("[SCENE-1] c")


def test_separate_texts_join_into_one_that_parses_back():
    caption = JointCaption.join("A day.", ["one,", " two,", "three."], SCENES, "[MOVIE-SHOTS]")
    assert caption.render() == (
        "[MOVIE-SHOTS] A day. [SCENE-1] one, [SCENE-2] two, [SCENE-3] three."
    )
    with pytest.raises(CaptionError, match="no words"):
        JointCaption.join("A day.", ["one", " ", "three"], SCENES)
    with pytest.raises(CaptionError, match="second time"):
        JointCaption.join("A day.", ["one [SCENE-1]", "two", "three"], SCENES)
    with pytest.raises(CaptionError, match="2 panel texts"):
        JointCaption.join("A day.", ["one", "two"], SCENES)


def test_markers_are_noticed_in_any_spelling_and_tags_are_not():
    assert has_markers("a [scene 2] b", SCENES)
    assert has_markers("a [TOP-LEFT] b", SCENES)
    assert not has_markers("[MOVIE-SHOTS] a boy [FOUR-PANEL]", SCENES)


def test_a_text_over_the_budget_is_refused_and_names_what_would_be_lost():
    text = " ".join(f"w{i}" for i in range(600))

    def count(words):
        return len(words.split())

    assert check_budget(text, count, 600, "it") == 600
    with pytest.raises(CaptionError, match=r"it is 600 tokens long and the base reads 512.*w51\d"):
        check_budget(text, count, 512, "it")


TOLD = "Two friends, [LEFT] <Ana> waves, while [RIGHT] <Ben> sleeps."


def test_each_panel_reads_the_overview_and_its_own_words_alone():
    caption = JointCaption.parse(TOLD, ("[LEFT]", "[RIGHT]"))
    assert caption.texts("joint") == (TOLD,)
    assert caption.texts("isolated") == (
        "Two friends, [LEFT] <Ana> waves, while",
        "Two friends, [RIGHT] <Ben> sleeps.",
    )
    assert caption.texts("alone") == ("[LEFT] <Ana> waves, while", "[RIGHT] <Ben> sleeps.")


def test_the_text_of_an_only_panel_is_the_whole_caption():
    text = "A day, [TOP] the sea, "
    assert JointCaption.parse(text, ("[TOP]",)).texts("isolated") == (text,)
