"""Letterboxes of single files are cut off by compose, alike; what is picture stays."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from iclora.sets.check import check_dataset
from iclora.sets.compose import compose_dataset
from iclora.sets.dataset import open_dataset
from iclora.sets.images import open_image, png_text
from iclora.sets.review import write_review
from tests.conftest import CAPTION, picture
from tests.sets.test_bars import as_jpeg, dark, on_white
from tests.sets.test_check import problems

STORY = "film-storyboard"


def boxed(image, wide=0, high=24, colour="black"):
    """A picture between bars."""
    canvas = Image.new("RGB", (image.width + 2 * wide, image.height + 2 * high), colour)
    canvas.paste(image, (wide, high))
    return canvas


def write_sets(root, *sets, form="png"):
    for number, panels in enumerate(sets, 1):
        folder = root / f"{number:04d}"
        folder.mkdir(parents=True)
        for k, panel in enumerate(panels, 1):
            panel.save(folder / f"{k}.{form}", quality=90, compress_level=1)
        (folder / "caption.txt").write_text(CAPTION)
    return open_dataset(root, STORY)


def composed(dataset, out, **options):
    """The panels' boxes of each composite, as (width, height), and what was said."""
    told = compose_dataset(dataset, out, **options)
    found = []
    for each in sorted(out.glob("*.png")):
        layout = json.loads(png_text(each.read_bytes(), "iclora:layout"))
        found.append([tuple(box[2:]) for box in layout["boxes"]])
    return found, [str(p) for p in told if "bars" in p.text]


def stills(seed, count=3, size=(400, 176)):
    return [picture(*size, seed=10 * seed + k) for k in range(count)]


@pytest.mark.parametrize(
    ("wide", "high", "colour"),
    [(0, 24, "black"), (0, 40, "white"), (37, 0, "gray"), (20, 20, "#204060"), (30, 12, "black")],
)
@pytest.mark.parametrize("form", ["png", "jpg"])
def test_letterboxes_pillarboxes_and_borders_of_any_colour_are_cut_off(
    tmp_path, wide, high, colour, form
):
    sets = [[boxed(p, wide, high, colour) for p in stills(s)] for s in (1, 2)]
    dataset = write_sets(tmp_path / "in", *sets, form=form)
    found, said = composed(dataset, tmp_path / "out", resolution=1024)
    for name, boxes in zip(("0001", "0002"), found, strict=True):
        panels = open_dataset(tmp_path / "out").sets[int(name) - 1].load(dataset.recipe).panels
        wanted = stills(int(name))
        for panel, (width, height), want in zip(panels, boxes, wanted, strict=True):
            assert abs(width / height - 400 / 176) < 0.15
            near = np.asarray(panel, float) - np.asarray(want.resize(panel.size), float)
            assert np.abs(near).mean() < (4 if form == "png" else 8)
    (text,) = said
    assert "are cut off 6 panels" in text


def test_all_stills_of_a_film_are_cut_alike_even_where_the_bar_does_not_show(tmp_path):
    night = boxed(dark(1).resize((400, 176)))
    fade = Image.new("RGB", (400, 224), "black")
    sets = [[boxed(p) for p in stills(1)], [night, *(boxed(p) for p in stills(2, 2))]]
    dataset = write_sets(tmp_path / "in", *sets, [fade, *(boxed(p) for p in stills(3, 2))])
    reports = {r.name: r for r in check_dataset(dataset)}
    assert not any(reports["0002"].pairs[0])
    assert not any(reports["0003"].pairs[0])
    found, said = composed(dataset, tmp_path / "out")
    assert found == [[(400, 176)] * 3] * 3
    assert "24 px top, 24 px bottom" in said[0]
    assert "9 panels" in said[0]


def test_stills_of_two_films_are_cut_each_by_its_own_bars(tmp_path):
    one = [boxed(p, high=24) for p in stills(1)]
    other = [boxed(p, wide=48) for p in stills(2, size=(320, 208))]
    found, said = composed(write_sets(tmp_path / "in", one, other), tmp_path / "out")
    assert found == [[(400, 176)] * 3, [(320, 208)] * 3]
    assert len(said) == 2


def slide(seed):
    """A slide with a band of one colour at its head, as designers draw them."""
    page = picture(400, 224, seed)
    ImageDraw.Draw(page).rectangle((0, 0, 400, 30), fill="#303a60")
    return page


@pytest.mark.parametrize("draw", [dark, on_white, slide, lambda seed: picture(400, 176, seed)])
def test_nothing_is_cut_where_there_is_no_bar_at_opposite_sides(tmp_path, draw):
    sets = [[draw(3 * s + k) for k in range(3)] for s in range(2)]
    dataset = write_sets(tmp_path / "in", *sets)
    sizes = [[p.size for p in panels] for panels in sets]
    out = tmp_path / "out"
    compose_dataset(dataset, out, resolution=2048)
    panels = [s.load(dataset.recipe).panels for s in open_dataset(out).sets]
    for own, before, pictures in zip(panels, sizes, sets, strict=True):
        for panel, size, want in zip(own, before, pictures, strict=True):
            assert panel.size[0] / panel.size[1] == pytest.approx(size[0] / size[1], rel=0.04)
            off = np.asarray(panel, float) - np.asarray(want.resize(panel.size), float)
            assert np.abs(off).mean() < 3


def test_bars_stay_if_that_is_asked_for(tmp_path):
    dataset = write_sets(tmp_path / "in", [boxed(p) for p in stills(1)])
    found, said = composed(dataset, tmp_path / "out", cut_bars=False)
    assert found == [[(400, 224)] * 3]
    assert "which would be trained" in said[0]


def test_check_says_that_bars_would_be_trained_and_what_compose_does_and_review_shows_it(tmp_path):
    panels = [boxed(as_jpeg(p, 90)) for p in stills(1)]
    dataset = write_sets(tmp_path / "in", panels, [slide(k) for k in range(3)])
    told = {p.subject: str(p) for p in problems(dataset) if "bars" in p.text}
    assert "24 px top, 24 px bottom), which would be trained" in told["0001"]
    assert "`iclora compose` cuts them off" in told["0001"]
    assert "Crop them off" in told["0002"]
    reports = list(check_dataset(dataset))
    write_review(dataset, reports, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "24 px top, 24 px bottom" in page
    assert "Magenta lines show" in page
    compose_dataset(dataset, tmp_path / "out")
    clean = open_dataset(tmp_path / "out")
    assert not [p for p in problems(clean) if p.subject == "0001" and "bars" in p.text]
    assert open_image(tmp_path / "in" / "0001" / "1.png").size == (400, 224)
