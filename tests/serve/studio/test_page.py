import hashlib
import json
import re
from importlib.resources import files

import pytest

from iclora.serve.studio import page
from iclora.serve.studio.join import join

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


def test_the_whole_page_is_small_and_its_files_are_few():
    files = page.read_files()
    assert len(files) <= 10
    assert sum(len(file.packed) for file in files.values()) < 120_000


def test_the_script_holds_every_line_of_every_module_in_a_scope_of_its_own():
    script = page.read_files()["main.js"].data.decode()
    paths = [path for path in STATIC.iterdir() if path.name.endswith(".js")]
    assert len(paths) > 30
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert "import(" not in re.sub(r"/\*\*.*?\*/", "", text, flags=re.S), path.name
        body = re.split(r"\n// -- \w+\.js -", script.partition(f"// -- {path.name} -")[2])[0]
        lines = [line for line in text.splitlines() if line]
        kept = [line for line in lines if not line.startswith(("import ", "export "))]
        assert [line for line in body.splitlines() if line in {*kept}] == kept, path.name


MODULES = {
    "main.js": 'import { b as c } from "./b.js";\nimport * as all from "./a.js";\nlet d = await c;',
    "a.js": 'import { h } from "lib";\nexport const a = 1;\nfunction own() {}\nexport { own };',
    "b.js": 'import { a } from "./a.js";\nexport async function b() {\n  return a;\n}',
}


def test_modules_are_joined_in_the_order_in_which_a_browser_runs_them():
    script = join(MODULES, "main.js")
    order = [script.index(text) for text in ("const a_js", "const b_js", "let d = await c")]
    assert order == sorted(order)
    for line in (
        'import * as from_lib from "lib";',
        "return { a, own };",
        "const { b: c } = b_js;",
        "const all = a_js;",
        "export { a_js, b_js };",
    ):
        assert script.splitlines().count(line) == 1, line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("export default 1;", "main.js, line 1 is not read here"),
        ("export let a = 1;", "main.js, line 1 is not read here"),
        ('import "./b.js";', "main.js, line 1 is not read here"),
        ('import { b } from "./c.js";', "c.js -> main.js"),
    ],
)
def test_what_cannot_be_joined_faithfully_is_refused(text, said):
    circle = {"c.js": 'import { d } from "./main.js";\nexport const b = d;\n'}
    with pytest.raises(ValueError, match=said):
        join({**circle, "main.js": text}, "main.js")
