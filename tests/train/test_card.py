"""The card of a run: asked here, imagined elsewhere, measured by one process alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import iclora.train.card as room
from iclora.errors import SettingsError
from iclora.settings import TrainSettings
from iclora.train.card import GB, Card, find_card, speed_of

MEMINFO = Path("/proc/meminfo")


def settings(**given) -> TrainSettings:
    return TrainSettings(base="b", data="none", out="o", **given)


def test_a_card_is_planned_for_though_it_is_not_here_but_not_trained_on():
    away = find_card(settings(vram=24, device="auto"), here=False)
    assert (away.kernels, away.memory) == ("cuda", 24 * GB)
    here = find_card(settings(vram=24, device="cpu"), here=True)
    assert (here.kernels, here.dtype, here.device.type) == ("cpu", torch.float32, "cpu")
    assert find_card(settings(vram="auto", device="cpu"), here=True).memory > 0


def test_processes_that_share_a_run_do_not_each_ask_their_own_card(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="several processes"):
        find_card(settings(vram="auto", device="cpu"), here=True)


@pytest.mark.skipif(not MEMINFO.exists(), reason="only Linux tells it in a file")
def test_memory_that_holds_files_that_were_read_counts_as_free():
    """Linux fills all memory with them in a day: a machine of 24 GB had 0.3 GB free in CI."""
    found = find_card(settings(vram="auto", device="cpu"), here=True).memory
    told = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text(encoding="ascii"))
    # Other tests take and give back memory in between.
    assert found == pytest.approx(1024 * int(told[1]), rel=0.2)


def test_only_the_first_of_several_processes_measures_the_speed_of_a_card(monkeypatch):
    """The others have no device of their own yet: all would compute on the first one's."""
    asked = []
    monkeypatch.setattr(room, "matmul_rate", lambda *of: asked.append(of) or 1.0)
    card = Card(GB, "cpu", torch.float32, torch.device("cpu"))
    for rank, speed in (("0", 1.0), ("1", None)):
        monkeypatch.setenv("RANK", rank)
        assert speed_of(card) == speed
    assert len(asked) == 1
    assert speed_of(Card(GB, "cuda", torch.bfloat16)) is None
