"""Hashes of parts, and of files as one part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["digest", "digest_each", "digest_file"]


def digest(*parts: bytes | str) -> str:
    """SHA-256 over length-prefixed parts, as 64 hex digits; ("ab", "c") and ("a", "bc") differ."""
    return digest_each(parts)


def digest_each(parts: Iterable[bytes | str]) -> str:
    """The `digest` of parts that come one at a time, so that only one is in memory."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        sha.update(len(raw).to_bytes(8, "big"))
        sha.update(raw)
    return sha.hexdigest()


def digest_file(path: Path) -> str:
    """The `digest` of a file's bytes, of which a megabyte is in memory. Raises: OSError."""
    with path.open("rb") as file:
        sha = hashlib.sha256(path.stat().st_size.to_bytes(8, "big"))
        while part := file.read(2**20):
            sha.update(part)
    return sha.hexdigest()
