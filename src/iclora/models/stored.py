"""Tensors that are kept on disk to be used again: latents, embeddings, the state of a run.

A checksum of all that a file holds stands in its header: a flipped bit or a block of zeros is an
ordinary number to whoever reads it, and what is computed from it is wrong without a word.
"""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iclora.errors import StorageError
from iclora.files import write_bytes
from iclora.files.documents import parse_json

__all__ = ["Damaged", "read_stored", "store"]

_NAME = "iclora"
_SUM = "sum"
_PASSING = (errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Failures that say nothing of the file."""


class Damaged(Exception):
    """A file is not as it was written: cut short, changed, or another one. Says why."""


def store(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and what is known about them, whole or not at all.

    Raises: StorageError.
    """
    found = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    text = json.dumps({**about, _SUM: _sum(found, about)})
    # One metadata entry only: safetensors orders several of them at random, and the same content
    # must give the same bytes.
    write_bytes(path, save(found, {_NAME: text}))


def read_stored(
    path: Path, before: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `store` wrote, and compare its checksum.

    Args:
        before: what files of versions without checksums say about their tensors; these are read.
    Returns: the tensors, and what is known about them.
    Raises: Damaged; StorageError for a file that is there and cannot be read now.
    """
    try:
        if not path.is_file():  # Opening a pipe might never end.
            raise Damaged("it is gone" if not path.exists() else "it is not a regular file")
        path.open("rb").close()  # safetensors tells no reasons apart.
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copies: what is verified is what is used, whatever becomes of the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        if error.errno in _PASSING:
            why = error.strerror or str(error)
            raise StorageError(f"cannot read {path}: {why}", "Check the file.") from error
        raise Damaged(str(error)) from error
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(str(error)) from error
    about = _about(metadata)
    given = about.pop(_SUM, None)
    if given is None and set(about) != set(before):
        raise Damaged("its checksum is gone")
    if given is not None and given != _sum(tensors, about):
        raise Damaged("its content does not match its checksum")
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise Damaged(f"{name} holds numbers that are not finite")
    return tensors, about


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    if not metadata:
        return {}
    if set(metadata) != {_NAME}:
        raise Damaged("its header is not what iclora writes")
    try:
        about = parse_json(metadata[_NAME], "its header", StorageError)
    except StorageError as error:
        raise Damaged(error.problem) from error
    if not isinstance(about, dict):
        raise Damaged("its header is not what iclora writes")
    return about


def _sum(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """CRC-32 of everything, at some 2 GB a second; it guards against accidents, not attackers."""
    total = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.flatten().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
