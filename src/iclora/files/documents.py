"""Documents that people and other tools write: text, TOML, JSON and YAML, read with bounds.

Every one of the program passes `parse_toml`, `parse_json` or `parse_yaml`. They refuse in plain
words what no document of ours holds: NaN, numbers of thousands of digits, keys that stand twice,
nests; of YAML also objects, and texts that grow without end by aliases.
"""

from __future__ import annotations

import codecs
import functools
import json
import math
import os
import re
import stat
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from iclora.files import Refusal

__all__ = [
    "decode",
    "parse_json",
    "parse_toml",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_toml",
    "read_words",
]

_MOST_BYTES = 16 * 2**20
"""Of a document that people write; the largest tokenizer files have 20 MB and are not read here."""
_DEEPEST = 64
"""Levels of lists and tables; our own documents have six."""
_MOST_YAML = 2**20
"""Bytes of YAML; a configuration has a few thousand, and the reader takes seconds for a million."""
_MOST_NODES = 100_000
"""Values of a YAML document once its aliases are written out."""
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a character, which no file can hold: text of it could not be written."""
_LONGEST_NUMBER = 400
"""Digits; a float has 309 before its point at most, and Python takes quadratic time for more."""


def read_bytes(path: str | Path, refuse: Refusal, what: str, limit: int = _MOST_BYTES) -> bytes:
    """A regular file's bytes.

    Args:
        refuse: makes the error.
        what: what to call the file in it, such as "run file".
        limit: most bytes it may have.
    Raises: what `refuse` makes, for a file that is missing, unreadable, a device or too large.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 (both kinds of path)
        if stat.S_ISDIR(status.st_mode):
            raise refuse(f"{what} {path} is a folder", "Give a file.")
        if not stat.S_ISREG(status.st_mode):
            # Reading from a pipe or a device might never end.
            raise refuse(f"{what} {path} is not a regular file", "Give a file.")
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise refuse(f"{what} {path} cannot be read: {why}", "Check the path.") from error
    if len(data) > limit:
        raise refuse(
            f"{what} {path} has more than {limit / 2**20:.0f} MB",
            "Check the path: no such file is that large.",
        )
    return data


def decode(data: bytes, source: str, refuse: Refusal) -> str:
    """Text of UTF-8, or of UTF-16 with a byte order mark, as Windows' Notepad writes it.

    Raises: what `refuse` makes, for other encodings.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refuse(
            f"{source} is not UTF-8 text (line {line})", "Save it again as UTF-8."
        ) from error


def read_words(path: str | Path, refuse: Refusal, what: str) -> str:
    """The text of a file that people write, byte order marks removed.

    Raises: what `refuse` makes; see `read_bytes` and `decode`.
    """
    return decode(read_bytes(path, refuse, what), f"{what} {path}", refuse)


def read_toml(path: str | Path, refuse: Refusal, what: str) -> dict[str, Any]:
    """A TOML file. Raises: what `refuse` makes; see `parse_toml`."""
    return parse_toml(read_bytes(path, refuse, what), f"{what} {path}", refuse)


def read_json(path: str | Path, refuse: Refusal, what: str) -> Any:
    """A JSON file. Raises: what `refuse` makes; see `parse_json`."""
    return parse_json(read_bytes(path, refuse, what), f"{what} {path}", refuse)


def parse_toml(data: bytes | str, source: str, refuse: Refusal) -> dict[str, Any]:
    """A TOML document.

    Args:
        source: what to call it in an error.
    Raises: what `refuse` makes, for text that is not TOML, NaN and infinity, numbers of more than
        400 digits, and more than 64 levels.
    """
    text = decode(data, source, refuse) if isinstance(data, bytes) else data
    _check_numbers(text, source, refuse)
    if text.lstrip().startswith("{"):
        raise refuse(f"{source} is JSON, not TOML", "Write a line for each setting: steps = 1000.")
    try:
        found = tomllib.loads(text)
    except RecursionError as error:
        raise refuse(f"{source} is nested too deeply", "Check the file.") from error
    except ValueError as error:
        raise refuse(f"{source} is not valid TOML: {error}", _advise(text, str(error))) from error
    _check_values(found, source, refuse)
    return found


def parse_json(data: bytes | str, source: str, refuse: Refusal, *, foreign: bool = False) -> Any:
    """A JSON document.

    Args:
        source: what to call it in an error.
        foreign: True for what a server answers, which nobody can correct: a key that stands twice
            counts as it stands last, NaN and infinity are None, half characters stay.
    Raises: what `refuse` makes, for text that is not JSON (from the ValueError that says where),
        a key that stands twice in one object, NaN and infinity, half characters, numbers of more
        than 400 digits, and more than 64 levels.
    """
    text = decode(data, source, refuse) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    _check_numbers(text, source, refuse)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
            raise refuse(f'{source} has "{twice}" twice in one object', "Keep one of them.")
        return found

    try:
        if foreign:
            found = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
        else:
            found = json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise refuse(f"{source} is nested too deeply", "Check the file.") from error
    except ValueError as error:
        raise refuse(f"{source} is not valid JSON: {error}", "Check that line.") from error
    _check_values(found, source, refuse, foreign)
    return found


def parse_yaml(data: bytes | str, source: str, refuse: Refusal) -> Any:
    """A YAML document of plain values: tables by text, lists, text, numbers, true, false and null.

    Numbers as 1e-4 are numbers, as in YAML 1.2 and in ai-toolkit's reader; dates are text.

    Args:
        source: what to call it in an error.
    Raises: what `refuse` makes, for text that is not YAML, tags that make objects, a key that
        stands twice in one table or is no text, more than a megabyte or 100,000 values, and all
        that `parse_json` refuses.
    """
    import yaml

    text = decode(data, source, refuse) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    if len(text) > _MOST_YAML:
        raise refuse(f"{source} has more than a million letters", "Check the file.")
    _check_numbers(text, source, refuse)
    try:
        loader = _yaml_reader()(text)
        node = loader.get_single_node()
        if node is None:
            raise refuse(f"{source} is empty", "Check the file.")
        _check_nodes(node, source, refuse)
        found = loader.construct_document(node)
    except RecursionError as error:
        raise refuse(f"{source} is nested too deeply", "Check the file.") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or str(error).split("\n", 1)[0]
        line = f" (line {mark.line + 1})" if mark else ""
        raise refuse(f"{source} is not valid YAML: {why}{line}", "Check that line.") from error
    _check_values(found, source, refuse)
    return found


@functools.cache
def _yaml_reader() -> Any:
    """PyYAML's safe loader without what no configuration means: dates, sets, bytes."""
    import yaml

    plain = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
    tags = {f"tag:yaml.org,2002:{kind}" for kind in plain}
    safe = yaml.SafeLoader
    makers = {tag: make for tag, make in safe.yaml_constructors.items() if tag in (*tags, None)}
    rules = {
        first: [(tag, form) for tag, form in forms if tag in tags]
        for first, forms in safe.yaml_implicit_resolvers.items()
    }
    own = {"yaml_constructors": makers, "yaml_implicit_resolvers": rules}
    reader: Any = type("_Reader", (safe,), own)
    # YAML 1.1, which PyYAML reads, takes 1e-4 for text: it asks for a point and for the sign.
    form = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
    reader.add_implicit_resolver("tag:yaml.org,2002:float", form, list("-+.0123456789"))
    return reader


def _check_nodes(root: Any, source: str, refuse: Refusal) -> None:
    """Refuse what would be lost or grow when values are made of YAML's nodes."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        known = sizes.get(id(node))
        if known == 0:
            raise refuse(f"{source} has a value that contains itself", "Check its aliases (*).")
        if known is None:
            sizes[id(node)] = 0  # Being counted.
            known = 1
            if node.id == "mapping":
                _check_keys(node, source, refuse)
                known += sum(size(key) + size(value) for key, value in node.value)
            elif node.id == "sequence":
                known += sum(map(size, node.value))
            sizes[id(node)] = known
        if known > _MOST_NODES:
            raise refuse(
                f"{source} has more than {_MOST_NODES:,} values, aliases (*) written out",
                "Check the file.",
            )
        return known

    size(root)


def _check_keys(node: Any, source: str, refuse: Refusal) -> None:
    seen = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        kind = key.tag.rpartition(":")[2]
        if kind not in ("str", "merge"):
            shown = key.value if key.id == "scalar" else "a list or table"
            raise refuse(
                f"{source} has {shown} (line {line}) where a name stands", "Write it in quotes."
            )
        if key.value in seen:
            raise refuse(
                f'{source} has "{key.value}" twice in one table (line {line})', "Keep one of them."
            )
        seen.add(key.value)


def _finite(digits: str) -> float | None:
    return value if math.isfinite(value := float(digits)) else None


def _check_numbers(text: str, source: str, refuse: Refusal) -> None:
    """Refuse long rows of digits before a parser takes minutes for them.

    Inside quotes nobody reads them as a number, and they stay.
    """
    begin, quotes, ticks = 0, 0, 0
    for row in re.finditer(rf"[0-9_]{{{_LONGEST_NUMBER + 1},}}", text):
        # From the row before, or the line's beginning: each sign is counted once.
        line = text.rfind("\n", begin, row.start()) + 1
        if line:
            begin, quotes, ticks = line, 0, 0
        before = text[begin : row.start()]
        quotes += before.count('"') - before.count('\\"')
        ticks += before.count("'")
        if quotes % 2 == 0 and ticks % 2 == 0:
            raise refuse(
                f"{source} has a number of {len(row[0])} digits", "Write a number that counts."
            )
        begin = row.end()


def _check_values(found: Any, source: str, refuse: Refusal, foreign: bool = False) -> None:
    """Refuse what no setting can be; without recursion, so that depth itself can be refused."""
    level, depth = [found], 0
    while level:
        if depth > _DEEPEST:
            raise refuse(f"{source} is nested more than {_DEEPEST} levels deep", "Check the file.")
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, float) and not math.isfinite(value):
                raise refuse(f"{source} has the number {value}", "Write a finite number.")
            if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER * 3.33:
                raise refuse(f"{source} has a number too long to count", "Write one that counts.")
            if isinstance(value, str) and not foreign and _HALF.search(value):
                raise refuse(
                    f"{source} has half a character (\\ud800 and its like)", "Write it whole."
                )
            if isinstance(value, dict):
                deeper += (*value, *value.values())
            elif isinstance(value, list):
                deeper += value
        level, depth = deeper, depth + 1


def _advise(text: str, said: str) -> str:
    """What to do about text that is not TOML."""
    number = re.search(r"at line (\d+)", said)
    lines = text.splitlines()
    line = lines[int(number[1]) - 1] if number and int(number[1]) <= len(lines) else ""
    if "\\" in line and '"' in line:
        return (
            "A backslash in double quotes begins an escape: write paths with forward slashes, or "
            "in single quotes."
        )
    yaml = re.compile(r"\s*(- )?[\w.-]+:(\s|$)|---\s*$")
    if sum(bool(yaml.match(each)) for each in lines) * 2 > len([x for x in lines if x.strip()]):
        return (
            "This looks like YAML. If it is ai-toolkit's configuration, `iclora import` makes a "
            "run file of it; otherwise write TOML, NAME = VALUE in each line."
        )
    return (
        "Fix that line: NAME = VALUE; text in straight quotes, decimals with a point, true and "
        "false in small letters."
    )
