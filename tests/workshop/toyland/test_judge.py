"""The judge reads true renderings right."""

import pytest

from workshop.toyland.judge import measure


@pytest.mark.parametrize("topic", ["emblem", "letter", "slide"])
def test_every_trait_of_true_renderings_is_read_right(topic):
    assert min(measure(topic, 40, seed=1).values()) >= 0.99


def test_every_trait_of_flat_characters_is_read_right():
    scores = measure("character", 40, 1, {"style": "flat", "weather": "clear"})
    assert min(scores.values()) >= 0.99
