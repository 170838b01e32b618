"""The page's own modules in one script, so that a browser asks once instead of forty times.

Nothing is compiled: every line goes out as it lies in static/, save for the lines that import and
export. Each module keeps its names to itself, as a function that returns what it exports, and they
stand in the order in which a browser would run them:

    const words_js = (() => {
    function join(form, overview, panels) { ... }
    return { join };
    })();

    const draft_js = (() => {
    const { join } = words_js;

Libraries stay files of their own, byte by byte those of their authors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["join"]

_IMPORT = re.compile(r'import (?:(\w+)|\* as (\w+)|\{ ([^{}]+) \}) from "([^"]+)";')
_EXPORT_FROM = re.compile(r'export \{ ([^{}]+) \} from "([^"]+)";')
_EXPORT_NAMES = re.compile(r"export \{ ([\w, ]+) \};")
_EXPORT = re.compile(r"export (?:(?:async )?function|class|const) (?:(\w+)|\{ ([\w, ]+) \})")
_EITHER = re.compile(r"(import|export)\b")


def join(modules: Mapping[str, str], entry: str) -> str:
    """One script of a module and all that it imports.

    Args:
        modules: text by file name.
        entry: the module that is run last; it is not wrapped, so it may wait for something.
    Raises: ValueError for an import or export that is not of a form above, and for modules that
        import each other in a circle.
    """
    order: list[str] = []
    libraries: dict[str, str] = {}
    texts: dict[str, str] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"these import each other: {' -> '.join((*above, name))}")
        if name in order:
            return
        body, exports, needed = _read(name, modules[name])
        for other in needed:
            if other.startswith("./"):
                add(other[2:], (*above, name))
            else:
                libraries[other] = f'import * as {_called(other)} from "{other}";'
        order.append(name)
        head = f"// -- {name} {'-' * (95 - len(name))}\n"
        if name == entry:
            texts[name] = head + body
        else:
            told = f"return {{ {', '.join(exports)} }};"
            texts[name] = f"{head}const {_called(name)} = (() => {{\n{body}{told}\n}})();\n"

    add(entry, ())
    # A console reaches what a module knows: (await import(ADDRESS)).state_js.jobs.value
    whole = f"export {{ {', '.join(_called(name) for name in order if name != entry)} }};\n"
    return "\n".join([*libraries.values(), *(texts[name] for name in order), whole])


def _read(name: str, text: str) -> tuple[str, list[str], list[str]]:
    """A module's text without imports and exports, what it exports, and what it imports."""
    lines: list[str] = []
    exports: list[str] = []
    needed: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not _EITHER.match(line):
            lines.append(line)
        elif found := _IMPORT.fullmatch(line):
            default, whole, names, origin = found.groups()
            needed.append(origin)
            there = _called(origin)
            if whole:
                lines.append(f"const {whole} = {there};")
            else:
                taken = f"default: {default}" if default else names.replace(" as ", ": ")
                lines.append(f"const {{ {taken} }} = {there};")
        elif found := _EXPORT_FROM.fullmatch(line):
            needed.append(found[2])
            exports += found[1].split(", ")
            lines.append(f"const {{ {found[1]} }} = {_called(found[2])};")
        elif found := _EXPORT_NAMES.fullmatch(line):
            exports += found[1].split(", ")
        elif found := _EXPORT.match(line):
            exports += [found[1]] if found[1] else found[2].split(", ")
            lines.append(line.removeprefix("export "))
        else:
            raise ValueError(f"{name}, line {number} is not read here: {line}")
    return "\n".join(lines) + "\n", exports, needed


def _called(origin: str) -> str:
    """The name of a module in the script: api_js for ./api.js, from_htm for htm."""
    if origin.endswith(".js"):
        return re.sub(r"\W", "_", origin.removeprefix("./"))
    return f"from{re.sub(r'[^a-z]+', '_', f'/{origin}')}"
