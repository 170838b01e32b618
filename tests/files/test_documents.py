"""Documents that people and other tools write are read with bounds, and refused in plain words."""

from __future__ import annotations

import os

import pytest

from iclora.errors import RecipeError, SettingsError
from iclora.files.documents import (
    parse_json,
    parse_toml,
    read_bytes,
    read_json,
    read_toml,
    read_words,
)


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path, coding):
    (tmp_path / "a.toml").write_bytes('name = "Zoë"\n'.encode(coding))
    (tmp_path / "a.json").write_bytes('{"name": "Zoë"}'.encode(coding))
    assert read_toml(tmp_path / "a.toml", SettingsError, "file") == {"name": "Zoë"}
    assert read_json(tmp_path / "a.json", SettingsError, "file") == {"name": "Zoë"}
    assert read_words(tmp_path / "a.toml", SettingsError, "file") == 'name = "Zoë"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('data = "C:\\Users\\me"', "forward slashes, or in single quotes"),
        ("job: extension\nconfig:\n  name: x\n", "looks like YAML"),
        ("- a: 1\n- b: 2", "looks like YAML"),
        ('{"steps": 3}', "is JSON, not TOML"),
        ("steps 3", "NAME = VALUE"),
        ("steps = 1\nsteps = 2", "not valid TOML"),
        ("lr = nan", "the number nan"),
        ("[a]\nlr = [[-inf]]", "the number -inf"),
        (f"steps = {'9' * 5000}", "a number of 5000 digits"),
        (f"a = {'[' * 200}{']' * 200}", "nested"),
        (f"a = {'[' * 50000}{']' * 50000}", "nested"),
    ],
)
def test_toml_that_cannot_be_meant_is_refused_with_what_to_write(text, says):
    with pytest.raises(RecipeError, match=says) as refused:
        parse_toml(text, "recipe x", RecipeError)
    assert "recipe x" in refused.value.problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', '"a" twice'),
        ('{"b": {"a": 1, "a": 1}}', '"a" twice'),
        ("[NaN]", "the number nan"),
        ('{"a": [-Infinity]}', "the number -inf"),
        ("1e999", "the number inf"),
        (f"[{'7' * 5000}]", "a number of 5000 digits"),
        (f"{'[' * 100}{']' * 100}", "nested"),
        (f"{'[' * 100000}{']' * 100000}", "nested"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested"),
        ("{a: 1}", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_that_cannot_be_meant_is_refused(text, says):
    with pytest.raises(SettingsError, match=says):
        parse_json(text, "request x", SettingsError)


def test_long_rows_of_digits_are_text_inside_quotes():
    digits = "1" * 5000
    assert parse_json(f'{{"a": "{digits}"}}', "x", SettingsError) == {"a": digits}
    assert parse_toml(f"a = '{digits}'", "x", SettingsError) == {"a": digits}


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path):
    with pytest.raises(SettingsError, match=r"not UTF-8 text \(line 2\)"):
        parse_toml(b"a = 1\nb = '\xff'", "x", SettingsError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10**10)
    for path, says in [
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "large", "more than 16 MB"),
        (tmp_path / "none", "cannot be read"),
        (tmp_path / ("x" * 300), "cannot be read"),
        ("a\0b", "cannot be read"),
    ]:
        with pytest.raises(SettingsError, match=says):
            read_bytes(path, SettingsError, "file")
