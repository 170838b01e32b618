"""Pictures cut apart at gutters beside the usual place of a seam."""

import numpy as np
import pytest

from iclora.sets.cutting import cut_apart
from tests.sets.test_bars import smooth

GREY = np.full(3, 192.0, dtype=np.float32)


def stack(first, gutter, behind):
    """Two pictures of 200 px above each other, lines `gutter` of grey between them."""
    pictures = [np.array(smooth(n, 200, high)) for n, high in ((1, first), (2, behind))]
    # The second one ends clearly, and has a line of its own just in the middle of both.
    pictures[1][[0, 300 - first - gutter]] = 20
    between = np.full((gutter, 200, 3), 192, dtype=np.uint8)
    return np.concatenate([pictures[0], between, pictures[1]]).astype(np.float32)


@pytest.mark.parametrize(("first", "width"), [(288, None), (270, 12)])
def test_a_gutter_of_the_page_is_cut_though_a_line_shows_at_the_usual_place(first, width):
    pixels = stack(first, 12, 588 - first)
    cut = cut_apart(pixels, [0.5, 1], GREY, width=width)
    assert cut.spans == [(0, first), (first + 12, 600)]


def test_without_a_page_of_its_colour_such_a_gutter_is_left_and_told():
    cut = cut_apart(stack(288, 12, 300), [0.5, 1])
    assert (cut.spans, cut.guessed) == ([(0, 300), (300, 600)], 1)
