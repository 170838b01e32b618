"""Figures of bare pixels, and which panels count."""

import numpy as np
import pytest
from PIL import Image

from iclora.evaluate.metrics.base import Made, made_pairs, spread
from iclora.evaluate.metrics.pixels import Pixels, seam
from iclora.sets.canvas import compose
from iclora.sets.layout import Layout
from iclora.sets.recipe import load_recipe
from tests.conftest import picture

STORY = load_recipe("film-storyboard")
ROWS = Layout.rows(3, 32, 96)


def made_of(panels, given=(), words=("one", "two", "three"), recipe=STORY):
    """A set of these panels, one above the other; those given came back as they were."""
    layout = Layout.rows(3, panels[0].width, 3 * panels[0].height)
    return Made(
        recipe,
        layout,
        compose(layout, panels),
        tuple(panels),
        tuple(words),
        {n: panels[n - 1] for n in given},
    )


def figures_of(metric, *sets):
    return list(metric.of_sets(sets))


def test_given_panels_that_came_back_have_no_error_and_others_show_theirs():
    panels = [picture(32, 32, n) for n in range(3)]
    good = made_of(panels, given=(1, 3))
    changed = np.asarray(panels[0]).copy()
    changed[3, 4, 1] ^= 7
    other = {1: Image.fromarray(changed)}
    bad = Made(STORY, ROWS, good.composite, good.panels, (), other)
    # The panel is right, the canvas is not.
    shown = Made(STORY, ROWS, good.composite, (other[1], *panels[1:]), (), other)
    larger = Made(STORY, ROWS, good.composite, good.panels, (), {1: picture(64, 64)})
    errors = [f["given error"] for f in figures_of(Pixels(), good, bad, shown, larger)]
    assert errors[0] == 0
    assert 1 <= errors[1] == errors[2] <= 7
    assert errors[3] == 255
    assert "given error" not in figures_of(Pixels(), made_of(panels))[0]


@pytest.mark.parametrize(
    "layout", [ROWS, Layout.columns(2, 64, 32), Layout.of_rows((2, 2), 64, 64)]
)
def test_a_picture_that_runs_through_has_a_seam_near_1_and_flat_panels_a_high_one(layout):
    noise = np.random.default_rng(0).integers(0, 256, (layout.height, layout.width, 3))
    assert seam(noise.astype(np.uint8), layout) == pytest.approx(1, abs=0.15)
    flat = compose(
        layout,
        [Image.new("RGB", size, (80 * n, 80 * n, 80 * n)) for n, size in enumerate(layout.sizes)],
    )
    assert seam(np.asarray(flat), layout) > 100
    assert seam(np.zeros((layout.height, layout.width, 3), np.uint8), layout) == 1


def test_a_seam_is_the_ratio_of_the_mean_steps():
    layout = Layout.columns(2, 4, 2)
    # Steps of 10 inside both panels from left to right, none downwards, 60 across the border.
    pixels = np.repeat(np.array([[0, 10, 70, 80]] * 2, np.uint8)[..., None], 3, 2)
    assert seam(pixels, layout) == pytest.approx((60 + 0.5) / (10 * 4 / 8 + 0.5))


def test_panels_apart_have_no_seam():
    layout = Layout.free([(0, 0, 16, 16), (32, 0, 16, 16)], 48, 16)
    assert seam(np.zeros((16, 48, 3), np.uint8), layout) is None


def test_pairs_of_two_given_panels_are_nobodys_doing():
    panels = [picture(32, 32, n) for n in range(3)]
    assert made_pairs(made_of(panels)) == [(0, 1), (0, 2), (1, 2)]
    assert made_pairs(made_of(panels, given=(1,))) == [(0, 1), (0, 2), (1, 2)]
    assert made_pairs(made_of(panels, given=(1, 2))) == [(0, 2), (1, 2)]


def test_the_spread_is_over_made_panels_and_all_pairs_of_seeds():
    sets = [made_of([picture(32, 32, n) for n in range(3)], given=(2,)) for _ in range(3)]
    asked = []

    def unlike(a, b, panel):
        asked.append((a, b, panel))
        return float(b)

    assert spread(sets, unlike) == pytest.approx((1 + 2 + 2) / 3)
    assert asked == [(a, b, n) for a, b in ((0, 1), (0, 2), (1, 2)) for n in (0, 2)]
