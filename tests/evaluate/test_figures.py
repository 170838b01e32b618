"""From values to estimates: prompts count, not sets, and twins keep their names."""

import pytest

from iclora.evaluate.figures import Row, Table


def test_a_row_compares_arms_over_what_both_have():
    row = Row(
        "f",
        "",
        {"a": {"1": 1.0, "2": 2.0, "3": 9.0}, "b": {"1": 2.0, "2": 4.0}},
        {"1": "p", "2": "q", "3": "q"},
    )
    assert row.estimate("a").mean == 4
    assert row.difference("b", "a").mean == pytest.approx(1.5)
    assert row.difference("b", "a").count == 2
    assert row.estimate("c") is None
    assert row.difference("c", "a") is None


def test_sets_of_one_prompt_do_not_narrow_the_interval():
    table = Table()
    for prompt in range(6):
        for seed in range(10):
            table.add("f", "", "arm", f"{prompt} {seed}", str(prompt), float(prompt))
    wide = table.rows["f"].estimate("arm")
    assert wide.count == 60
    assert wide.high - wide.low > 2
