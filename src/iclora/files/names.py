"""Names that a file may have on one system and not on another."""

from __future__ import annotations

import re

__all__ = ["fault_on_windows"]

_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3]) *(?:\..*)?",
    re.IGNORECASE | re.DOTALL,
)
"""Windows takes these for devices in every folder, whatever ending they have."""


def fault_on_windows(name: str) -> str | None:
    """Why Windows has no file of this name, behind "is"; None if it may have one.

    Args:
        name: of one file or folder, without those that hold it.
    """
    if name in (".", ".."):
        return None
    if _DEVICE.fullmatch(name):
        return "a device of Windows"
    if name.endswith((".", " ")):
        return f"a name whose last {'dot' if name[-1] == '.' else 'blank'} Windows drops"
    if found := re.search(r'[<>:"|?*\\/\x00-\x1f]', name):
        return f"a name with {found[0]!a}, which Windows has in none"
    return None
