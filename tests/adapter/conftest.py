"""Adapters are compared by what a base makes of texts that are hardly padded."""

import pytest


@pytest.fixture(scope="session")
def tiny(brief):
    return brief
