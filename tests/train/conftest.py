"""What keeps many short runs fast: one cache for all of them, and no plots unless asked for."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def _one_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("encoded")


@pytest.fixture
def config(config, _one_cache):
    """Settings of a short run on a small dataset; `cache=None` encodes it once more."""

    def make(out="run", **more):
        return config(out, **{"cache": str(_one_cache), **more})

    return make


@pytest.fixture
def plots():
    """Plots are drawn in this test."""


@pytest.fixture(autouse=True)
def _no_plots(request, monkeypatch):
    if "plots" not in request.fixturenames:
        for name in ("plot_loss", "plot_validation"):
            monkeypatch.setattr(f"iclora.train.folder.{name}", lambda *_: None)
