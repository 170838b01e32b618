"""Panels on canvases: no pixel lost, no edge off the grid, seams where they are."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from iclora.errors import LayoutError
from iclora.sets.canvas import compose, split
from iclora.sets.layout import Box, Layout, token_mask
from tests.conftest import picture

ROWS = st.sampled_from(
    [(1, 1), (2,), (1, 1, 1), (3,), (2, 2), (1, 2), (2, 1), (3, 3, 3), (2, 3, 4)]
)


@st.composite
def sets(draw):
    rows = draw(ROWS)
    side = st.integers(200, 3000)
    sizes = [(draw(side), draw(side)) for _ in range(sum(rows))]
    return rows, sizes, draw(st.integers(512, 1536)) ** 2, draw(st.sampled_from([8, 16, 32]))


def tiles(layout: Layout) -> bool:
    covered = np.zeros((layout.height, layout.width), dtype=int)
    for box in layout.boxes:
        covered[box.top : box.bottom, box.left : box.right] += 1
    return bool((covered == 1).all())


@given(sets())
@settings(max_examples=60, deadline=None)
def test_fitting_fills_the_canvas_on_the_grid_within_the_area(case):
    rows, sizes, area, grid = case
    layout = Layout.of_rows(rows, 960, 960).fit(sizes, area, grid)
    layout.check_grid(grid)
    assert tiles(layout)
    assert layout.per_row == rows
    smallest = max(rows) * len(rows) * grid * grid
    assert layout.width * layout.height <= max(area, smallest) or layout.width == max(rows) * grid


def test_fitting_is_as_good_as_trying_every_stack_there_is():
    """Against brute force over all widths and heights of three stacked panels."""
    sizes, area, grid = [(1080, 451), (1080, 455), (1080, 477)], 768**2, 16

    def cost(layout):
        error = max(math.log(s) for s in layout.stretch(sizes))
        return error + 0.25 * abs(math.log(layout.width * layout.height / area))

    found = Layout.rows(3, 1024, 1536).fit(sizes, area, grid)
    best = math.inf
    for width in range(16, 1600, grid):
        near = [round(width * h / w / grid) for w, h in sizes]
        for steps in itertools.product((-1, 0, 1), repeat=3):
            heights = [max(1, n + s) * grid for n, s in zip(near, steps, strict=True)]
            if width * sum(heights) <= area:
                tops = np.cumsum([0, *heights])
                boxes = tuple(Box(0, int(t), width, h) for t, h in zip(tops, heights, strict=False))
                best = min(best, cost(Layout(width=width, height=sum(heights), boxes=boxes)))
    assert cost(found) <= best + 1e-9


@pytest.mark.parametrize("resolution", [512, 768, 1024, 1280, 1536])
@pytest.mark.parametrize("rows", [(1, 1, 1), (2,), (2, 2)])
def test_at_the_papers_resolutions_no_panel_is_bent_by_more_than_4_percent(rows, resolution):
    sizes = [(1080, 480), (1080, 470), (1080, 490), (1080, 480)][: sum(rows)]
    layout = Layout.of_rows(rows, 1024, 1024).fit(sizes, resolution**2, 16)
    assert max(layout.stretch(sizes)) < 1.04
    assert 0.85 < layout.width * layout.height / resolution**2 <= 1


def test_panels_of_different_shapes_in_a_2x2_keep_their_shapes():
    sizes = [(100, 100), (200, 100), (100, 200), (100, 100)]
    layout = Layout.of_rows((2, 2), 1024, 1024).fit(sizes, 1024**2, 16)
    assert max(layout.stretch(sizes)) < 1.02


def test_free_boxes_scale_together_onto_the_grid_without_overlap():
    free = Layout.free([(0, 0, 600, 1000), (600, 0, 400, 500), (600, 500, 400, 500)], 1000, 1000)
    for side in (256, 500, 1024):
        layout = free.fit(free.sizes, side**2, 16)
        layout.check_grid(16)
        assert tiles(layout)
        assert layout.width * layout.height <= side**2
        assert max(layout.stretch(free.sizes)) < 1.11


@given(sets())
@settings(max_examples=25, deadline=None)
def test_splitting_a_composite_gives_back_every_fitted_panel(case):
    rows, _, _, _ = case
    layout = Layout.of_rows(rows, 144, 144)
    panels = [picture(*size, seed=i) for i, size in enumerate(layout.sizes)]
    back = split(layout, compose(layout, panels))
    assert [p.tobytes() for p in back] == [p.tobytes() for p in panels]


def test_composing_loses_no_part_of_a_picture():
    """A frame drawn on the very edge of each picture is still there after fitting."""
    panels = []
    for size in [(300, 130), (290, 130), (310, 128)]:
        image = Image.new("RGB", size, "black")
        for side in (
            (0, 0, size[0], 8),
            (0, size[1] - 8, *size),
            (0, 0, 8, size[1]),
            (size[0] - 8, 0, *size),
        ):
            image.paste("white", side)
        panels.append(image)
    layout = Layout.rows(3, 1024, 1536).fit([p.size for p in panels], 256**2, 16)
    for part in split(layout, compose(layout, panels)):
        pixels = np.asarray(part)
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert edge.min() > 200


def test_a_picture_of_a_foreign_shape_is_refused_rather_than_bent_or_cropped():
    with pytest.raises(LayoutError, match="panel 2 is 100x300 px"):
        compose(Layout.columns(2, 256, 128), [picture(128, 128), picture(100, 300)])


def test_a_missing_picture_is_an_error():
    with pytest.raises(LayoutError, match="1 pictures for a layout of 2"):
        compose(Layout.columns(2, 256, 128), [picture(128, 128)])


def test_no_area_is_no_canvas():
    with pytest.raises(LayoutError, match="canvas of 0"):
        Layout.rows(3, 1024, 1536).fit([(2, 1)] * 3, 0, 16)


def test_a_token_mask_covers_exactly_the_chosen_panels_pixels():
    layout = Layout.rows(3, 1024, 1536).fit([(1080, 480)] * 3, 512**2, 16)
    pixels = np.zeros((layout.height, layout.width), dtype=bool)
    for i in (0, 2):
        box = layout.boxes[i]
        pixels[box.top : box.bottom, box.left : box.right] = True
    mask = token_mask(layout, {0, 2})
    assert np.array_equal(np.kron(mask, np.ones((16, 16), dtype=bool)), pixels)


def test_a_mask_of_a_missing_panel_or_off_the_grid_is_refused():
    with pytest.raises(LayoutError, match="no panel 4"):
        token_mask(Layout.rows(3, 64, 96), [3])
    with pytest.raises(LayoutError, match="token grid"):
        token_mask(Layout.rows(3, 64, 100), [0])


def test_given_sizes_are_kept_to_the_pixel_and_the_others_follow():
    stack = Layout.rows(3, 1024, 1536)
    assert stack.fit_around({0: (1072, 480)}, 16).sizes == ((1072, 480), (1072, 544), (1072, 544))
    grid = Layout.of_rows((2, 2), 1344, 1728)
    around = grid.fit_around({0: (512, 640)}, 16)
    assert around.boxes[0] == Box(0, 0, 512, 640)
    around.check_grid(16)
    assert tiles(around)


@pytest.mark.parametrize(
    "known",
    [{0: (1080, 480)}, {0: (1024, 512), 1: (512, 512)}, {0: (64, 1024)}],
    ids=["off the grid", "two widths", "bends the others"],
)
def test_given_sizes_that_do_not_fit_are_not_forced(known):
    layout = (
        Layout.columns(2, 1024, 512) if known == {0: (64, 1024)} else Layout.rows(3, 1024, 1536)
    )
    if known == {0: (64, 1024)}:
        assert layout.fit_around(known, 16).boxes[0].width == 64  # a column may be of any width
    else:
        assert layout.fit_around(known, 16) is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Layout.rows(1, 64, 64), "2 to 9"),
        (lambda: Layout.rows(10, 64, 640), "2 to 9"),
        (lambda: Layout.of_rows((), 64, 64), "rows of"),
        (lambda: Layout.of_rows((2, 0), 64, 64), "rows of"),
        (lambda: Layout.rows(3, 100, 96, grid=16), "Use 96x96"),
        (lambda: Layout.rows(5, 64, 64, grid=16), "too small"),
        (lambda: Layout.free([(0, 0, 8, 8), (4, 4, 8, 8)], 16, 16), "overlap"),
        (lambda: Layout.free([(0, 0, 8, 8), (8, 8, 16, 8)], 16, 16), "leaves"),
        (lambda: Layout.free([(0, 0, 8, 8), (8, 8, 0, 8)], 16, 16), "empty"),
        (lambda: Layout.from_json({"width": 3}), "not a layout"),
        (lambda: Layout.from_json([]), "not a layout"),
    ],
)
def test_impossible_layouts_are_refused(make, says):
    with pytest.raises(LayoutError, match=says):
        make()


def test_a_layout_comes_back_from_json():
    for layout in (
        Layout.of_rows((2, 1), 640, 480),
        Layout.free([(0, 0, 8, 8), (8, 8, 8, 8)], 16, 16),
    ):
        assert Layout.from_json(layout.to_json()) == layout


def test_a_layout_s_json_is_that_of_version_0_2():
    layout = Layout.of_rows((2, 1), 640, 480)
    boxes = [[0, 0, 320, 240], [320, 0, 320, 240], [0, 240, 640, 240]]
    text = json.dumps({"width": 640, "height": 480, "per_row": [2, 1], "boxes": boxes})
    assert json.dumps(layout.to_json()) == text
    assert layout.model_dump_json() == text.replace(" ", "")
    assert Layout.model_validate_json(text) == layout


def test_equal_layouts_are_one_key_and_none_can_be_changed():
    one, other = Layout.rows(3, 64, 96), Layout.from_json(Layout.rows(3, 64, 96).to_json())
    assert {one: 1}[other] == 1
    assert one != Layout.free(one.boxes, 64, 96)
    with pytest.raises(ValidationError, match="frozen"):
        one.width = 32


@pytest.mark.parametrize(
    "per_row", [(2, 1), (3,), (1, 1), (1, 1, 2), (0, 3)], ids=["2+1", "3", "few", "many", "none"]
)
def test_rows_that_contradict_the_boxes_are_refused(per_row):
    data = Layout.rows(3, 64, 96).to_json()
    with pytest.raises(LayoutError, match="not a layout"):
        Layout.from_json(data | {"per_row": per_row})


def test_rows_that_leave_part_of_the_canvas_free_are_no_rows():
    data = Layout.rows(2, 64, 96).to_json()
    with pytest.raises(LayoutError, match="that fill"):
        Layout.from_json(data | {"height": 112})
    with pytest.raises(LayoutError, match="that fill"):
        Layout.from_json(data | {"width": 80})


def test_a_given_panel_gets_the_size_of_its_box():
    layout = Layout.columns(2, 256, 128)
    same, other = picture(128, 128), picture(64, 64)
    assert layout.fit_panel(2, same).tobytes() == same.tobytes()
    composed = split(layout, compose(layout, [same, other]))[1]
    assert layout.fit_panel(2, other).tobytes() == composed.tobytes()
    with pytest.raises(LayoutError, match="panel 2 is 100x300 px"):
        layout.fit_panel(2, picture(100, 300))
    with pytest.raises(LayoutError, match="no panel 3"):
        layout.fit_panel(3, same)


def test_a_canvas_is_resized_to_exactly_what_was_asked_or_refused():
    assert Layout.rows(3, 1024, 1536).resized(512, 768, 16).sizes == ((512, 256),) * 3
    with pytest.raises(LayoutError, match="Use 512x768"):
        Layout.rows(3, 1024, 1536).resized(510, 770, 16)
    free = Layout.free([(0, 0, 100, 100), (100, 0, 100, 100)], 200, 100)
    assert free.resized(256, 128, 16).sizes == ((128, 128), (128, 128))
    assert free.resized(256, 256, 16).sizes == ((128, 256), (128, 256))
    with pytest.raises(LayoutError, match="too small for boxes"):
        free.resized(16, 256, 16)


def test_resized_rows_keep_their_proportions():
    trained = Layout.stacked([720, 288], [[480, 480], [960]])
    assert trained.resized(960, 1008, 16) == trained
    assert trained.resized(480, 496, 16).sizes == ((240, 352), (240, 352), (480, 144))


@given(ROWS, st.integers(4, 60), st.integers(4, 60), st.sampled_from([8, 16]))
@settings(max_examples=60, deadline=None)
def test_resized_rows_of_equal_panels_stay_as_equal_as_the_grid_allows(rows, width, height, grid):
    size = width * grid, height * grid
    equal = Layout.of_rows(rows, *size, grid)
    assert Layout.of_rows(rows, 999, 1001).resized(*size, grid) == equal
    fitted = Layout.of_rows(rows, 999, 1001).fit([(300, 200)] * sum(rows), 1024**2, grid)
    if len(set(rows)) == 1:  # else rows of fewer panels are higher
        assert fitted.resized(*size, grid) == equal


@st.composite
def free_layouts(draw):
    side = st.integers(0, 60)
    boxes = []
    for _ in range(draw(st.integers(2, 5))):
        box = Box(draw(side), draw(side), 1 + draw(side), 1 + draw(side))
        if not any(box.overlaps(other) for other in boxes):
            boxes.append(box)
    assume(len(boxes) > 1)
    edge = max(max(b.right, b.bottom) for b in boxes)
    return Layout.free(boxes, edge + draw(side), edge + draw(side))


@given(free_layouts(), st.integers(5, 40), st.integers(5, 40))
@settings(max_examples=200, deadline=None)
def test_free_boxes_are_resized_to_any_canvas_that_can_hold_them(layout, width, height):
    resized = layout.resized(width * 16, height * 16, 16)  # never more than 5 boxes in a row
    resized.check_grid(16)
    assert resized.size == (width * 16, height * 16)
    x, y = width * 16 / layout.width, height * 16 / layout.height
    if min(x, y) * min(min(size) for size in layout.sizes) > 32:
        for old, new in zip(layout.boxes, resized.boxes, strict=True):
            scaled = [old.left * x, old.top * y, old.right * x, old.bottom * y]
            assert max(abs(a - b) for a, b in zip(scaled, new.corners, strict=True)) <= 8.001
