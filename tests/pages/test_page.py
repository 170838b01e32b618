"""Pictures on pages: inside them, small enough, and what is said of them cannot run."""

import base64
import io
import re

from PIL import Image

from iclora.pages.page import picture_tag
from tests.conftest import picture


def size_of(tag):
    data = re.search(r"base64,([^\"]+)", tag)[1]
    return Image.open(io.BytesIO(base64.b64decode(data))).size


def test_large_pictures_are_scaled_down_and_toy_ones_enlarged_whole():
    assert size_of(picture_tag(picture(900, 300), 300)) == (300, 100)
    assert size_of(picture_tag(picture(64, 32), 300)) == (256, 128)
    assert size_of(picture_tag(picture(200, 100), 300)) == (200, 100)


def test_a_title_stays_a_title():
    tag = picture_tag(picture(8, 8), 16, "whole", '"><script>')
    assert "<script" not in tag
    assert tag.startswith('<img class="whole"')
