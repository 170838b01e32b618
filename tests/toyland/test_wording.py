"""Captions: read by the recipes' markers, true of their panels, and read back to traits."""

import random

from iclora.sets.caption import JointCaption
from iclora.toyland.wording import draw_caption, idea_of, traits_said
from iclora.toyland.world import ARRANGEMENTS, IDENTITY, draw_canvas


def canvases(count=60):
    for seed in range(count):
        rng = random.Random(seed)
        yield rng, draw_canvas(rng)


def test_captions_are_read_back_by_the_markers_of_their_arrangement():
    for rng, canvas in canvases():
        caption = draw_caption(rng, canvas)
        markers = ARRANGEMENTS[canvas.arrangement].markers
        if markers:
            assert JointCaption.parse(caption.text, markers).render() == caption.text
            for marker, (start, end) in zip(markers, caption.spans, strict=True):
                assert caption.text[start:end].startswith(marker)


def test_what_a_caption_states_is_true_of_its_panel():
    for rng, canvas in canvases(200):
        caption = draw_caption(rng, canvas)
        for panel, said in zip(canvas.panels, caption.said, strict=True):
            assert said.items() <= panel.traits.items()


def test_identity_is_often_left_unsaid_in_related_canvases():
    unsaid = related = 0
    for rng, canvas in canvases(600):
        if canvas.relation:
            caption = draw_caption(rng, canvas)
            identity = set(IDENTITY[canvas.panels[0].topic])
            related += 1
            unsaid += not any(identity & set(said) for said in caption.said)
    assert unsaid > 0.3 * related


def test_words_are_read_back_to_the_traits_they_state():
    rng = random.Random(0)
    for _ in range(300):
        canvas = draw_canvas(rng)
        caption = draw_caption(rng, canvas)
        topic = canvas.panels[0].topic
        for (start, end), said in zip(caption.spans, caption.said, strict=True):
            stated = {t: v for t, v in said.items() if t not in caption.shared}
            found = traits_said(caption.text[start:end], topic)
            assert {**found, **caption.shared} == {**stated, **caption.shared}


def test_an_idea_states_just_what_it_was_given():
    rng = random.Random(0)
    for _ in range(50):
        panel = draw_canvas(rng, "character").panels[0]
        said = {t: panel.traits[t] for t in ("kind", "colour")}
        assert traits_said(idea_of(rng, "character", said), "character") == said
