"""Encoded once, keyed by content, paired with the right words."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from iclora.errors import RunError
from iclora.sets.canvas import compose
from iclora.sets.dataset import open_dataset
from iclora.sets.layout import Layout
from iclora.sets.tokens import cells_of
from iclora.train.cache import _encode_canvas
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

    def run(folder=tmp_path / "c"):
        counts.update(text=0, image=0)
        run.said.clear()
        result = encoded(tiny, config(), folder, run.said.append)
        return result, dict(counts)

    run.said = []

    run.root = root
    return run


@pytest.fixture(scope="session")
def _whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def again(encode, tmp_path, _whole):
    """`encode` where the dataset was encoded before."""
    encode(_whole)
    shutil.copytree(_whole, tmp_path / "c")
    return encode


def test_a_second_run_encodes_nothing(encode):
    _, counts = encode()
    assert counts == {"text": 4, "image": 6}
    _, counts = encode()
    assert counts == {"text": 0, "image": 0}


def test_an_edited_caption_or_image_is_encoded_anew_and_nothing_else_is(again):
    again()
    (again.root / "0002" / "caption.txt").write_text(CAPTION.replace("Ana", "Eva"))
    assert again()[1] == {"text": 1, "image": 0}
    picture(64, 32, seed=77).save(again.root / "0003" / "2.png")
    assert again()[1] == {"text": 0, "image": 2}


def test_an_entry_that_is_damaged_is_encoded_again(again, tmp_path):
    again()
    for kind in ("text", "latents"):
        path = next((tmp_path / "c").glob(f"{kind}-*"))
        path.write_bytes(path.read_bytes()[:20])
    _, counts = again()
    assert counts == {"text": 1, "image": 1}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def nan(path):
    tensors = load(path.read_bytes())
    next(iter(tensors.values())).flatten()[-1] = float("nan")
    save_file(tensors, path)


def reshaped(path):
    save_file({name: value[:-1] for name, value in load(path.read_bytes()).items()}, path)


DAMAGE = {
    "a bit of the content": lambda path: flip(path, -100),
    "a bit of the header": lambda path: flip(path, 60),
    "a block of zeros": lambda path: path.write_bytes(path.read_bytes()[:-600] + bytes(600)),
    "NaN": nan,
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_entry_that_is_not_as_it_was_written_is_encoded_again_and_said(again, tmp_path, kind):
    before, _ = again()
    text, latents = before.sets[1].texts()[0], before.sets[2].latents(1)
    for path in (before.sets[1]._texts[0], before.sets[2]._latents[1]):
        DAMAGE[kind](path)
    with pytest.raises(RunError, match="damaged"):
        before.sets[2].latents(1)
    after, counts = again()
    assert counts == {"text": 1, "image": 1}
    assert len(again.said) == 2
    assert all("is encoded again" in text for text in again.said)
    assert torch.equal(after.sets[2].latents(1), latents)
    assert all(torch.equal(after.sets[1].texts()[0][name], value) for name, value in text.items())
    assert again()[1] == {"text": 0, "image": 0}
    assert again.said == []


@pytest.mark.parametrize("kind", ["_latents", "_texts"])
def test_entries_that_changed_places_are_noticed(again, kind):
    before, _ = again()
    one, two = (getattr(entry, kind)[0] for entry in before.sets[:2])
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    _, counts = again()
    assert sum(counts.values()) == 2
    assert len(again.said) == 2
    assert (one.read_bytes(), two.read_bytes()) == (first, second)


def test_entries_of_versions_without_checksums_are_used_if_shape_and_numbers_are_right(again):
    before, _ = again()
    paths = [path for entry in before.sets for path in (*entry._latents, *entry._texts)]
    for path in paths:
        save_file(load(path.read_bytes()), path)
    assert again()[1] == {"text": 0, "image": 0}
    reshaped(paths[0])
    nan(paths[1])
    assert again()[1] == {"text": 0, "image": 2}
    assert len(again.said) == 2


@pytest.mark.parametrize("kind", ["image", "text"])
def test_an_encoder_that_gives_no_finite_numbers_is_named_at_once(encode, tiny, monkeypatch, kind):
    wrong = torch.full((4, 4), float("nan"))
    found = wrong if kind == "image" else {"prompt": wrong}
    monkeypatch.setattr(tiny, f"encode_{kind}", lambda _: found)
    with pytest.raises(RunError, match="not finite"):
        encode()


def test_every_set_keeps_its_own_latents_and_words(again, tiny):
    result, _ = again()
    dataset = open_dataset(again.root)
    for entry, image_set in zip(result.sets, dataset.sets, strict=True):
        text = tiny.encode_text(image_set.caption())
        assert torch.equal(entry.texts()[0]["prompt"], text["prompt"])
        panels = image_set.load(dataset.recipe).panels
        for size, layout in enumerate(entry.layouts):
            expected = tiny.encode_image(np.asarray(compose(layout, panels)))
            assert torch.equal(entry.latents(size), expected)
    assert torch.equal(result.empty["prompt"], tiny.encode_text("")["prompt"])


def test_the_latents_are_the_posteriors_mode_and_no_frozen_draw(again, tmp_path):
    one, _ = again()
    before = one.sets[0].latents(0)
    for path in (tmp_path / "c").glob("latents-*"):
        path.unlink()
    two, _ = again()
    assert torch.equal(before, two.sets[0].latents(0))


def test_the_encoders_are_freed_before_the_first_step(encode, tiny):
    encode()
    assert not {"_t5", "_clip", "_vae"} & set(tiny.__dict__)


def test_an_entry_that_vanished_is_named(again, tmp_path):
    result, _ = again()
    for path in (tmp_path / "c").glob("latents-*"):
        path.unlink()
    with pytest.raises(RunError, match="gone or damaged"):
        result.sets[0].latents(0)


def test_panels_encoded_alone_lie_where_the_canvas_has_them(tiny, config, tmp_path):
    whole = encoded(tiny, config(), tmp_path / "c")
    alone = encoded(tiny, config(encode="panels"), tmp_path / "c")
    source = open_dataset(config().data)
    panels = source.sets[1].load(source.recipe).panels
    entry = alone.sets[1]
    layout = entry.layouts[1]
    cells = entry.latents(1).view(layout.height // 16, layout.width // 16, -1)
    for number, (box, panel) in enumerate(zip(layout.boxes, panels, strict=True), 1):
        pixels = np.asarray(layout.fit_panel(number, panel))
        expected = tiny.encode_image(pixels).view(box.height // 16, box.width // 16, -1)
        assert torch.equal(cells[cells_of(box, 16)], expected)
    assert not torch.equal(entry.latents(1), whole.sets[1].latents(1))


def test_a_gap_between_panels_is_encoded_with_the_canvas(tiny):
    layout = Layout.free([(0, 0, 64, 32), (0, 48, 64, 48)], 64, 96)
    panels = [picture(64, 32, 1), picture(64, 48, 2)]
    whole, alone = (_encode_canvas(tiny, layout, panels, how) for how in ("canvas", "panels"))
    gap = slice(2 * 4, 3 * 4)
    assert torch.equal(whole[gap], alone[gap])
    assert not torch.equal(whole[:8], alone[:8])
