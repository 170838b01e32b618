"""Made sets as one zip, written while it is sent: nothing is held but a piece of one file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["packed"]

_PIECE = 2**20
_LEFT_OUT = frozenset({"latents.safetensors", "request.json"})


class _Sink:
    """A file that cannot be gone back in, and gives up what was written to it."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def flush(self) -> None: ...

    def take(self) -> bytes:
        found, self._held = bytes(self._held), bytearray()
        return found


def packed(sets: Mapping[str, tuple[Path, dict[str, Any]]]) -> Iterator[bytes]:
    """The pieces of a zip.

    Args:
        sets: each set's folder and its request without this machine's folders, by the name it gets.
            Latents are left out: whoever makes a set again makes them, too.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for name, (folder, request) in sets.items():
            archive.writestr(f"{name}/request.json", json.dumps(request, indent=2) + "\n")
            for path in sorted(folder.iterdir()):
                if path.name in _LEFT_OUT or path.name.startswith(".") or path.is_symlink():
                    continue
                if not path.is_file():
                    continue
                with path.open("rb") as file, archive.open(f"{name}/{path.name}", "w") as to:
                    while piece := file.read(_PIECE):
                        to.write(piece)
                        yield sink.take()
        yield sink.take()
    yield sink.take()
