"""Documents that people and other tools write are read with bounds, and refused in plain words."""

from __future__ import annotations

import os
import time

import pytest

from iclora.errors import RecipeError, SettingsError
from iclora.files.documents import (
    parse_json,
    parse_toml,
    parse_yaml,
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
        # Within seconds, also of many keys.
        ("{" + "".join(f'"{k}":1,' for k in range(100_000)) + '"99999":2}', '"99999" twice'),
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


def test_a_number_too_long_to_count_is_refused_wherever_quotes_stand():
    text = f'{{"a": "it\'s", "b": {"9" * 1000}}}'
    with pytest.raises(SettingsError, match="a number too long"):
        parse_json(text, "x", SettingsError)


def test_many_rows_of_digits_take_no_longer_than_as_much_other_text():
    rows = ",".join(f'"{"1" * 401}"' for _ in range(40_000))
    began = time.process_time()
    assert len(parse_json(f"[{rows}]", "x", SettingsError)) == 40_000
    assert time.process_time() - began < 3  # Some 0.1 s; it was minutes.


@pytest.mark.parametrize("text", ['["\\ud800"]', '{"a": {"\\uDC00x": 1}}', '{"a": ["b\\ud83d"]}'])
def test_half_a_character_is_refused_since_no_file_could_hold_it(text):
    with pytest.raises(SettingsError, match="half a character"):
        parse_json(text, "x", SettingsError)
    assert parse_json('"\\ud83d\\ude00"', "x", SettingsError) == "\U0001f600"


def test_what_a_server_writes_need_not_be_as_strict():
    text = '{"a": 1, "a": [NaN, 1e999, -Infinity, 1.5]}'
    assert parse_json(text, "x", SettingsError, foreign=True) == {"a": [None, None, None, 1.5]}
    with pytest.raises(SettingsError, match="nested"):
        parse_json("[" * 70 + "]" * 70, "x", SettingsError, foreign=True)


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


# -- YAML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2.5E+3", 2500.0),
        (".5e1", 5.0),
        ("0.5", 0.5),
        ("12", 12),
        ("'1e-4'", "1e-4"),
        ("x1e4", "x1e4"),
        ("2024-01-01", "2024-01-01"),
        ("no", False),
        ("~", None),
        ("[a, 'b']", ["a", "b"]),
    ],
)
def test_yaml_values_are_what_people_mean_by_them(text, value):
    found = parse_yaml(f"a: {text}", "x", SettingsError)["a"]
    assert found == value
    assert type(found) is type(value)


def test_yaml_is_read_as_its_own_library_reads_it_where_versions_agree():
    import yaml

    text = "a: &d {x: 1, y: [1, 2.5]}\nb:\n  <<: *d\n  y: 3\nc: |\n  two\n  lines\n"
    assert parse_yaml(text.encode("utf-16"), "x", SettingsError) == yaml.safe_load(text)


_BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)
_MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i + 1}: &a{i + 1}\n  <<: [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_BOMB, "more than 100,000 values"),
        (_MERGES, "more than 100,000 values"),
        ("a: &a [*a]", "contains itself"),
        ("a: 1\nb: {c: 1, c: 2}", r'"c" twice in one table \(line 2\)'),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: !!binary aGk=", "not valid YAML"),
        ("on: 1", "on .line 1. where a name stands"),
        ("? [1]\n: 2", "where a name stands"),
        ("a: .nan", "the number nan"),
        (f"a: {'9' * 5000}", "a number of 5000 digits"),
        ("a: " + "[" * 900, "nested|not valid YAML"),
        (f"a: {'[' * 100}{']' * 100}", "nested"),
        ("a: [1,\nb: {", "not valid YAML"),
        ("a: 1\n---\nb: 2", "another document"),
        ("", "is empty"),
        ("#" * 2**20 + "\na: 1", "more than a million"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused(text, says):
    with pytest.raises(RecipeError, match=says) as refused:
        parse_yaml(text, "file x", RecipeError)
    assert "file x" in refused.value.problem
