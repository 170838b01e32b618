"""The bases of all families, without any adapter, and one cache for short runs."""

import pytest

from tests.models.helpers import short_runs, without_adapter

FAMILIES = {
    "tiny-klein": "klein",
    "tiny-zimage": "zimage",
    "tiny-krea": "krea",
    "tiny-qwen": "qwen",
}
"""The small bases that are guided by two passes, and their fixtures."""


@pytest.fixture(scope="session")
def encodings(tmp_path_factory):
    """One cache for all runs."""
    return str(tmp_path_factory.mktemp("encoded"))


@pytest.fixture(params=FAMILIES)
def family(request, monkeypatch):
    """A base of each family, its texts short."""
    model = request.getfixturevalue(FAMILIES[request.param])
    monkeypatch.setattr(model, "max_text_tokens", min(model.max_text_tokens, 96))
    with without_adapter(model):
        yield model


@pytest.fixture
def runs_of(tmp_path, encodings):
    """What makes settings of short runs, of a base."""
    return lambda model: short_runs(model.name, tmp_path, encodings)
