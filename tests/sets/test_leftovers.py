"""What cannot be cut for certain is named; what belongs to a picture is neither cut nor named."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from iclora.sets.canvas import find_panels
from iclora.sets.dataset import open_dataset
from iclora.sets.layout import Layout
from iclora.toyland.tasks import TASKS, draw_set
from tests.conftest import CAPTION
from tests.sets.test_bars import as_jpeg, on_bars, smooth
from tests.sets.test_check import problems
from workshop.bars.sheets import BARE, make_sheet

STACK = Layout.rows(3, 1024, 1536)


def looked_at(seed, quality=None, **facts):
    """A sheet by chance, what was found in it, and the px that are left and lost at each edge."""
    sheet = make_sheet(seed, **BARE | {"size": (160, 120)} | facts)
    rows = sheet.rows
    layout = Layout.of_rows(rows, 512 * max(rows), 384 * len(rows))
    found = find_panels(layout, as_jpeg(sheet.image, quality) if quality else sheet.image)
    ends = [
        (b.left - t.left, b.top - t.top, t.right - b.right, t.bottom - b.bottom)
        for b, t in zip(found.layout.boxes, sheet.boxes, strict=True)
    ]
    return found, -np.min(ends), np.max(ends)


@pytest.mark.parametrize("colour", ["white", "#00a060", "magenta", "gray", "gradient"])
@pytest.mark.parametrize("gutter", [1, 2, 3, 5, 9])
def test_gutters_of_any_width_and_colour_are_cut_behind_any_compression(colour, gutter):
    seed = gutter + len(colour)
    rows = ((1, 1, 1), (2, 2), (3,))[seed % 3]
    quality = (None, 90, 60)[(seed + gutter) % 3]
    kind = "smooth" if quality else "grain"
    found, left, lost = looked_at(seed, quality, rows=rows, colour=colour, gutter=gutter, kind=kind)
    # Of a single line JPEG leaves next to nothing.
    assert found.bars or (quality and gutter == 1)
    assert left <= (1 if quality else 0) or any(found.rest)
    assert lost <= 2


@pytest.mark.parametrize("line", [1, 2, 3])
@pytest.mark.parametrize(("gutter", "border"), [(0, 0), (8, 0), (6, 6), (0, 1)])
def test_lines_around_pictures_are_cut_on_all_sides(line, gutter, border):
    for quality in (None, 90):
        found, left, lost = looked_at(
            line,
            quality,
            rows=(2, 2),
            kind="smooth",
            line=line,
            gutter=gutter,
            border=border,
            colour="#f4ead5",
        )
        assert left <= (1 if quality else 0) or any(found.rest)
        assert lost <= 2


@pytest.mark.parametrize("name", TASKS)
def test_floors_and_grounds_of_drawings_are_no_bars(name):
    task = TASKS[name]
    for seed in range(3):
        sheet = draw_set(task, random.Random(f"floors {seed}"))[0].render()
        found = find_panels(task.small_recipe.canvas, sheet)
        assert found.bars == 0, (name, seed)
        assert not any(found.rest)


def framed(image, radius):
    mask = Image.new("L", image.size, 0)
    whole = (0, 0, image.width - 1, image.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(whole, radius, fill=255)
    page = Image.new("RGB", image.size, "white")
    page.paste(image, (0, 0), mask)
    return page


def captioned(image, colour="white"):
    page = Image.new("RGB", (image.width, image.height + 24), colour)
    page.paste(image, (0, 0))
    words = "Ana looks at the sea and waits for him"
    font = ImageFont.load_default(12)
    ImageDraw.Draw(page).text((8, image.height + 5), words, fill="black", font=font)
    return page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda image: framed(image, 7), "round corners (panels 1, 2, 3)"),
        (lambda image: framed(image, 24), "round corners (panels 1, 2, 3)"),
        (captioned, "a strip with text at its"),
        (lambda image: captioned(image, "#ffe8a0"), "a strip with text at its"),
    ],
)
def test_round_corners_and_strips_of_text_are_named(tmp_path, change, says):
    panels = [change(smooth(k)) for k in range(3)]
    sheet, _ = on_bars(panels, 1, 12, 0, "white")
    sheet.save(tmp_path / "0001.png")
    (tmp_path / "0001.txt").write_text(CAPTION)
    (tmp_path / "0002").mkdir()
    for number, panel in enumerate(panels):
        panel.save(tmp_path / "0002" / f"{number}.png")
    (tmp_path / "0002" / "caption.txt").write_text(CAPTION.replace("Ana", "Eva"))
    dataset = open_dataset(tmp_path, "film-storyboard")
    told = problems(dataset)
    found = [p for p in told if "would be trained" in p.text]
    assert any("strips of text under its panels, 24" in p.text for p in told) == ("strip" in says)
    # Of a sheet strips are cut off, which is told as well: tests/sets/test_strips.py.
    left = {"0002"} if "strip" in says else {"0001", "0002"}
    assert {p.subject for p in found if says in p.text} == left
    assert all(p.severity == "warning" and "iclora review" in p.advice for p in found)


@pytest.mark.parametrize("kind", ["grain", "smooth", "sky"])
def test_nothing_is_named_or_cut_of_pictures_that_join_without_bars(kind):
    for seed in range(4):
        quality = (None, 60, 85, 95)[seed]
        found, left, lost = looked_at(seed, quality, rows=(2, 2), kind=kind, size=(160, 130))
        assert found.bars == 0
        assert not any(found.rest)
        assert max(left, lost) <= 2


def test_a_drawing_s_floor_in_a_file_of_its_own_is_not_named(tmp_path):
    canvas = draw_set(TASKS["home-decoration"], random.Random(1))[0]
    for number, panel in enumerate(canvas.panels):
        panel.render().resize((256, 256), Image.Resampling.NEAREST).save(tmp_path / f"{number}.png")
    (tmp_path / "caption.txt").write_text("x")
    dataset = open_dataset(tmp_path, "home-decoration")
    assert not [p for p in problems(dataset) if "trained" in p.text]
