"""Names that Windows has for no file; the rule runs on every system."""

from __future__ import annotations

import pytest

from iclora.files import place
from iclora.files.names import fault_on_windows

BAD = [
    "CON",
    "nul.txt",
    "Aux.tar.gz",
    "COM1",
    "lpt\u00b9",
    "CONIN$",
    "prn .x",
    "a.",
    "a ",
    "a:b",
    "q?",
]
GOOD = ["con1", "aux-1", "COM10", "nulls", ".hidden", "a.b", "..", "\u00fcber", "console.png"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_windows_lacks_is_no_place_there_and_one_elsewhere(name):
    assert fault_on_windows(name)
    with pytest.raises(ValueError, match="use another name"):
        place(f"C:\\sets\\{name}\\x.png", windows=True)
    assert place(f"sets/{name}/x.png", windows=False)


@pytest.mark.parametrize("name", GOOD)
def test_a_name_that_windows_has_is_a_place(name):
    assert fault_on_windows(name) is None
    assert place(f"sets/{name}", windows=True)
