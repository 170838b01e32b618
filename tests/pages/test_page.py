"""Pages: pictures inside them and small enough, and what is said on them cannot run."""

from __future__ import annotations

import base64
import io

import pytest
from jinja2 import UndefinedError
from PIL import Image

from iclora.pages.page import data_url, render
from tests.conftest import picture

REVIEW = {"about": "", "marked": False, "scored": 0}
"""What the review page is told beside the words of others."""


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split("base64,")[1])))


def test_large_pictures_are_scaled_down_and_toy_ones_enlarged_whole():
    assert opened(data_url(picture(900, 300), 300)).size == (300, 100)
    assert opened(data_url(picture(64, 32), 300)).size == (256, 128)
    assert opened(data_url(picture(200, 100), 300)).size == (200, 100)


def test_a_lossless_picture_keeps_its_pixels():
    image = picture(40, 20)
    url = data_url(image, 40, lossless=True)
    assert url.startswith("data:image/png")
    assert opened(url).tobytes() == image.tobytes()


def test_control_characters_of_other_peoples_words_are_shown_and_never_sent():
    evil = "a\x1b[2J\u202eb\x9b"
    problem = {"subject": evil, "text": evil, "advice": evil, "severity": "error"}
    plain = {
        "name": evil,
        "recipe": evil,
        "captioned": 0,
        "limit": 512,
        "about": "",
        "marked": False,
        "scored": 0,
    }
    page = render("review", **plain, problems=[problem], sets=[], bad=[])
    assert not set(page) & set("\x1b\u202e\x9b")
    assert "a\\x1b[2J\\u202eb\\x9b" in page


def test_text_stays_text_wherever_it_stands():
    evil = '"><script>alert(1)</script>'
    shown = {
        "name": evil,
        "anchor": evil,
        "tokens": None,
        "problems": [],
        "panels": [evil],
        "whole": evil,
        "caption": {"overview": evil},
        "texts": [(evil, evil)],
        "raw": evil,
        "score": 0.5,
        "rank": 1,
        "scene": evil,
        "reasons": [evil],
    }
    plain = {
        "name": evil,
        "recipe": evil,
        "captioned": 0,
        "limit": 512,
        "about": "",
        "marked": False,
        "scored": 0,
    }
    problem = {"subject": evil, "text": evil, "advice": evil, "severity": "error"}
    page = render("review", **plain, problems=[problem], sets=[shown], bad=[shown])
    assert "<script" not in page
    assert page.count("&lt;script") > 8
    assert "#%22" in page


def test_a_template_that_asks_for_more_than_it_is_given_fails():
    with pytest.raises(UndefinedError):
        render("review", name="d")
