"""The drawn world: deterministic and known."""

import random

import numpy as np
import pytest

from iclora.toyland.drawing import SIZE
from iclora.toyland.world import IDENTITY, TOPICS, TRAITS, Panel, draw_canvas, draw_traits


def canvases(count=60):
    for seed in range(count):
        rng = random.Random(seed)
        yield rng, draw_canvas(rng)


@pytest.mark.parametrize("topic", list(TOPICS))
def test_the_same_panel_is_drawn_the_same_twice_and_another_seed_moves_it(topic):
    traits = draw_traits(random.Random(3), topic)
    first, again, other = (Panel(topic, traits, s).render() for s in (5, 5, 6))
    assert first.size == (SIZE, SIZE)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("topic", list(TOPICS))
def test_changing_any_trait_changes_the_picture(topic):
    traits = draw_traits(random.Random(1), topic)
    before = np.asarray(Panel(topic, traits, 0).render()).astype(float)
    for name in TOPICS[topic]:
        for value in TRAITS[name]:
            if value != traits[name]:
                after = np.asarray(Panel(topic, {**traits, name: value}, 0).render()).astype(float)
                assert np.abs(after - before).max() > 8, (name, value)


def test_related_canvases_share_their_identity_and_are_about_half():
    related = [c for _, c in canvases(400) if c.relation]
    several = [c for _, c in canvases(400) if len(c.panels) > 1]
    assert 0.4 < len(related) / len(several) < 0.7
    for canvas in related:
        for name in IDENTITY[canvas.panels[0].topic]:
            assert len({panel.traits[name] for panel in canvas.panels}) == 1
