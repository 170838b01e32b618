"""Shots in tiny pictures: cuts and mixtures are found, flashes and moving cameras are none."""

import numpy as np
import pytest
from PIL import Image

from iclora.sets.collect.sources.shots import TINY, ShotFinder


def ground(seed, width=TINY[0]):
    """A picture of a few soft shapes, (18, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, width // 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, TINY[1]), Image.Resampling.BICUBIC), dtype=float)


def held(picture, frames, seed=0):
    rng = np.random.default_rng(seed)
    return [picture + rng.normal(0, 0.5, picture.shape) for _ in range(frames)]


def mixed(one, other, frames):
    shares = (np.arange(frames) + 1) / (frames + 1)
    return [(1 - share) * one + share * other for share in shares]


def panned(seed, frames, speed):
    """A wide picture seen through a window that moves `speed` px a frame."""
    wide = Image.fromarray(ground(seed, 600).clip(0, 255).astype(np.uint8))
    boxes = [(speed * i, 0, speed * i + TINY[0], TINY[1]) for i in range(frames)]
    return [np.asarray(wide.resize(TINY, Image.Resampling.BILINEAR, box=box)) for box in boxes]


def shots(frames):
    finder = ShotFinder()
    found = []
    for frame in frames:
        found += finder.feed(np.asarray(frame).round().clip(0, 255).astype(np.uint8))
    return [(shot.first, shot.end, shot.faded) for shot in (*found, *finder.close())]


A, B, C = ground(1), ground(2), ground(3)
BLACK = np.zeros_like(A)


def test_a_cut_ends_a_shot_at_its_very_frame():
    found = shots([*held(A, 40), *held(B, 40), *held(C, 30)])
    assert found == [(0, 40, True), (40, 80, False), (80, 110, False)]


def standing(left, top=5, ground=A):
    """A picture with a small figure: 3 of 32 columns, 7 of 18 rows."""
    picture = ground.copy()
    picture[top : top + 7, left : left + 3] = 255 - ground.mean()
    return picture


def test_a_cut_that_moves_a_small_figure_alone_is_found():
    one, other = standing(6), standing(20)
    assert np.abs(one - other).mean() < 6, "the whole picture tells it"
    found = shots([*held(one, 40), *held(other, 40)])
    assert found == [(0, 40, True), (40, 80, False)]


def test_a_small_figure_that_walks_ends_no_shot():
    walk = [standing(6 + step) for step in range(15) for _ in range(4)]
    assert shots([*held(standing(6), 40), *walk, *held(standing(20), 40)]) == [(0, 140, True)]


@pytest.mark.parametrize("picture", [standing(6, top=13), mixed(A, standing(6), 3)[0]])
def test_words_at_the_foot_and_what_comes_back_at_once_end_no_shot(picture):
    stays = 60 if picture[15, 7, 0] != A[15, 7, 0] else 5
    assert shots([*held(A, 40), *held(picture, stays), *held(A, 40)]) == [(0, 80 + stays, True)]


@pytest.mark.parametrize("length", [6, 12, 24, 40])
def test_a_dissolve_is_in_no_shot(length):
    found = shots([*held(A, 40), *mixed(A, B, length), *held(B, 40)])
    assert len(found) == 2
    (first, end, _), (start, last, faded) = found
    assert (first, last, faded) == (0, 80 + length, True)
    assert 36 <= end <= 41
    assert 39 + length <= start <= 44 + length


def test_a_fade_through_black_and_the_black_are_in_no_shot():
    frames = [*held(A, 40), *mixed(A, BLACK, 12), *held(BLACK, 20), *mixed(BLACK, B, 12)]
    (_, end, _), (start, _, faded) = shots([*frames, *held(B, 40)])
    assert end <= 41
    assert start >= 83
    assert faded


def test_a_flash_ends_no_shot():
    bright = 255 - 0.1 * (255 - A)
    assert shots([*held(A, 40), *held(bright, 2), *held(A, 40)]) == [(0, 82, True)]


@pytest.mark.parametrize("speed", [0.1, 0.5, 2.0])
def test_a_moving_camera_ends_no_shot(speed):
    still = panned(4, 1, 0)[0]
    assert shots([*held(still, 30), *panned(4, 90, speed)]) == [(0, 120, True)]


def test_memory_does_not_grow_with_the_film():
    finder = ShotFinder()
    for frame in held(A, 250):
        list(finder.feed(frame.clip(0, 255).astype(np.uint8)))
    assert len(finder._tiny) < 200
