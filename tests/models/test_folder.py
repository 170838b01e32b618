"""Weights as they come from a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from iclora.models import load_model


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_weights_in_the_files_own_type_are_mapped_and_not_copied():
    """So a machine needs no room for a base whose layers go to a card, or to fewer bits, singly."""
    weights = list(load_model("tiny", dtype="fp32").denoiser.parameters())
    lines = Path("/proc/self/maps").read_text().splitlines()
    ends = [line.split()[0].split("-") for line in lines if line.endswith(".safetensors")]
    mapped = [range(int(first, 16), int(last, 16)) for first, last in ends]
    assert all(any(w.data_ptr() in file for file in mapped) for w in weights)
