"""Toyland is found by entry points alone: no floor below knows its name or its files."""

from pathlib import Path

import pytest

import iclora
from iclora.cli.main import VERBS
from iclora.models.registry import BASES
from iclora.toyland.shipped import base_folder, captioner_folder, klein_folder, open_captioner
from iclora.toyland.verb import demo
from iclora.vlm.registry import CAPTIONERS

BELOW = ("models", "vlm", "sets", "train", "making", "adapter", "evaluate", "cli")


def test_base_captioner_and_verb_are_registered():
    assert BASES.load("toyland")() == base_folder()
    assert BASES.load("toyland-klein")() == klein_folder()
    assert CAPTIONERS.load("toyland") is open_captioner
    assert VERBS.load("demo") is demo
    assert (base_folder() / "model_index.json").is_file()
    assert (klein_folder() / "model_index.json").is_file()
    assert (captioner_folder() / "config.json").is_file()


@pytest.mark.parametrize("room", BELOW)
def test_no_other_room_imports_toyland_or_opens_its_files(room):
    for path in (Path(iclora.__file__).parent / room).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "iclora.toyland" not in text, path
        assert "toyland-base" not in text, path
        assert "toyland-klein" not in text, path
        assert "toyland-captioner" not in text, path
