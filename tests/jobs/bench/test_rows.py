"""Which rows run on which machine."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import pytest

from iclora.errors import SettingsError
from iclora.jobs.bench.machine import PACKAGES
from iclora.jobs.bench.rows import ROWS, Row, Seen, chosen, left_out

ROOT = Path(__file__).parents[3]
EVERYTHING = frozenset(PACKAGES)
SCRIPTS = frozenset(row.script for row in ROWS if row.script)


def seen(memory: float, **more) -> Seen:
    return Seen(
        **{"card": True, "memory": memory, "disk": 60, "packages": EVERYTHING, **more},
        scripts=SCRIPTS,
    )


def names(machine: Seen) -> set[str]:
    return {row.name for row in ROWS if left_out(row, machine) is None}


def test_a_smaller_card_runs_fewer_rows_and_says_what_the_others_need():
    h200, h100, rtx = seen(150), seen(84), seen(24)
    assert names(h200) == names(h100) > names(rtx) > {"card", "equal", "attention", "smoke-tiny"}
    (why,) = {left_out(row, rtx) for row in ROWS if row.name == "train-dev"}
    assert why == "it needs 70 GB of free memory on the card, which has 24.0"


def test_without_a_card_only_rows_of_a_cpu_run_and_with_one_none_of_these():
    none = Seen(False, 0, 60, EVERYTHING, SCRIPTS, "no driver")
    small = {row.name for row in ROWS if row.on == "cpu"}
    assert small
    assert small < names(none)
    assert not {row.name for row in ROWS if row.on == "card"} & names(none)
    assert not small & names(seen(150))
    assert left_out(ROWS[3], none) == "it needs a card: no driver"


def test_without_diffusers_or_peft_what_needs_neither_still_runs():
    assert names(seen(150, packages=frozenset({"torch"}))) == {"card", "attention"}
    (row,) = chosen(["train-dev"])
    said = left_out(row, seen(150, packages=EVERYTHING - {"diffusers", "peft"}))
    assert said == "it needs diffusers and peft, not installed here"


def test_without_the_repository_or_disk_rows_say_so():
    bare = dataclasses.replace(seen(150), scripts=frozenset(), disk=3)
    reasons = [left_out(row, bare) for row in chosen(["train-dev", "first-picture"])]
    assert "benchmarks/train_step.py" in reasons[0]
    assert "24 GB of free disk" in reasons[1]


def test_what_rows_call_is_there_and_their_names_differ():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        module, _, attribute = row.call.partition(":")
        assert find_spec(module), row.name
        text = Path(find_spec(module).origin).read_text()
        assert f"def {attribute}(" in text, row.name
        if row.script:
            assert "def measure(" in (ROOT / "benchmarks" / row.script).read_text()
        assert row.takes <= row.limit


def test_rows_are_chosen_by_name_or_beginning_and_typing_errors_are_answered():
    assert [row.name for row in chosen(["smoke-tiny"])] == ["smoke-tiny"]
    of_all = [row for row in ROWS if row.name.startswith("smoke")]
    assert len(of_all) > 4
    assert chosen(["smoke"]) == of_all
    assert chosen([]) == list(ROWS)
    with pytest.raises(SettingsError, match="Did you mean attention"):
        chosen(["atention"])


def test_the_first_nine_minutes_hold_the_rows_that_are_worth_most():
    took, fit = 0, []
    for row in ROWS:
        if row.on != "cpu" and took + row.takes <= 9 * 60:
            took += row.takes
            fit.append(row.name)
    wanted = {"card", "smoke-tiny", "equal", "train-dev", "memory-dev", "sample-dev", "attention"}
    more = {"train-dev-compiled", "smoke-toyland", "cached-dev", "sample-klein-512"}
    assert wanted | more <= set(fit)


def test_a_row_is_plain_data():
    assert isinstance(Row("a", "b", "c:d").told, dict)
