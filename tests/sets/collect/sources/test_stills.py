"""Frames as files, read again by Pillow; their sharpness by another formula."""

import io

import numpy as np
import pytest
from PIL import Image

from iclora.sets.collect.sources.stills import encode_still, sharpness


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (33, 18)])
def test_a_still_is_read_again_as_it_was(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_still(Image.fromarray(pixels)))) as read:
        read.load()
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", size)
        assert np.array_equal(np.asarray(read), pixels)


def test_sharpness_is_the_mean_of_the_laplacian():
    grey = np.random.default_rng(1).integers(0, 256, (16, 20), dtype=np.uint8)
    whole = grey.astype(np.float64)
    second = np.diff(whole, 2, axis=0)[:, 1:-1] + np.diff(whole, 2, axis=1)[1:-1]
    assert sharpness(grey) == pytest.approx(np.abs(second).mean())
