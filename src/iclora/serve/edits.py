"""Changes to the files of datasets, each with a way back.

What a change replaces or removes is copied into the server's own folder first, with a record of it,
so that neither a kill in the middle nor a second thought loses a file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from iclora import files
from iclora.errors import DatasetError
from iclora.files.documents import read_json
from iclora.serve.catalog import Catalog
from iclora.serve.problems import Refused
from iclora.serve.store import new_id
from iclora.sets.editing import Changes

__all__ = ["Edits"]

_KEPT = 200
"""Changes that can be taken back; of older ones the files are removed."""


class Edits:
    """The folder of changes.

    Args:
        catalog: knows where datasets lie, and what leads out of the served folder.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog, self._home = catalog, catalog.home / "edits"
        self._lock = threading.Lock()

    def apply(self, dataset: str, image_set: str, changes: Changes) -> str:
        """Write changes to a dataset's files.

        Returns: an id for `undo`.
        Raises: Refused with 404 for a file that leads out of the served folder; StorageError.
        """
        root = self._catalog.dataset(dataset)
        with self._lock:
            edit = new_id()
            held = self._home / edit
            record: list[dict[str, Any]] = []
            for number, (name, after) in enumerate(changes.items()):
                before = self._before(root, name)
                if before is not None:
                    files.write_bytes(held / f"{number}", before)
                record.append({"name": name, "before": _hash(before), "after": _hash(after)})
            about = {"dataset": dataset, "set": image_set, "files": record}
            files.write_text(held / "edit.json", json.dumps(about))
            _write(root, changes)
            self._prune()
        return edit

    def undo(self, dataset: str, edit: str) -> str:
        """Take a change back.

        Returns: the name of the set that it was about.
        Raises: Refused with 404 for one that is not known, and with 412 if one of its files was
            changed since; StorageError.
        """
        root = self._catalog.dataset(dataset)
        held = self._home / edit
        if not re.fullmatch(r"[0-9A-Za-z_-]{8,64}", edit) or not (held / "edit.json").is_file():
            raise Refused(404, "this change is not known any more", "Change it by hand.")
        about = read_json(held / "edit.json", DatasetError, "record of a change")
        if about["dataset"] != dataset:
            raise Refused(404, "this change is not of this dataset", "Look again.")
        with self._lock:
            back: Changes = {}
            for number, each in enumerate(about["files"]):
                now = _hash(self._before(root, each["name"]))
                # A kill in the middle leaves some files as they were.
                if now not in (each["after"], each["before"]):
                    raise Refused(
                        412, f"{each['name']} was changed since", "Nothing is taken back."
                    )
                kept = held / f"{number}"
                back[each["name"]] = kept.read_bytes() if each["before"] else None
            _write(root, back)
            shutil.rmtree(held, ignore_errors=True)
        return str(about["set"])

    def _before(self, root: Path, name: str) -> bytes | None:
        path = files.inside(root, name, DatasetError)
        if not self._catalog.inside(path) or (root / name).is_symlink():
            raise Refused(404, f"{name} lies elsewhere", "Copy it here to change it.")
        return path.read_bytes() if path.is_file() else None

    def _prune(self) -> None:
        old = sorted(path for path in self._home.iterdir() if path.is_dir())[:-_KEPT]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)


def _hash(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def _write(root: Path, changes: Changes) -> None:
    """New files first, so that a kill leaves too many rather than too few."""
    for name, data in changes.items():
        if data is not None:
            files.write_bytes(root / name, data)
    for name, data in changes.items():
        if data is None:
            try:
                (root / name).unlink(missing_ok=True)
            except OSError as error:
                raise files.storage_error(root / name, error) from error
            if PurePosixPath(name).parent != PurePosixPath():
                with suppress(OSError):  # Something else is in it.
                    (root / name).parent.rmdir()
