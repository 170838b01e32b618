"""Files that hold others and are not read: archives, tables, downloads that went wrong.

Each is named by its first bytes, or by its ending, with the command that unpacks it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["HEAD", "Container", "container_of"]

HEAD = 512
"""Bytes of a file that tell what it is."""


class Container(NamedTuple):
    """A kind of file that holds others, and how to get at them."""

    name: str
    advice: str


_THEN = "and give the folder that it makes"


def _unpacked(name: str, command: str) -> Container:
    return Container(f"{name} archive", f"Unpack it with `{command}`, {_THEN}.")


_RAR = _unpacked("RAR", "unrar x FILE")
_7Z = _unpacked("7z", "7z x FILE")
_TAR = _unpacked("tar", "tar -xf FILE")
_ZIP = _unpacked("zip", "unzip FILE")
_TABLE = (
    "Write its pictures into files and its texts beside them, or into metadata.jsonl: `pip install "
    "datasets`, then in Python load_dataset(...), and save(...) of each picture."
)
_COLLECT = "`iclora collect FILE` makes image sets of it."
_SHORTCUT = Container(
    "shortcut", "Put the folder or file itself here; of links, only symbolic ones are followed."
)
_AGAIN = "Download it again; what lies here is not the file itself."
_MAGIC: tuple[tuple[int, bytes, Container], ...] = (
    (0, b"Rar!\x1a\x07", _RAR),
    (0, b"7z\xbc\xaf\x27\x1c", _7Z),
    (257, b"ustar", _TAR),
    (0, b"\x1f\x8b", _unpacked("gzip", "tar -xzf FILE` (or `gunzip FILE` if it holds one file")),
    (0, b"BZh", _unpacked("bzip2", "tar -xjf FILE")),
    (0, b"\xfd7zXZ\0", _unpacked("xz", "tar -xJf FILE")),
    (0, b"\x28\xb5\x2f\xfd", _unpacked("Zstandard", "zstd -dc FILE | tar -x")),
    (0, b"\x04\x22\x4d\x18", _unpacked("LZ4", "lz4 -dc FILE | tar -x")),
    (0, b"MSCF", _unpacked("cabinet", "7z x FILE")),
    (0, b"PK\x03\x04", _ZIP),
    (0, b"PK\x07\x08", _unpacked("zip (one part of a split one)", "7z x FIRST-PART")),
    (0, b"PK\x05\x06", Container("empty zip archive", "Make it again from the pictures.")),
    (0, b"PAR1", Container("Parquet file", _TABLE)),
    (0, b"ARROW1", Container("Arrow file", _TABLE)),
    (0, b"\x89HDF", Container("HDF5 file", _TABLE)),
    (0, b"SQLite format 3", Container("SQLite database", _TABLE)),
    (0, b"%PDF", Container("PDF", _COLLECT)),
    (0, b"L\0\0\0\x01\x14\x02\0", _SHORTCUT),
    (0, b"book\0\0\0\0mark", _SHORTCUT),
    (0, b"version https://git-lfs", Container("Git LFS pointer", "Fetch it: `git lfs pull`.")),
)
_ENDINGS: tuple[tuple[str, Container], ...] = (
    (r"\.(rar|cbr|r\d\d)", _RAR),
    (r"\.(7z|cb7|7z\.\d{3})", _7Z),
    (r"\.(tar|cbt)", _TAR),
    (r"\.(tar\.gz|tgz|tar\.bz2|tbz2?|tar\.xz|txz|tar\.zst|tzst|tar\.lz4?)", _TAR),
    (r"\.(zip\.\d{3}|z\d\d)", _unpacked("zip (one part of a split one)", "7z x FIRST-PART")),
    (r"\.pptx", Container("deck", _COLLECT)),
    (r"\.(lnk|url|webloc|desktop)", _SHORTCUT),
    (r"\.(zip|cbz)", _ZIP),
    (r"\.gz", _unpacked("gzip", "gunzip FILE")),
    (r"\.bz2", _unpacked("bzip2", "bunzip2 FILE")),
    (r"\.xz", _unpacked("xz", "unxz FILE")),
    (r"\.zst", _unpacked("Zstandard", "unzstd FILE")),
    (r"\.(iso|dmg|cab|lzh|lha|arj|ace)", _unpacked("disk or other", "7z x FILE")),
)


def container_of(name: str, head: bytes) -> Container | None:
    """What a file is that holds others, by its first HEAD bytes and its name; else None."""
    named = next((c for e, c in _ENDINGS if re.search(f"{e}$", name, re.IGNORECASE)), None)
    for at, sign, container in _MAGIC:
        if head[at : at + len(sign)] == sign:
            if named and named.name == "deck":
                return named
            if named == _TAR and container not in (_ZIP, _RAR, _7Z):
                return _TAR  # packed in whatever way; tar finds out itself
            return container
    if re.match(rb"\s*(<!doctype html|<html)", head, re.IGNORECASE):
        return Container("web page", _AGAIN)
    return named
