"""Registries: what ships, what other packages add."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from iclora.errors import SettingsError
from iclora.settings import registry
from iclora.settings.registry import Registry

SHIPPED = {"natural": "iclora.files:natural_key"}


def test_a_shipped_name_is_imported_when_it_is_asked_for():
    from iclora.files import natural_key

    assert Registry("iclora.things", "thing", SHIPPED).load("natural") is natural_key


def test_another_package_adds_a_name_but_takes_none_that_ships(monkeypatch):
    points = [
        EntryPoint("digest", "iclora.files:digest", "iclora.things"),
        EntryPoint("natural", "iclora.files:digest", "iclora.things"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    things = Registry("iclora.things", "thing", SHIPPED)
    assert sorted(things) == ["digest", "natural"]
    assert things.load("digest").__name__ == "digest"
    assert things.load("natural").__name__ == "natural_key"


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(SettingsError, match=r'no thing "x"(.|\n)*natural'):
        Registry("iclora.things", "thing", SHIPPED).load("x")
