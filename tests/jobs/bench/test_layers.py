"""Layers in few bits, timed beside others'."""

from __future__ import annotations

from importlib.util import find_spec

from iclora.jobs.bench import layers
from iclora.jobs.bench.telling import Bench


def test_every_way_tells_its_rate_and_error_or_why_it_cannot(monkeypatch, tmp_path):
    monkeypatch.setattr(layers, "_SMALL", (64, 128, 64))
    bench = Bench("cpu", tmp_path, tmp_path / "told.json")
    layers.kinds(bench)
    assert bench.broken == []
    told = {figure["what"]: figure for figure in bench.figures}
    errors = [told[f"{kind}, error"]["value"] for kind in ("bf16", "int8, iclora", "nf4, iclora")]
    assert 0 < errors[0] < errors[1] < 0.015 < errors[2] < 0.15
    assert told["nf4, iclora, both passes"]["value"] > 0
    if find_spec("torchao") is None:
        assert told["int8, torchao"]["note"] == "torchao is not installed"
