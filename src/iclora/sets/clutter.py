"""Names that are left out of a dataset without a word, and those that only look like them.

Systems, sharing services and editors leave files of their own among people's pictures. A leading
dot alone makes none: a set that somebody hid, or whose name lost its beginning, is named.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from iclora.files import is_leftover
from iclora.sets.kinds import IMAGE_SUFFIXES

__all__ = ["hidden_pictures", "is_clutter", "names_in"]

# Left by systems, sharing services and editors; compared in lower case.
_CLUTTER = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "@eadir",
    "#recycle",
    "#snapshot",
    "@recycle",
    "@recently-snapshot",
    "@__thumb",
    "@synoresource",
    "@tmp",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "network trash folder",
    "temporary items",
    "__pycache__",
    "picasa.ini",
    "zbthumbnail.info",
}
_TOOLS = re.compile(
    r"\.(?:git|svn|hg|bzr|thumb|trash|pending|recycle|spotlight|fseventsd|documentrevisions"
    r"|temporaryitems|apple|ipynb_checkpoints|st(?:versions|folder|ignore)|sync|dropbox|cache|picasa"
    r"|idea|vscode|venv|tox|iclora|huggingface|ds_store|tmp|temp|fuse_hidden|nfs|comfyui|workers-"
    r"|@|\$)"
)
"""How the hidden names begin in which systems and tools keep pictures of their own."""
_MOST = 1000
"""Files of a hidden folder that are looked at."""


def is_clutter(name: str) -> bool:
    """True for the name of a file or folder that is not read."""
    return (name.startswith(".") and name != "..") or name.lower() in _CLUTTER


def hidden_pictures(names: Iterable[str]) -> Counter[str]:
    """How many pictures a leading dot hides, by the path of the hidden file or folder.

    Args:
        names: of files, with slashes.
    """
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split("/")
        at = next((k for k, part in enumerate(parts) if is_clutter(part)), None)
        if at is not None and name.lower().endswith(IMAGE_SUFFIXES) and _is_own(parts[at]):
            found["/".join(parts[: at + 1])] += 1
    return found


def names_in(entry: os.DirEntry[str], shown: str) -> Iterator[str]:
    """The names of the files in a hidden folder, or that of a hidden file; no link is followed.

    Args:
        shown: the entry's path as names have it.
    """
    if not _is_own(entry.name) or entry.is_symlink():
        return iter(())
    if entry.is_file():
        return iter((shown,))
    inside = (
        f"{shown}{folder[len(entry.path) :]}/{name}".replace(os.sep, "/")
        for folder, _, names in os.walk(entry.path)
        for name in names
    )
    return islice(inside, _MOST)


def _is_own(name: str) -> bool:
    """True if a dot hides a name that no system or tool is known to have given."""
    hides = re.match(r"\.(?![._~])", name)
    return bool(hides) and not (_TOOLS.match(name.lower()) or is_leftover(name))
