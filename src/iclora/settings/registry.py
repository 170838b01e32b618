"""Things by their name: one shape for base families, captioners, metrics, formats and verbs.

A registry maps a name to a maker. What ships with iclora is named where the registry is made, as
"module:attribute", and imported when it is first asked for. Other packages add theirs by an entry
point of the registry's group, without a line changed here:

    [project.entry-points."iclora.metrics"]
    sharpness = "my_package.sharpness:Sharpness"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from iclora.errors import SettingsError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, Callable[[], T]], Generic[T]):
    """Names, and what each stands for; a value is imported by `load`.

    Args:
        group: of the entry points that add names, such as "iclora.metrics".
        noun: what one entry is, for errors: "metric".
        shipped: "module:attribute" by name. A name that ships cannot be taken by another package.
    """

    def __init__(self, group: str, noun: str, shipped: Mapping[str, str]) -> None:
        self.group, self.noun = group, noun
        self._shipped = dict(shipped)
        self._found: dict[str, Callable[[], T]] | None = None

    def _entries(self) -> dict[str, Callable[[], T]]:
        """Those that ship, in their order, then those of other packages by name."""
        if self._found is None:
            points = sorted(entry_points(group=self.group), key=lambda point: point.name)
            added = {p.name: p.load for p in points if p.name not in self._shipped}
            self._found = {n: _importer(place) for n, place in self._shipped.items()} | added
        return self._found

    def __getitem__(self, name: str) -> Callable[[], T]:
        if name in self._shipped:  # Found without a look into every installed package.
            return _importer(self._shipped[name])
        return self._entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def load(self, name: str) -> T:
        """What a name stands for. Raises: SettingsError for a name that nobody registered."""
        try:
            loader = self[name]
        except KeyError:
            raise SettingsError(
                f'there is no {self.noun} "{name}"', f"Use one of {', '.join(sorted(self))}."
            ) from None
        return loader()


def _importer(place: str) -> Callable[[], Any]:
    module, _, attribute = place.partition(":")
    return lambda: getattr(import_module(module), attribute)
