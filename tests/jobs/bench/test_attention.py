"""Attention's kernels, tried on this machine."""

from __future__ import annotations

from iclora.jobs.bench import attention
from iclora.jobs.bench.telling import Bench


def test_every_kernel_tells_its_rate_and_the_chosen_one_is_among_them(monkeypatch, tmp_path):
    monkeypatch.setattr(attention, "_ON_CPU", {"tiny": (40, 56)})
    bench = Bench("cpu", tmp_path, tmp_path / "told.json")
    attention.kernels(bench)
    assert bench.broken == []
    told = {figure["what"]: figure for figure in bench.figures}
    for passes in ("forward", "both passes"):
        chosen = told[f"tiny, chosen, {passes}"]
        assert chosen["value"] in ("fused", "headwise", "blockwise")
        for name in (chosen["value"], "fused", "blockwise", "iclora's"):
            assert told[f"tiny, {name}, {passes}"]["value"] > 0
        assert "ms" in chosen["note"]
