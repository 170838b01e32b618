"""Gutters, borders and letterboxes are cut off; dark and bright parts of pictures are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from iclora.sets.bars import find_edges
from iclora.sets.canvas import find_panels
from iclora.sets.check import check_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.edges import Edges
from iclora.sets.layout import Layout
from iclora.sets.review import write_review
from tests.conftest import CAPTION, picture
from tests.sets.test_check import problems

STACK, SQUARE = Layout.rows(3, 1024, 1536), Layout.of_rows((2, 2), 1024, 1024)


def on_bars(pictures, per_row, gutter, border, colour):
    """Pictures of one size on a background, and the boxes they lie in."""
    width, height = pictures[0].size
    rows = len(pictures) // per_row
    size = (
        per_row * width + (per_row - 1) * gutter + 2 * border,
        rows * height + (rows - 1) * gutter + 2 * border,
    )
    canvas, boxes = Image.new("RGB", size, colour), []
    for number, each in enumerate(pictures):
        row, column = divmod(number, per_row)
        left, top = border + column * (width + gutter), border + row * (height + gutter)
        canvas.paste(each, (left, top))
        boxes.append((left, top, width, height))
    return canvas, boxes


def as_jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("colour", ["black", "white", "gray", "#c03050"])
@pytest.mark.parametrize(("gutter", "border"), [(4, 0), (10, 0), (30, 12), (0, 16), (7, 21)])
@pytest.mark.parametrize(("layout", "per_row", "count"), [(STACK, 1, 3), (SQUARE, 2, 4)])
def test_panels_are_cut_inside_bars_of_any_colour(colour, gutter, border, layout, per_row, count):
    pictures = [picture(240, 180, seed=k + 40) for k in range(count)]
    canvas, boxes = on_bars(pictures, per_row, gutter, border, colour)
    found = find_panels(layout, canvas)
    assert [tuple(box) for box in found.layout.boxes] == boxes
    assert found.bars == max(gutter, border)
    if colour not in ("black", "white") and border % 8:
        return  # the colours of such a border are blended with the pictures' over whole blocks
    near = find_panels(layout, as_jpeg(canvas, 85)).layout.boxes
    assert np.abs(np.array(near) - np.array(boxes)).max() <= 3


def test_letterboxed_stills_lose_their_bars_all_three_or_one():
    def boxed(seed, bar):
        canvas = Image.new("RGB", (320, 140 + 2 * bar), "black")
        canvas.paste(picture(320, 140, seed), (0, bar))
        return canvas

    for bars in ((15, 15, 15), (0, 15, 0), (15, 0, 15)):
        stills = [boxed(k, bar) for k, bar in enumerate(bars)]
        canvas = Image.new("RGB", (320, sum(s.height for s in stills)))
        top = 0
        for still in stills:
            canvas.paste(still, (0, top))
            top += still.height
        found = find_panels(STACK, canvas).layout
        assert [box.size for box in found.boxes] == [(320, 140)] * 3


def dark(seed):
    """A still at night: one end of it is black but for noise."""
    fade = np.clip(np.linspace(-0.5, 1.5, 180), 0, 1)[:: 1 - 2 * (seed % 2), None, None]
    pixels = np.asarray(picture(400, 180, seed)) * 0.3 * fade
    noise = np.random.default_rng(seed).normal(0, 2, (180, 400, 1))
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def on_white(seed):
    """A mark in the middle of a white page."""
    page = Image.new("RGB", (400, 180), "white")
    ImageDraw.Draw(page).rectangle((90, 50, 310, 130), fill=(40 * seed, 80, 120))
    return page


@pytest.mark.parametrize("draw", [dark, on_white, lambda seed: picture(400, 180, seed)])
@pytest.mark.parametrize("quality", [None, 85])
def test_dark_stills_and_white_pages_are_not_taken_for_bars(draw, quality):
    pictures = [draw(k) for k in range(3)]
    canvas, _ = on_bars(pictures, 1, 0, 0, "black")
    images = [as_jpeg(p, quality) if quality else p for p in (canvas, *pictures)]
    assert find_panels(STACK, images[0]).bars == 0
    assert [find_edges(image) for image in images[1:]] == [Edges()] * 3


def test_a_gutter_beside_a_picture_of_its_colour_is_cut_as_wide_as_the_others():
    pictures = [picture(400, 180, 1), dark(1), picture(400, 180, 3)]
    canvas, boxes = on_bars(pictures, 1, 12, 0, "black")
    found = find_panels(STACK, canvas)
    assert [tuple(box) for box in found.layout.boxes] == boxes


def test_bars_are_said_by_check_and_gone_in_review(tmp_path):
    canvas, _ = on_bars([picture(200, 100, k) for k in range(3)], 1, 9, 0, "white")
    canvas.save(tmp_path / "0001.png")
    (tmp_path / "0001.txt").write_text(CAPTION)
    (tmp_path / "0002").mkdir()
    for k in range(3):
        panel, _ = on_bars([picture(200, 76, k)], 1, 0, 12 if k == 1 else 0, "black")
        panel.save(tmp_path / "0002" / f"{k}.png")
    (tmp_path / "0002" / "caption.txt").write_text(CAPTION)
    dataset = open_dataset(tmp_path, "film-storyboard")
    found = {p.subject: p.text for p in problems(dataset) if "bars" in p.text}
    assert "up to 9 px wide" in found["0001"]
    assert "panel 2 has bars of one colour at its edges (12 px left, 12 px top" in found["0002"]
    reports = list(check_dataset(dataset))
    assert reports[0].sizes == ((200, 100),) * 3
    assert reports[0].set.load().panels[1].tobytes() == picture(200, 100, 1).tobytes()
    write_review(dataset, reports, tmp_path / "r.html")
    assert "it is cut inside them" in (tmp_path / "r.html").read_text()


def smooth(seed: int, width: int = 256, height: int = 192) -> Image.Image:
    """A picture without any line of one colour."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("colour", ["white", "black", "magenta", "#336699"])
@pytest.mark.parametrize("quality", [60, 85])
def test_gutters_of_two_lines_are_found_behind_compression(colour, quality):
    """JPEG blends their colours with the pictures', not their brightness."""
    canvas = Image.new("RGB", (256, 3 * 192 + 2 * 2), colour)
    for number in range(3):
        canvas.paste(smooth(number), (0, number * 194))
    found = find_panels(Layout.stacked([192] * 3, [[256]] * 3), as_jpeg(canvas, quality))
    assert found.bars == 2
    assert [box.height for box in found.layout.boxes] == [192] * 3


@pytest.mark.parametrize("seed", range(4))
def test_a_border_with_a_thin_line_around_the_picture_is_cut_with_the_line(seed):
    framed = Image.new("RGB", (280, 216), "white")
    framed.paste(smooth(seed), (12, 12))
    ImageDraw.Draw(framed).rectangle((10, 10, 269, 205), outline="black", width=2)
    assert find_edges(framed) == Edges(12, 12, 12, 12)


def test_a_bar_that_a_line_closes_is_found_though_no_step_is_the_larger_part():
    grain = np.random.default_rng(5).integers(-15, 16, (120, 160, 3))
    pixels = np.clip(100 + 4 * np.arange(-11, 149)[None, :, None], 0, 150) + grain
    pixels[:, :8], pixels[:, 8:11] = 32, 0
    assert find_edges(Image.fromarray(pixels.astype(np.uint8))) == Edges(left=11)
