"""What keeps many short runs fast: texts that are hardly padded, one cache for all of them."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tiny(brief):
    return brief


@pytest.fixture(scope="session")
def _unstopped():
    return {}


@pytest.fixture
def unstopped(clean, config, _unstopped):
    """The files of a run that nothing stopped, by name; equal runs are made once."""
    from iclora.train.run import train

    def files(**settings):
        key = (clean.max_text_tokens, *sorted(settings.items()))
        if key not in _unstopped:
            folder = train(config("unstopped", **settings), clean).folder
            _unstopped[key] = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        return _unstopped[key]

    return files


@pytest.fixture(scope="session")
def _one_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("encoded")


@pytest.fixture
def config(config, _one_cache):
    """Settings of a short run on a small dataset; `cache=None` encodes it once more."""

    def make(out="run", **more):
        return config(out, **{"cache": str(_one_cache), **more})

    return make
