import hashlib
import json
import re
from importlib.resources import files

from iclora.serve.studio import page

STATIC = files("iclora.serve.studio") / "static"


def test_every_vendored_file_is_the_one_its_manifest_names_with_a_licence():
    vendor = STATIC / "vendor"
    named = json.loads((vendor / "manifest.json").read_text(encoding="utf-8"))
    for each in named:
        found = (vendor / each["file"]).read_bytes()
        assert hashlib.sha256(found).hexdigest() == each["sha256"], each["file"]
        assert "Copyright" in (vendor / each["text"]).read_text(encoding="utf-8")
    there = {path.name for path in vendor.iterdir() if path.name.endswith(".mjs")}
    assert there == {each["file"] for each in named}


def test_the_page_names_nothing_elsewhere_and_no_path_from_the_root():
    for name, file in page.read_files().items():
        text = file.data.decode()
        if not name.startswith("vendor/") and not name.endswith(".svg"):
            assert not re.search(r"https?://", text), name
            assert not re.search(r"""(?:src|href|from|url)\s*[=(]?\s*["']/""", text), name


def reached(name, files, found):
    """A module and all that it imports at once."""
    if name not in found:
        found.add(name)
        for other in re.findall(r'from "\./([\w.]+)"', files[name].data.decode()):
            reached(other, files, found)
    return found


def test_every_screen_is_small_and_its_files_are_few():
    files = page.read_files()
    begin = {"index.html", "app.css", *(name for name in files if name.endswith(".mjs"))}
    begin |= reached("main.js", files, set())
    screens = re.findall(r'import\("\./([\w.]+)"', files["main.js"].data.decode())
    assert "make.js" in screens
    for screen in screens:
        asked = begin | reached(screen, files, set())
        assert len(asked) <= 25, screen
        assert sum(len(files[name].packed) for name in asked) < 60_000, screen
    assert sum(len(file.packed) for file in files.values()) < 150_000


def test_every_module_that_is_imported_is_sent():
    found = page.read_files()
    for name, file in found.items():
        if name.endswith(".js"):
            for other in re.findall(r'(?:from |import\()"\./([\w.]+)"', file.data.decode()):
                assert other in found, f"{name} imports {other}"
