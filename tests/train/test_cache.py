"""Encoded once, keyed by content, paired with the right words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from iclora.errors import RunError
from iclora.sets.canvas import compose
from iclora.sets.dataset import open_dataset
from tests.conftest import CAPTION, encoded, picture


@pytest.fixture
def encode(tiny, config, tmp_path, monkeypatch):
    """Encode a dataset; returns the result and how often each encoder ran."""
    root = Path(config().data)
    counts = {"text": 0, "image": 0}
    for kind in counts:
        real = getattr(tiny, f"encode_{kind}")

        def counted(value, real=real, kind=kind):
            counts[kind] += 1
            return real(value)

        monkeypatch.setattr(tiny, f"encode_{kind}", counted)

    def run():
        counts.update(text=0, image=0)
        result = encoded(tiny, config(), tmp_path / "c")
        return result, dict(counts)

    run.root = root
    return run


def test_a_second_run_encodes_nothing(encode):
    _, counts = encode()
    assert counts == {"text": 4, "image": 6}
    _, counts = encode()
    assert counts == {"text": 0, "image": 0}


def test_an_edited_caption_or_image_is_encoded_anew_and_nothing_else_is(encode):
    encode()
    (encode.root / "0002" / "caption.txt").write_text(CAPTION.replace("Ana", "Eva"))
    assert encode()[1] == {"text": 1, "image": 0}
    picture(64, 32, seed=77).save(encode.root / "0003" / "2.png")
    assert encode()[1] == {"text": 0, "image": 2}


def test_an_entry_that_is_damaged_is_encoded_again(encode, tmp_path):
    encode()
    for kind in ("text", "latents"):
        path = next((tmp_path / "c").glob(f"{kind}-*"))
        path.write_bytes(path.read_bytes()[:20])
    _, counts = encode()
    assert counts == {"text": 1, "image": 1}


def test_every_set_keeps_its_own_latents_and_words(encode, tiny):
    result, _ = encode()
    dataset = open_dataset(encode.root)
    for entry, image_set in zip(result.sets, dataset.sets, strict=True):
        text = tiny.encode_text(image_set.caption())
        assert torch.equal(entry.text()["prompt"], text["prompt"])
        panels = image_set.load(dataset.recipe).panels
        for size, layout in enumerate(entry.layouts):
            expected = tiny.encode_image(np.asarray(compose(layout, panels)))
            assert torch.equal(entry.latents(size), expected)
    assert torch.equal(result.empty["prompt"], tiny.encode_text("")["prompt"])


def test_the_latents_are_the_posteriors_mode_and_no_frozen_draw(encode, tmp_path):
    one, _ = encode()
    before = one.sets[0].latents(0)
    for path in (tmp_path / "c").glob("latents-*"):
        path.unlink()
    two, _ = encode()
    assert torch.equal(before, two.sets[0].latents(0))


def test_the_encoders_are_freed_before_the_first_step(encode, tiny):
    encode()
    assert not {"_t5", "_clip", "_vae"} & set(tiny.__dict__)


def test_an_entry_that_vanished_is_named(encode, tmp_path):
    result, _ = encode()
    for path in (tmp_path / "c").glob("latents-*"):
        path.unlink()
    with pytest.raises(RunError, match="gone or damaged"):
        result.sets[0].latents(0)
