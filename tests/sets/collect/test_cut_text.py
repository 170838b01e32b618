"""Text that an edge cuts, on drawn pages whose lines are known."""

import random

import pytest

from iclora.sets.collect.cut_text import cut_text
from iclora.toyland.tasks import TASKS, draw_set
from workshop.collecting.flaws import cut_page, draw_page


@pytest.mark.parametrize("side", ["left", "top", "right", "bottom"])
def test_a_line_that_an_edge_cuts_is_told_with_its_side_and_whole_pages_are_not(side):
    rng = random.Random(f"cut {side}")
    for _ in range(2):
        page, lines = draw_page(rng)
        assert cut_text(page) == ()
        if cut := cut_page(page, lines, side, rng):
            assert cut_text(cut) == (side,)


def test_drawings_without_text_are_accused_of_none():
    for task in TASKS.values():
        for panel in draw_set(task, random.Random(3))[0].panels:
            assert cut_text(panel.render().resize((256, 256))) == ()
