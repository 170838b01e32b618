"""The bases of all families, without any adapter, and one cache for short runs."""

import pytest

from tests.conftest import resting
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


@pytest.fixture(scope="session")
def flux2():
    """The tiny random FLUX.2-dev, float32 on the CPU. A test leaves no adapter in it."""
    return resting("tiny-flux2")


@pytest.fixture(params=[*FAMILIES, pytest.param("tiny-flux2", marks=pytest.mark.machine)])
def family(request, monkeypatch):
    """A base of each family, its texts short; FLUX.2-dev's begin with a long system message."""
    model = request.getfixturevalue(FAMILIES.get(request.param, "flux2"))
    most = 96 if request.param in FAMILIES else 160
    monkeypatch.setattr(model, "max_text_tokens", min(model.max_text_tokens, most))
    with without_adapter(model):
        yield model


@pytest.fixture
def runs_of(tmp_path, encodings):
    """What makes settings of short runs, of a base."""
    return lambda model: short_runs(model.name, tmp_path, encodings)
