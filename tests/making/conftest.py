"""Sets are made with texts that are hardly padded."""

import pytest


@pytest.fixture(scope="session")
def tiny(brief):
    return brief
