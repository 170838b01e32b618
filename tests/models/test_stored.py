"""Tensors on disk: read as they were written, or refused; never a number that was not there."""

from __future__ import annotations

import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from iclora.errors import StorageError
from iclora.models.stored import Damaged, read_stored, store

TENSORS = {
    "a": torch.linspace(-1, 1, 60).view(3, 20),
    "b": torch.linspace(0, 9, 40).to(torch.bfloat16),
    "count": torch.tensor(3.0),
    "none": torch.zeros(0, 4),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    store(path, TENSORS, {"step": 3, "of": {"panel-1": "é"}})
    return path


def test_what_was_stored_is_read_again_and_the_same_content_gives_the_same_bytes(file, tmp_path):
    tensors, about = read_stored(file)
    assert about == {"step": 3, "of": {"panel-1": "é"}}
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)
    store(tmp_path / "y", dict(reversed(TENSORS.items())), {"step": 3, "of": {"panel-1": "é"}})
    assert (tmp_path / "y").read_bytes() == file.read_bytes()


def same(file):
    tensors, about = read_stored(file)
    expected = {"step": 3, "of": {"panel-1": "é"}}
    return about == expected and all(torch.equal(tensors[n], v) for n, v in TENSORS.items())


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(file):
    """Of some 8,000 all were tried once; each run tries others of them."""
    whole = file.read_bytes()
    noticed, tried = 0, random.sample(range(8 * len(whole)), 250)
    for bit in tried:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            assert same(file), f"bit {bit}: {whole[max(0, bit // 8 - 9) : bit // 8 + 9]!r}"
        except Damaged:
            noticed += 1
    assert noticed > 0.9 * len(tried)


@pytest.mark.parametrize("seed", range(8))
def test_zeroed_exchanged_doubled_and_missing_blocks_are_noticed(file, seed):
    rng, whole = random.Random(seed), file.read_bytes()
    length = rng.choice([4, 16, 64, 256])
    start, other = (rng.randrange(len(whole) - length) for _ in range(2))
    block, second = whole[start : start + length], whole[other : other + length]
    for data in (
        whole[:start] + bytes(length) + whole[start + length :],
        whole[:start] + whole[start + length :],
        whole[:start] + block + whole[start:],
        whole[:start] + second + whole[start + length :],
        whole[:start],
        whole + block,
    ):
        file.write_bytes(data)
        if data != whole:
            with pytest.raises(Damaged):
                assert not same(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_damage_with_and_without_a_checksum(tmp_path, value):
    wrong = {"a": torch.tensor([1.0, value])}
    store(tmp_path / "one", wrong, {})
    save_file(wrong, tmp_path / "two")
    for name in ("one", "two"):
        with pytest.raises(Damaged, match="not finite"):
            read_stored(tmp_path / name)


def test_files_of_versions_without_checksums_are_read_and_others_without_one_are_not(tmp_path):
    def write(metadata):
        save_file({"a": torch.ones(2)}, tmp_path / "old", metadata)
        return tmp_path / "old"

    assert read_stored(write(None))[0]["a"].tolist() == [1, 1]
    known = {"iclora": json.dumps({"step": 1, "base": "x"})}
    assert read_stored(write(known), before=("base", "step"))[1] == {"step": 1, "base": "x"}
    for metadata in (
        {"iclora": json.dumps({"step": 1})},
        {"iclora": json.dumps({"step": 1, "base": "x", "sun": "0"})},
        {"iclorb": json.dumps({"step": 1, "base": "x"})},
        {"iclora": "[1, 2]"},
        {"iclora": '{"step": NaN, "base": "x"}'},
        {"iclora": "{" * 5000},
        {"iclora": '{"step": ' + "9" * 5000 + "}"},
    ):
        with pytest.raises(Damaged):
            read_stored(write(metadata), before=("base", "step"))


def test_what_is_no_file_of_tensors_is_damage_and_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "text", "empty", "pipe", "gone"):
        with pytest.raises(Damaged):
            read_stored(tmp_path / name)


def test_a_file_that_cannot_be_read_now_is_not_called_damaged(file, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("iclora.models.stored.safe_open", refused)
    with pytest.raises(StorageError, match="Permission denied"):
        read_stored(file)


def test_other_tools_read_the_tensors_as_they_are(file):
    theirs = load_file(file)
    assert all(torch.equal(theirs[name], value) for name, value in TENSORS.items())
